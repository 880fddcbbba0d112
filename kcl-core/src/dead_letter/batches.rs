//! Which letters go into which call: a plan made of sizes and groups, without anything sent.
//!
//! A call carries so many entries and so many bytes. Where order is to be kept within a group, a call holds one letter of each group at most,
//! and the next one of the group goes only when the one before it has been accepted: of two in one call the service could take the second and
//! refuse the first, and the first, sent again, would come after it.

use std::collections::BTreeSet;

/// What one call of a service carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

/// What became of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Settled<E> {
    Accepted,
    Refused(E),
    /// Not tried: an earlier one of its group was not accepted.
    HeldBack,
}

/// A letter to be sent: its size, and the group whose order is to be kept.
#[derive(Clone, Debug)]
pub(super) struct Item<'a> {
    pub(super) bytes: usize,
    pub(super) group: Option<&'a str>,
}

/// Letters on their way, in their order.
#[derive(Debug)]
pub(super) struct Plan<'a, E> {
    limits: Limits,
    items: Vec<Item<'a>>,
    settled: Vec<Option<Settled<E>>>,
}

impl<'a, E> Plan<'a, E> {
    /// Each item is within the limits of a call; what is not has been refused already.
    pub(super) fn new(limits: Limits, items: Vec<Item<'a>>) -> Self {
        let settled = items.iter().map(|_| None).collect();
        Self { limits, items, settled }
    }

    /// Says what became of a letter. Those of its group behind one that was refused are held back.
    pub(super) fn settle(&mut self, at: usize, result: Result<(), E>) {
        let refused = result.is_err();
        self.settled[at] = Some(result.map_or_else(Settled::Refused, |()| Settled::Accepted));
        let group = self.items[at].group;
        if refused && group.is_some() {
            for later in at + 1..self.items.len() {
                if self.items[later].group == group && self.settled[later].is_none() {
                    self.settled[later] = Some(Settled::HeldBack);
                }
            }
        }
    }

    /// The next calls, which may be under way at the same time; none when all letters are settled. Each letter of them is to be settled before
    /// the next round.
    pub(super) fn next_round(&self) -> Vec<Vec<usize>> {
        let mut groups = BTreeSet::new();
        let first_of_its_group = |at: &usize| self.items[*at].group.is_none_or(|group| groups.insert(group));
        let open = (0..self.items.len()).filter(|at| self.settled[*at].is_none()).filter(first_of_its_group);
        let (mut calls, mut bytes) = (Vec::<Vec<usize>>::new(), 0);
        for at in open {
            let size = self.items[at].bytes;
            match calls.last_mut() {
                Some(call) if call.len() < self.limits.entries && bytes + size <= self.limits.bytes => {
                    call.push(at);
                    bytes += size;
                }
                _ => {
                    calls.push(vec![at]);
                    bytes = size;
                }
            }
        }
        calls
    }

    /// What became of each letter, in their order. All are settled.
    pub(super) fn into_settled(self) -> impl Iterator<Item = Settled<E>> {
        self.settled.into_iter().map(|settled| settled.unwrap_or(Settled::HeldBack))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { entries: 3, bytes: 10 };

    fn plan<'a>(items: &[(usize, Option<&'a str>)]) -> Plan<'a, &'static str> {
        Plan::new(LIMITS, items.iter().map(|(bytes, group)| Item { bytes: *bytes, group: *group }).collect())
    }

    #[test]
    fn without_order_all_goes_at_once_in_as_few_calls_as_limits_allow() {
        for (sizes, expected) in [
            (vec![], vec![]),
            (vec![10], vec![vec![0]]),
            (vec![1, 1, 1], vec![vec![0, 1, 2]]),
            (vec![1, 1, 1, 1], vec![vec![0, 1, 2], vec![3]]),
            (vec![5, 5, 1], vec![vec![0, 1], vec![2]]),
            (vec![5, 6, 4], vec![vec![0], vec![1, 2]]),
            (vec![10, 10], vec![vec![0], vec![1]]),
            (vec![0, 0, 10], vec![vec![0, 1, 2]]),
        ] {
            let items: Vec<_> = sizes.iter().map(|bytes| (*bytes, None)).collect();
            assert_eq!(plan(&items).next_round(), expected, "{sizes:?}");
        }
    }

    #[test]
    fn the_next_of_a_group_goes_when_the_one_before_it_is_accepted() {
        let mut plan = plan(&[(1, Some("a")), (1, Some("a")), (1, Some("b")), (1, Some("a")), (1, Some("b"))]);
        assert_eq!(plan.next_round(), [[0, 2]]);
        plan.settle(0, Ok(()));
        plan.settle(2, Err("no"));
        assert_eq!(plan.next_round(), [[1]]);
        plan.settle(1, Ok(()));
        assert_eq!(plan.next_round(), [[3]]);
        plan.settle(3, Err("no"));
        assert!(plan.next_round().is_empty());
        use Settled::{Accepted, HeldBack, Refused};
        assert_eq!(plan.into_settled().collect::<Vec<_>>(), [Accepted, Accepted, Refused("no"), Refused("no"), HeldBack]);
    }

    #[test]
    fn a_letter_refused_beforehand_holds_back_its_group() {
        let mut plan = plan(&[(99, Some("a")), (1, Some("a")), (1, Some("b"))]);
        plan.settle(0, Err("too large"));
        assert_eq!(plan.next_round(), [[2]]);
    }

    proptest! {
        #[test]
        fn whatever_fails_limits_and_order_hold_and_all_are_settled(
            items in prop::collection::vec((0_usize..=10, prop::option::of(0_usize..3)), 0..20),
            fates in prop::collection::vec(any::<bool>(), 20),
        ) {
            let names = ["a", "b", "c"];
            let items: Vec<_> = items.into_iter().map(|(bytes, group)| (bytes, group.map(|group| names[group]))).collect();
            let mut plan = plan(&items);
            let mut accepted: Vec<usize> = Vec::new();
            loop {
                let round = plan.next_round();
                if round.is_empty() {
                    break;
                }
                let mut groups = BTreeSet::new();
                for call in &round {
                    prop_assert!((1..=LIMITS.entries).contains(&call.len()));
                    prop_assert!(call.iter().map(|at| items[*at].0).sum::<usize>() <= LIMITS.bytes);
                }
                for at in round.into_iter().flatten() {
                    if let Some(group) = items[at].1 {
                        prop_assert!(groups.insert(group), "one of a group at a time");
                        let before: Vec<_> = (0..at).filter(|before| items[*before].1 == Some(group)).collect();
                        prop_assert!(before.iter().all(|before| accepted.contains(before)));
                    }
                    plan.settle(at, fates[at].then_some(()).ok_or("no"));
                    accepted.extend(fates[at].then_some(at));
                }
            }
            prop_assert_eq!(plan.into_settled().filter(|settled| *settled == Settled::Accepted).count(), accepted.len());
        }
    }
}
