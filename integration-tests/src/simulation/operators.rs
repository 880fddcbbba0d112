//! Operators: one who lets the application begin elsewhere, and asks again until that is done, from a
//! machine that has troubles of its own; and one who resumes shards that have stopped, or pauses them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kcl_core::seek::SeekTo;
use kcl_core::stops::Stops;
use kcl_core::test_util::Host;
use kcl_core::{Entropy, ShardState, ShardStatus, Timestamp};
use tokio::time::sleep;

use super::oracle::{APPLICATION, OPERATOR};
use super::plan::OperatorTrouble;
use super::publisher::STREAM;
use super::run::{Due, Simulation};

/// The machine from which stopped shards are resumed.
const CONSOLE: &str = "console";

/// The process that makes a seek, if one is being made.
pub(super) type Present = Arc<Mutex<Option<Host>>>;

impl Simulation {
    pub(super) fn seek(&mut self, back: Duration) {
        if !self.operators.is_empty() {
            // One operator at a time: two who want different things have nobody to decide between them.
            return;
        }
        self.count("seek");
        let millis = self.aws.time().as_millis().saturating_sub(u64::try_from(back.as_millis()).unwrap_or(u64::MAX));
        let to = if back.is_zero() { SeekTo::TrimHorizon } else { SeekTo::Time(Timestamp::from_millis(millis)) };
        let host = self.aws.host(OPERATOR);
        let target = if let SeekTo::Time(time) = to { Some(time) } else { None };
        self.judge.with(|oracle, _| oracle.seek_begins(target));
        let (aws, present) = (self.aws.clone(), Arc::clone(&self.operator));
        let pauses = Entropy::from_seed(self.plan.seed ^ self.entries);
        self.operators.spawn(async move {
            let mut host = host;
            loop {
                *present.lock().unwrap_or_else(PoisonError::into_inner) = Some(host.clone());
                let made = tokio::select! {
                    biased;
                    () = host.died() => None,
                    made = host.run(host.seek(APPLICATION, STREAM, to).run()) => Some(made),
                };
                match made {
                    Some(Ok(_)) => break,
                    Some(Err(error)) => {
                        tracing::info!(%error, "the seek is made again");
                        sleep(Duration::from_secs(2)).await;
                    }
                    // Somebody finds it half done, and asks for the same.
                    None => {
                        sleep(pauses.between(Duration::from_millis(100), Duration::from_secs(30))).await;
                        host = aws.host(OPERATOR);
                    }
                }
            }
            *present.lock().unwrap_or_else(PoisonError::into_inner) = None;
        });
    }

    fn operator(&self) -> Option<Host> {
        self.operator.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something happens to the machine that seeks are made from; nothing, if none is being made.
    pub(super) fn trouble(&mut self, trouble: OperatorTrouble) {
        let Some(host) = self.operator() else { return };
        self.count("operator in trouble");
        let now = self.aws.elapsed();
        match trouble {
            OperatorTrouble::Killed => host.kill(),
            OperatorTrouble::KilledAfterWrite(writes) => self.fuses.kill_after(writes, &host),
            OperatorTrouble::Frozen(time) => {
                host.freeze();
                self.enter(now + time, Due::OperatorThaws);
            }
            OperatorTrouble::Cut(service, cut, time) => self.aws.faults().partition(OPERATOR, service, cut, now + time),
            OperatorTrouble::CutAfterWrite(writes, time) => self.fuses.cut_after(writes, &host, time),
            OperatorTrouble::Slow(call, time) => self.aws.faults().slow_machine(OPERATOR, call / 4, call / 2, now + time),
            OperatorTrouble::Clock(rate, step) => {
                host.clock().set_rate(rate);
                host.clock().step_wall(step);
            }
        }
    }

    pub(super) fn operator_thaws(&self) {
        if let Some(host) = self.operator() {
            host.thaw();
        }
    }

    /// Somebody resumes all shards that have stopped: those that the safety valve has, from outside, and those of a processor's word, whose
    /// stop stands in no lease, at their workers.
    pub(super) fn resume_stopped(&mut self) {
        let handles: Vec<_> = self.fleet.processes.values().filter_map(super::fleet::Process::handle).collect();
        for handle in handles {
            let stopped = |status: &ShardStatus| status.state == ShardState::StoppedByProcessor;
            for (shard, _) in handle.status().shards.into_iter().filter(|(_, status)| stopped(status)) {
                handle.resume_shard(&shard);
            }
        }
        if !self.consoles.is_empty() {
            return;
        }
        self.count("stops resumed");
        let host = self.aws.host(CONSOLE);
        let entropy = Entropy::from_seed(self.plan.seed ^ self.entries);
        self.consoles.spawn(async move {
            let stops = Stops::new(APPLICATION).lease_table(Arc::new(host.lease_table(APPLICATION))).entropy(entropy);
            if let Err(error) = stops.resume_all().await {
                tracing::info!(%error, "some shards are not resumed");
            }
        });
    }

    /// Somebody pauses a machine's worker, or one of its shards.
    pub(super) fn pause(&mut self, number: usize, shard: Option<u64>) {
        let Some(handle) = self.fleet.processes.get(&number).and_then(super::fleet::Process::handle) else { return };
        self.count("pause");
        let Some(choice) = shard else {
            handle.pause();
            return;
        };
        let shards: Vec<_> = handle.status().shards.into_keys().collect();
        if let Some(shard) = usize::try_from(choice).ok().and_then(|choice| shards.get(choice % shards.len().max(1))) {
            handle.pause_shard(shard);
            self.paused.insert((number, shard.clone()));
        }
    }

    /// Somebody resumes what was paused of a machine's worker.
    pub(super) fn resume(&mut self, number: usize) {
        let paused: Vec<_> = self.paused.iter().filter(|(machine, _)| *machine == number).cloned().collect();
        paused.iter().for_each(|entry| {
            self.paused.remove(entry);
        });
        let Some(handle) = self.fleet.processes.get(&number).and_then(super::fleet::Process::handle) else { return };
        handle.resume();
        paused.iter().for_each(|(_, shard)| handle.resume_shard(shard));
    }

    /// All that operators have done to workers is taken back.
    pub(super) fn nobody_pauses(&mut self) {
        for number in self.fleet.processes.keys().copied().collect::<Vec<_>>() {
            self.resume(number);
        }
    }
}
