//! Records that kill their process: found by the deaths that they cause, tried alone, and given up after some.
//!
//! A worker that dies of a record can't say so. The next one sees that the lease was taken from the dead, and that since the last checkpoint owners
//! have changed before: then somebody died before it got anywhere. From there on records go one at a time, each noted in the lease before it is in
//! work (`rk_suspect`) and checkpointed after. Who finds such a note for a record that is not finished knows what the dead had in hand, and how often;
//! for one that is finished, that care is not over.

use kcl_checkpoint::ExtendedSequenceNumber;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::term::Term;
use kcl_lease::{Lease, Suspect};

/// Owner changes since the last checkpoint from which on a death is suspicious: the change that began this term, and one before it.
const SUSPICIOUS: u64 = 2;

/// So many records are tried alone, unless the shard's tip is reached before: as many as the dead can have had in hand (GetRecords: 10,000).
const TRIED_ALONE: u32 = 10_000;

/// What a record in work alone needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It has killed so many processes that it is not tried again.
    GiveUp(u32),
    /// It must be noted in the lease before it is in work.
    Note(Suspect),
    /// It is noted already.
    Go,
}

/// One record at a time. See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Careful {
    /// What the dead had in work.
    found: Option<Suspect>,
    /// What this term has noted.
    noted: Option<ExtendedSequenceNumber>,
    /// It was noted, and has come back from its attempt unfinished: the lease must say so before
    /// anybody dies of something else.
    came_back: bool,
    /// The record that was given up, and waits because there is no queue for it.
    waits: Option<ExtendedSequenceNumber>,
    left: u32,
}

impl Careful {
    /// Whether this term has to be careful.
    pub(super) fn begin(term: &Term) -> Option<Self> {
        Self::judge(term.taken(), term.is_from_the_dead())
    }

    fn judge(taken: &Lease, from_the_dead: bool) -> Option<Self> {
        if is_planted(Bug::DeathsNotCounted) {
            return None;
        }
        let suspicious = from_the_dead && taken.owner_switches_since_checkpoint >= SUSPICIOUS;
        // A note is there as long as care is not over, whoever had the shard meanwhile.
        let found = taken.suspect.filter(|suspect| taken.checkpoint < suspect.record.into());
        (taken.suspect.is_some() || suspicious).then_some(Self { found, noted: None, came_back: false, waits: None, left: TRIED_ALONE })
    }

    /// What this record needs before it is in work.
    pub(super) fn before(&self, record: ExtendedSequenceNumber, max_deaths: u32) -> Step {
        let deaths = self.deaths_of(record);
        if deaths >= max_deaths {
            Step::GiveUp(deaths)
        } else if self.noted == Some(record) {
            Step::Go
        } else {
            Step::Note(Suspect { record, begun: deaths + 1 })
        }
    }

    fn deaths_of(&self, record: ExtendedSequenceNumber) -> u32 {
        self.found.filter(|found| found.record == record).map_or(0, |found| found.begun)
    }

    /// What is to stand in the lease when the shard is let go in peace: the record noted last, without the attempt that came back.
    pub(super) fn given_back(&self) -> Option<Suspect> {
        self.noted.map(|record| Suspect { record, begun: self.deaths_of(record) })
    }

    /// Notes that the attempt at the record noted last has ended, and the record is not finished.
    pub(super) fn came_back(&mut self) {
        self.came_back = self.noted.is_some();
    }

    /// Returns the note that takes back that of an attempt which has come back: nobody has died of it.
    /// The record is noted anew before its next attempt.
    pub(super) fn take_back(&mut self) -> Option<Suspect> {
        let given_back = self.given_back().filter(|_| std::mem::take(&mut self.came_back))?;
        self.noted = None;
        Some(given_back)
    }

    /// Returns whether this note says that the record is in work, and not that it has come back.
    pub(super) fn is_in_work(&self, note: Suspect) -> bool {
        note.begun > self.deaths_of(note.record)
    }

    /// Notes that a record which was given up has no queue to go to.
    pub(super) fn waits(&mut self, record: ExtendedSequenceNumber) {
        self.waits = Some(record);
    }

    /// Returns whether the record was given up before, in this term, and has waited since.
    pub(super) fn has_waited(&self, record: ExtendedSequenceNumber) -> bool {
        self.waits == Some(record)
    }

    pub(super) fn noted(&mut self, record: ExtendedSequenceNumber) {
        self.noted = Some(record);
    }

    /// A record is finished. Returns whether care is over.
    pub(super) fn finished(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::Checkpoint;

    use super::*;

    fn at(number: u128) -> ExtendedSequenceNumber {
        ExtendedSequenceNumber::whole(number.into())
    }

    fn lease(switches: u64, suspect: Option<(u128, u32)>) -> Lease {
        Lease {
            owner_switches_since_checkpoint: switches,
            suspect: suspect.map(|(number, begun)| Suspect { record: at(number), begun }),
            ..Lease::new("shardId-000000000000".into(), Checkpoint::At(at(5)))
        }
    }

    #[test]
    fn care_begins_when_an_owner_has_died_before_it_got_anywhere() {
        for (switches, suspect, from_the_dead, careful) in [
            (1, None, true, false),  // one death after a checkpoint: that happens
            (2, None, true, true),   // and another one before the next
            (9, None, false, false), // an idle shard that goes from hand to hand
            (1, Some((6, 1)), true, true),
            (1, Some((6, 1)), false, true),
            (1, Some((5, 1)), false, true), // it is finished, and care was not over when the shard was handed over
        ] {
            assert_eq!(
                Careful::judge(&lease(switches, suspect), from_the_dead).is_some(),
                careful,
                "{switches} {suspect:?} {from_the_dead}"
            );
        }
    }

    #[test]
    fn each_record_is_noted_once_a_term_and_given_up_after_its_deaths() {
        let mut careful = Careful::judge(&lease(2, None), true).unwrap();
        assert_eq!(careful.before(at(6), 3), Step::Note(Suspect { record: at(6), begun: 1 }));
        careful.noted(at(6));
        assert_eq!(careful.before(at(6), 3), Step::Go);
        assert_eq!(careful.given_back(), Some(Suspect { record: at(6), begun: 0 }), "let go in peace, nobody has died of it");
        assert_eq!(careful.take_back(), None);
        careful.came_back();
        assert_eq!(careful.take_back(), Some(Suspect { record: at(6), begun: 0 }), "it came back");
        assert_eq!((careful.take_back(), careful.before(at(6), 3)), (None, Step::Note(Suspect { record: at(6), begun: 1 })), "once more");
        careful.noted(at(6));
        assert_eq!(careful.before(at(7), 3), Step::Note(Suspect { record: at(7), begun: 1 }));
        for begun in 1..3 {
            let careful = Careful::judge(&lease(3, Some((6, begun))), true).unwrap();
            assert_eq!(careful.before(at(6), 3), Step::Note(Suspect { record: at(6), begun: begun + 1 }));
            assert_eq!(careful.before(at(7), 3), Step::Note(Suspect { record: at(7), begun: 1 }));
        }
        let finished = Careful::judge(&lease(3, Some((5, 9))), true).unwrap();
        for record in [5, 6] {
            let note = Suspect { record: at(record), begun: 1 };
            assert_eq!(finished.before(at(record), 3), Step::Note(note), "nobody has died of what is finished");
        }
        let careful = Careful::judge(&lease(3, Some((6, 3))), true).unwrap();
        assert_eq!(careful.before(at(6), 3), Step::GiveUp(3));
    }

    #[test]
    fn a_note_says_that_a_record_is_in_work_if_it_counts_an_attempt_more_than_there_were_deaths() {
        let careful = Careful::judge(&lease(3, Some((6, 2))), true).unwrap();
        for (record, begun, in_work) in [(6, 1, false), (6, 2, false), (6, 3, true), (6, 4, true), (7, 0, false), (7, 1, true)] {
            assert_eq!(careful.is_in_work(Suspect { record: at(record), begun }), in_work, "{record} {begun}");
        }
    }

    #[test]
    fn the_record_that_was_given_up_last_is_known_to_wait() {
        let mut careful = Careful::judge(&lease(2, None), true).unwrap();
        assert!(!careful.has_waited(at(6)));
        careful.waits(at(6));
        assert!(careful.has_waited(at(6)) && !careful.has_waited(at(7)));
    }

    #[test]
    fn care_ends_after_what_the_dead_may_have_read() {
        let mut careful = Careful::judge(&lease(2, None), true).unwrap();
        let records = (1..).find(|_| careful.finished()).unwrap();
        assert_eq!(records, TRIED_ALONE);
    }
}
