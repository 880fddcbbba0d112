//! The budgets: calls in a time, and bytes held.

use std::collections::BTreeMap;
use std::time::Duration;

/// Calls are counted in spans of this length.
const SPAN: Duration = Duration::from_secs(10);

/// What is counted, per process, operation and shard: when the span began, and the calls in it.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// Processors checkpoint for themselves, as often as they like.
    by_hand: bool,
    calls: BTreeMap<(String, &'static str, String), (Duration, u32)>,
    /// Leases that each process holds, and the most it held at once.
    held: BTreeMap<String, (usize, usize)>,
}

impl Limits {
    pub(super) fn new(by_hand: bool) -> Self {
        Self { by_hand, ..Self::default() }
    }

    /// Counts a call. A message: it was one too many.
    pub(super) fn sent(&mut self, host: &str, operation: &'static str, shard: &str, now: Duration) -> Option<String> {
        if self.calls.len() > 20_000 {
            self.calls.retain(|_, (began, _)| *began + SPAN > now);
        }
        let (began, calls) = self.calls.entry((host.to_owned(), operation, shard.to_owned())).or_insert((now, 0));
        if *began + SPAN <= now {
            (*began, *calls) = (now, 0);
        }
        *calls += 1;
        let most = most_in_span(operation);
        // Commits are made as often as users like.
        if operation == "dynamodb:TransactWriteItems" || (self.by_hand && operation == "dynamodb:UpdateItem") {
            return None;
        }
        (*calls > most).then(|| format!("{host} called {operation} {shard} {calls} times within {SPAN:?}, at most {most} are right"))
    }

    /// A call went through that is made for each record: no budget is for it and the three repetitions that it may have taken.
    pub(super) fn excuse(&mut self, host: &str, operation: &'static str, shard: &str) {
        if let Some((_, calls)) = self.calls.get_mut(&(host.to_owned(), operation, shard.to_owned())) {
            *calls = calls.saturating_sub(4);
        }
    }

    pub(super) fn holds(&mut self, host: &str, takes: bool) {
        let (now, most) = self.held.entry(host.to_owned()).or_default();
        *now = if takes { *now + 1 } else { now.saturating_sub(1) };
        *most = (*most).max(*now);
    }

    /// The most leases that a process held at once.
    pub(super) fn most_held(&self, host: &str) -> usize {
        self.held.get(host).map_or(0, |(_, most)| *most)
    }
}

/// The service's limit where it has one, and else what no reasonable pace exceeds, whatever goes wrong.
fn most_in_span(operation: &str) -> u32 {
    match operation {
        // Five a second and shard; a term that begins within the span reads anew.
        "kinesis:GetRecords" => 52,
        // One a second and shard.
        "kinesis:SubscribeToShard" => 11,
        // A round at once whenever something may have changed.
        "dynamodb:Scan" => 100,
        // Looking after a lease that is to be handed over: four a second.
        "dynamodb:GetItem" => 60,
        _ => 50,
    }
}
