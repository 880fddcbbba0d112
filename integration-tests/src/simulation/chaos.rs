//! What happens to the fleet, the stream and the services: a plan's schedule, entry by entry.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kcl_core::test_util::kinesis_model::{DeleteStreamInput, MergeShardsInput, SplitShardInput};

use super::fleet::machine;
use super::oracle::APPLICATION;
use super::plan::Chaos;
use super::publisher::STREAM;
use super::run::{Due, Simulation};

impl Simulation {
    pub(super) fn chaos(&mut self, chaos: Chaos) {
        let now = self.aws.elapsed();
        self.judge.tell(format_args!("chaos {chaos}"));
        match chaos {
            Chaos::Start(number) => {
                self.fleet.in_service.insert(number, true);
                self.fleet.start(number);
            }
            Chaos::Stop(number) => {
                self.count("stop");
                self.fleet.in_service.insert(number, false);
                self.fleet.terminate(number);
            }
            Chaos::Replace(number) => {
                self.count("replace");
                self.fleet.terminate(number);
            }
            Chaos::Kill(number) => {
                self.count("kill");
                self.with_host(number, |host| host.kill());
            }
            Chaos::KillAtPoll(number, poll) => {
                self.count("kill at an await");
                self.with_host(number, |host| host.kill_at_poll(poll));
            }
            Chaos::KillAfterWrite(number, writes) => {
                self.count("kill after a write");
                if let Some(process) = self.fleet.processes.get(&number) {
                    self.fuses.kill_after(writes, &process.host);
                }
            }
            Chaos::Freeze(number, time) => {
                self.count("freeze");
                self.with_host(number, |host| host.freeze());
                let freeze = self.freezes.entry(number).or_default();
                *freeze += 1;
                let freeze = *freeze;
                self.enter(now + time, Due::Thaw(number, freeze));
            }
            Chaos::StepClock(number, millis) => {
                self.count("clock step");
                self.with_host(number, |host| host.clock().step_wall(millis));
            }
            Chaos::ClockRate(number, rate) => {
                self.count("clock rate");
                self.with_host(number, |host| host.clock().set_rate(rate));
            }
            Chaos::Split(choice) => self.split(choice),
            Chaos::Merge(choice) => self.merge(choice),
            Chaos::Outage(service, time) => {
                self.count("outages");
                self.aws.faults().outage(service, now + time);
            }
            Chaos::Partition(number, service, cut, time) => {
                self.count("partitions");
                self.aws.faults().partition(&machine(number), service, cut, now + time);
            }
            Chaos::Burst(count) => {
                self.count("burst");
                self.publisher.put(count);
            }
            Chaos::Recreate => self.recreate(),
            Chaos::Seek(back) => self.seek(back),
            Chaos::Empty(rows) => self.empty(rows),
            Chaos::Assign(choice, silence, renewals, releases) => self.assign(choice, silence, renewals, releases),
            Chaos::Trouble(trouble) => self.trouble(trouble),
            Chaos::CutAfterWrite(number, writes, time) => {
                self.count("cut after a write");
                if let Some(process) = self.fleet.processes.get(&number) {
                    self.fuses.cut_after(writes, &process.host, time);
                }
            }
            Chaos::ListingsLag(by, time) => {
                self.count("listings lag");
                self.aws.faults().lag_listings(by, now + time);
            }
            Chaos::CreationsLate(time) => {
                self.count("creations late");
                self.aws.faults().create_late(now + time);
            }
            Chaos::Pause(number, shard) => self.pause(number, shard),
            Chaos::Resume(number) => self.resume(number),
            Chaos::ResumeStopped => self.resume_stopped(),
            Chaos::Mend => {
                self.fleet.mended.store(true, Ordering::Relaxed);
                self.judge.with(|oracle, _| oracle.allow_skips());
            }
        }
    }

    fn open_shards(&self) -> Vec<kcl_core::stream::Shard> {
        let mut open: Vec<_> = self.aws.shards(STREAM).unwrap_or_default().into_iter().filter(kcl_core::stream::Shard::is_open).collect();
        open.sort_by_key(|shard| shard.hash_range.start);
        open
    }

    fn split(&mut self, choice: u64) {
        let open = self.open_shards();
        let shard = &open[usize::try_from(choice % open.len() as u64).unwrap_or(0)];
        let (low, high) = (shard.hash_range.start, shard.hash_range.end);
        if high - low < 4 {
            return;
        }
        let split = SplitShardInput {
            stream_name: Some(STREAM.to_owned()),
            shard_to_split: shard.shard_id.to_string(),
            new_starting_hash_key: (low + (high - low) / 2 + 1).to_string(),
            ..Default::default()
        };
        // Refused while another change is under way.
        if self.aws.kinesis().call(split).is_ok() {
            self.count("split");
            self.enter(self.aws.elapsed() + self.plan.resharding + Duration::from_millis(1), Due::Resharded);
        }
    }

    fn merge(&mut self, choice: u64) {
        let open = self.open_shards();
        if open.len() < 2 {
            return;
        }
        let first = usize::try_from(choice % (open.len() as u64 - 1)).unwrap_or(0);
        let merge = MergeShardsInput {
            stream_name: Some(STREAM.to_owned()),
            shard_to_merge: open[first].shard_id.to_string(),
            adjacent_shard_to_merge: open[first + 1].shard_id.to_string(),
            ..Default::default()
        };
        if self.aws.kinesis().call(merge).is_ok() {
            self.count("merge");
            self.enter(self.aws.elapsed() + self.plan.resharding + Duration::from_millis(1), Due::Resharded);
        }
    }

    fn empty(&mut self, rows: usize) {
        self.count("table emptied");
        let gone = self.aws.strike_leases(APPLICATION, rows);
        let running: Vec<_> = self.fleet.processes.values().filter(|process| process.handle().is_some()).collect();
        let running = running.iter().map(|process| process.host.name().to_owned()).collect();
        self.judge.with(|oracle, now| oracle.emptied(&gone, running, now));
    }

    fn assign(&mut self, choice: u64, silence: Duration, renewals: u32, releases: bool) {
        self.count("assigned elsewhere");
        self.foreigners.spawn(super::foreigner::live(self.aws.clone(), self.judge.clone(), choice, silence, renewals, releases));
    }

    fn recreate(&mut self) {
        self.count("recreate");
        let delete =
            DeleteStreamInput { stream_name: Some(STREAM.to_owned()), enforce_consumer_deletion: Some(true), ..Default::default() };
        self.aws.kinesis().call(delete).expect("the stream can be deleted");
        let made = self.aws.time();
        self.aws.create_stream(STREAM, self.plan.shards);
        self.judge.with(|oracle, _| oracle.recreated(made));
        self.judge.resharded(STREAM);
    }
}
