//! Records on their way to the dead-letter queue: in order, in batches, one batch at a time, until each is accepted.

use std::collections::VecDeque;

use kcl_checkpoint::ExtendedSequenceNumber;
use kcl_checkpoint::planted::{Bug, is_planted};

use super::schedule::GroupKey;
use crate::dead_letter::{DeadLetter, DeadLetterError, FailureKind, LARGEST_BATCH};

/// A record that waits to be accepted.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) letter: DeadLetter,
    /// The group that waits for it, if one does.
    pub(super) waiting: Option<GroupKey>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<Outgoing>,
    /// So many of the first are under way.
    sent: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, outgoing: Outgoing) {
        self.queue.push_back(outgoing);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Records on their way for which none of the later ones waits.
    pub(super) fn passed(&self) -> usize {
        self.queue.iter().filter(|outgoing| outgoing.waiting.is_none()).count()
    }

    /// The oldest record that is on its way.
    pub(super) fn oldest(&self) -> Option<ExtendedSequenceNumber> {
        self.queue.iter().map(|outgoing| outgoing.letter.record.position()).min()
    }

    /// Whether all of it is made anew when the shard is read anew, and no attempt is under way: broken aggregates, for which no call is needed.
    pub(super) fn is_made_anew(&self) -> bool {
        self.sent == 0 && self.queue.iter().all(|outgoing| outgoing.letter.kind == FailureKind::BrokenAggregate)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The letters of the next attempt, at most so many; empty if there is none to send, or an attempt is under way.
    pub(super) fn next_batch(&mut self, most: usize) -> Vec<DeadLetter> {
        if self.sent > 0 {
            return Vec::new();
        }
        self.sent = self.queue.len().min(LARGEST_BATCH).min(most);
        self.queue.iter().take(self.sent).map(|outgoing| outgoing.letter.clone()).collect()
    }

    /// The answers to the attempt that is under way. What was not accepted keeps its place; the first reason is given. An answer that is missing is a
    /// refusal.
    pub(super) fn answered(&mut self, answers: Vec<Result<(), DeadLetterError>>) -> (Vec<Outgoing>, Option<DeadLetterError>) {
        let (mut accepted, mut refused, mut reason) = (Vec::new(), Vec::new(), None);
        let answers = if is_planted(Bug::FirstAnswerForAll) { vec![answers[0].clone(); answers.len()] } else { answers };
        let mut answers = answers.into_iter();
        for outgoing in self.queue.drain(..std::mem::take(&mut self.sent)) {
            match answers.next() {
                Some(Ok(())) => accepted.push(outgoing),
                Some(Err(error)) => {
                    reason.get_or_insert(error);
                    refused.push(outgoing);
                }
                None => {
                    let message = "it gave no answer for this record".to_owned();
                    reason.get_or_insert(DeadLetterError::Unavailable { queue: String::new(), message });
                    refused.push(outgoing);
                }
            }
        }
        for outgoing in refused.into_iter().rev() {
            self.queue.push_front(outgoing);
        }
        (accepted, reason)
    }

    /// The attempt under way is given up: whether it was accepted is not known, so it is made again.
    pub(super) fn give_up_attempt(&mut self) {
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::tests::letter;

    fn outbox(count: usize) -> Outbox {
        let mut outbox = Outbox::default();
        for attempts in 0..u32::try_from(count).unwrap() {
            outbox.push(Outgoing { letter: DeadLetter { attempts, ..letter() }, waiting: None });
        }
        outbox
    }

    fn numbers(letters: &[DeadLetter]) -> Vec<u32> {
        letters.iter().map(|letter| letter.attempts).collect()
    }

    fn refused() -> Result<(), DeadLetterError> {
        Err(DeadLetterError::Unavailable { queue: "q".into(), message: "down".into() })
    }

    #[test]
    fn what_is_refused_keeps_its_place_and_is_sent_again() {
        let mut outbox = outbox(12);
        assert_eq!(numbers(&outbox.next_batch(usize::MAX)), (0..10).collect::<Vec<_>>());
        assert!(outbox.next_batch(usize::MAX).is_empty(), "one attempt at a time");
        let answers = (0..10).map(|n| if n == 3 || n == 7 { refused() } else { Ok(()) }).collect();
        let (accepted, reason) = outbox.answered(answers);
        assert_eq!(accepted.iter().map(|o| o.letter.attempts).collect::<Vec<_>>(), [0, 1, 2, 4, 5, 6, 8, 9]);
        assert!(reason.is_some());
        assert_eq!(numbers(&outbox.next_batch(usize::MAX)), [3, 7, 10, 11]);
    }

    #[test]
    fn an_answer_that_is_missing_is_no_acceptance() {
        let mut outbox = outbox(2);
        outbox.next_batch(usize::MAX);
        let (accepted, reason) = outbox.answered(vec![Ok(())]);
        assert_eq!((accepted.len(), reason.is_some()), (1, true));
        assert_eq!(numbers(&outbox.next_batch(usize::MAX)), [1]);
    }

    #[test]
    fn no_more_are_sent_than_may_be() {
        let mut outbox = outbox(5);
        assert_eq!(outbox.next_batch(2).len(), 2);
        outbox.give_up_attempt();
        assert_eq!(outbox.next_batch(0).len(), 0);
        assert_eq!(outbox.next_batch(9).len(), 5);
    }
}
