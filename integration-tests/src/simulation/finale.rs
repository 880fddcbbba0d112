//! The end of a run: the disturbance is over, in whole or for a core of machines, and what was demanded must come true.

use std::collections::BTreeMap;
use std::time::Duration;

use kcl_core::test_util::{Cut, Service};
use tokio::time::sleep;

use super::fleet::machine;
use super::oracle::Oracle;
use super::plan::{Chaos, Ending};
use super::run::{Due, Simulation};

impl Simulation {
    /// Ends the disturbance as the plan has it.
    pub(super) fn calm(&mut self) {
        self.judge.calms_down();
        self.due.retain(|_, due| matches!(due, Due::Thaw(..) | Due::Start(_) | Due::Resharded | Due::OperatorThaws));
        self.next_record = None;
        self.foreigners.abort_all();
        self.aws.set_write_budget(super::oracle::APPLICATION, None);
        self.fuses.clear();
        self.fleet.processes.values().for_each(|process| process.host.spare());
        match self.plan.ending {
            Ending::Heal => self.aws.faults().clear(),
            Ending::HealthyCore(core) => {
                let others: Vec<_> = self.fleet.in_service.iter().filter(|(_, on)| **on).map(|(number, _)| *number).skip(core).collect();
                self.aws.faults().clear();
                for number in others {
                    self.break_for_ever(number);
                }
            }
        }
        self.nobody_pauses();
        let now = self.aws.elapsed();
        let broken = self.broken();
        for number in self.fleet.in_service.keys().copied().filter(|number| !broken.contains(number)).collect::<Vec<_>>() {
            let freeze = self.freezes.entry(number).or_default();
            *freeze += 1;
            let freeze = *freeze;
            self.enter(now, Due::Thaw(number, freeze));
        }
        if !self.fleet.in_service.values().any(|on| *on) {
            self.enter(now, Due::Chaos(Chaos::Start(0)));
        }
    }

    fn broken(&self) -> Vec<usize> {
        match self.plan.ending {
            Ending::Heal => Vec::new(),
            Ending::HealthyCore(core) => {
                self.fleet.in_service.iter().filter(|(_, on)| **on).map(|(number, _)| *number).skip(core).collect()
            }
        }
    }

    fn break_for_ever(&mut self, number: usize) {
        let for_ever = Duration::MAX;
        let choice = self.fleet.entropy.u64() % 5;
        self.judge.tell(format_args!("machine {number} is broken for ever in way {choice}"));
        let cut = if self.fleet.entropy.u64().is_multiple_of(2) { Cut::Requests } else { Cut::Answers };
        match choice {
            // A process that died just now would be started anew, and not be frozen.
            0 if self.fleet.processes.contains_key(&number) => {
                *self.freezes.entry(number).or_default() += 1;
                self.with_host(number, |host| host.freeze());
            }
            1 => {
                // It is started again and again, and can't do anything.
                for service in Service::ALL {
                    self.aws.faults().partition(&machine(number), service, cut, for_ever);
                }
            }
            2 => self.aws.faults().partition(&machine(number), Service::LeaseTable, cut, for_ever),
            3 => self.aws.faults().partition(&machine(number), Service::Stream, cut, for_ever),
            _ => {
                self.fleet.in_service.insert(number, false);
                self.with_host(number, |host| host.kill());
            }
        }
    }

    pub(super) async fn everything_is_finished(&mut self) -> bool {
        let end = self.aws.elapsed() + self.plan.patience;
        loop {
            if self.judge.violation().is_some() {
                return false;
            }
            self.judge.with(|oracle, now| oracle.trimmed_are_past(now));
            // Processors have no reason to stop any more; somebody has to resume what they have stopped before.
            let may_stop = self.plan.handling.stops > 0.0 || self.plan.handling.valve.is_some();
            if may_stop && self.aws.elapsed().as_secs().is_multiple_of(20) {
                self.resume_stopped();
            }
            let is_through = {
                let oracle = self.judge.lock();
                oracle.undone() == 0 && !oracle.is_at_work()
            };
            if self.operators.is_empty() && is_through && self.aws.elapsed() > Duration::from_secs(30) {
                return true;
            }
            if self.aws.elapsed() > end {
                let missing = self.judge.lock().missing();
                self.judge.with(|oracle, _| oracle.violated("L2", format!("not finished within {:?}: {missing}", self.plan.patience)));
                return false;
            }
            self.until(self.aws.elapsed() + Duration::from_secs(1)).await;
        }
    }

    /// Waits until leases are spread evenly over the machines that work, then demands that nothing moves any more.
    pub(super) async fn leases_are_even(&mut self) -> bool {
        let duration = self.plan.lease_duration;
        // Calls that travel late, and what comes of them.
        self.until(self.aws.elapsed() + Duration::from_secs(30)).await;
        // A worker that reads nothing, and knows of no other, takes five minutes to find out.
        let patience = if self.plan.ending == Ending::Heal { 120 } else { 480 };
        let end = self.aws.elapsed() + duration * 30 + Duration::from_secs(patience);
        while let Err(uneven) = self.uneven() {
            if self.aws.elapsed() > end {
                self.judge.with(|oracle, _| oracle.violated("L3", uneven));
                return false;
            }
            self.until(self.aws.elapsed() + Duration::from_secs(1)).await;
        }
        if self.plan.ending != Ending::Heal {
            // Processes that can't live come and go.
            return true;
        }
        let still = self.aws.elapsed();
        self.until(still + duration * 5).await;
        let moves = self.judge.lock().moves_since(still);
        if moves > 0 {
            self.judge.with(|oracle, _| oracle.violated("L3", format!("{moves} leases moved although they were even")));
            return false;
        }
        if !self.plan.handling.manual {
            self.judge.with(Oracle::all_is_checkpointed);
        }
        self.judge.violation().is_none()
    }

    /// `Err`: leases are not even, or a worker owns one that it does not read.
    fn uneven(&self) -> Result<(), String> {
        let broken = self.broken();
        let mut counts = BTreeMap::new();
        for (number, process) in self.fleet.processes.iter().filter(|(number, _)| !broken.contains(number)) {
            let handle = process.handle().ok_or_else(|| format!("machine {number} has no worker"))?;
            let status = handle.status();
            counts.insert(status.worker.to_string(), (0_usize, status.shards, self.fleet.most_leases(*number)));
        }
        for (shard, owner) in self.judge.lock().owners() {
            let Some((count, shards, _)) = owner.as_ref().and_then(|owner| counts.get_mut(owner)) else {
                return Err(format!("{shard} belongs to {owner:?}, which is no worker that works"));
            };
            if !shards.contains_key(&shard) {
                return Err(format!("{shard} belongs to {owner:?}, which does not read it"));
            }
            *count += 1;
        }
        let most = counts.values().map(|(count, ..)| *count).max().unwrap_or(0);
        if let Some((worker, (count, ..))) = counts.iter().find(|(_, (count, _, most))| count > most) {
            return Err(format!("{worker} has {count} leases, which is more than it may have"));
        }
        // Workers don't know of each other's limits.
        let fewest = if self.plan.most_leases.is_empty() { counts.values().map(|(count, ..)| *count).min().unwrap_or(0) } else { most };
        if most > fewest + 1 {
            return Err(format!("leases are spread from {fewest} to {most} a worker"));
        }
        Ok(())
    }

    pub(super) fn demands_are_met(&self) {
        let demands = self.plan.demands;
        self.judge.with(|oracle, _| {
            if let Some((from, to, most)) = demands.takes {
                let takes = oracle.takes_between(from, to);
                if takes > most {
                    oracle.violated("L7", format!("{takes} leases were taken from {from:?} to {to:?}, at most {most} are right"));
                }
            }
            let taken_over = oracle.states().get("taken over").copied().unwrap_or(0);
            if demands.nobody_dies && taken_over > 0 {
                oracle.violated("L7", format!("{taken_over} leases were taken from owners, and all of them lived"));
            }
            if let Some(most) = demands.deaths {
                let deaths = oracle.states().get("process killed by its record").copied().unwrap_or(0);
                if deaths > most {
                    oracle.violated("isolation", format!("a record has killed {deaths} processes, at most {most} are right"));
                }
            }
            if let Some(most) = demands.repeated
                && oracle.repeated() > most
            {
                oracle.violated("duplicates", format!("{} records were delivered again, at most {most} are right", oracle.repeated()));
            }
            if let Some(most) = demands.good_letters
                && oracle.good_letters() > most
            {
                oracle.violated("letters", format!("{} good records were dead-lettered, at most {most} are right", oracle.good_letters()));
            }
            if let Some(most) = demands.always_within
                && oracle.slowest() > most
            {
                oracle.violated("L2", format!("a record took {:?}, at most {most:?} are right", oracle.slowest()));
            }
        });
    }

    /// All are told to stop, and have to.
    pub(super) async fn all_stop(&mut self) {
        let broken = self.broken();
        for number in self.fleet.in_service.keys().copied().collect::<Vec<_>>() {
            self.fleet.in_service.insert(number, false);
            if broken.contains(&number) {
                self.with_host(number, |host| host.kill());
            } else {
                self.fleet.terminate(number);
            }
        }
        // A worker whose only thread is blocked hears of nothing until the block is over.
        let blocked = if self.plan.handling.way.blocks() { Duration::from_secs(1_800) } else { Duration::ZERO };
        let end = self.aws.elapsed() + super::fleet::SHUTDOWN + Duration::from_secs(5) + blocked;
        while !self.fleet.processes.is_empty() {
            if self.aws.elapsed() > end {
                let left: Vec<_> = self.fleet.processes.values().map(|process| process.host.name().to_owned()).collect();
                self.judge.with(|oracle, _| oracle.violated("L6", format!("still running after they were told to stop: {left:?}")));
                return;
            }
            self.until(self.aws.elapsed() + Duration::from_millis(100)).await;
        }
        if broken.is_empty() {
            let checkpointed = !self.plan.handling.manual;
            self.judge.with(|oracle, _| oracle.all_is_released(checkpointed));
        }
        // Calls that travel late.
        sleep(Duration::from_secs(60)).await;
        self.judge.with(|oracle, _| {
            oracle.no_processor_is_left(|name| self.fleet.hosts.iter().any(|host| host.name() == name && host.is_dead()));
        });
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        if tasks > 0 {
            self.judge.with(|oracle, _| oracle.violated("growth", format!("{tasks} tasks are left after all have stopped")));
        }
    }
}
