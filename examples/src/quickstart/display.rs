//! Progress on standard output: redrawn in place in a terminal, plain lines every few seconds elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use kcl_core::{ShardId, ShardState, ShardStatus};
use tokio::time::Instant;

use super::ledger::Counts;

/// How often plain lines are printed where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(3);

/// Most shards that are shown, so that the picture fits into a small terminal.
const MOST_SHARDS: usize = 14;

/// What is to be seen at one moment.
#[derive(Debug)]
pub struct Scene {
    /// Since the run began.
    pub elapsed: Duration,
    /// Records to publish.
    pub total: usize,
    /// How things stand.
    pub counts: Counts,
    /// Workers that run.
    pub workers: usize,
    /// Who has which shard, and how it stands.
    pub owned: BTreeMap<ShardId, (String, ShardStatus)>,
    /// Shards read to their ends.
    pub ended: BTreeSet<ShardId>,
}

/// Standard output.
#[derive(Debug)]
pub struct Display {
    in_place: bool,
    /// Lines of the picture that stands on the terminal, to be drawn over.
    drawn: usize,
    printed: Option<Instant>,
    /// All shards that were ever seen.
    seen: BTreeSet<ShardId>,
}

impl Display {
    /// For what standard output is. Logs on the same terminal would spoil a picture that is drawn over.
    #[must_use]
    pub fn new() -> Self {
        let logs_on_terminal = std::env::var_os("RUST_LOG").is_some() && std::io::stderr().is_terminal();
        Self { in_place: std::io::stdout().is_terminal() && !logs_on_terminal, drawn: 0, printed: None, seen: BTreeSet::new() }
    }

    /// Prints lines that stay.
    pub fn say(&mut self, text: &str) {
        let text = format!("{}{}\n", self.erase(), text.trim_end());
        self.write(&text);
    }

    /// Shows the scene, if it is time to.
    pub fn show(&mut self, scene: &Scene) {
        if !self.in_place && self.printed.is_some_and(|last| last.elapsed() < PLAIN_INTERVAL) {
            return;
        }
        self.show_now(scene);
    }

    /// Shows the scene.
    pub fn show_now(&mut self, scene: &Scene) {
        self.printed = Some(Instant::now());
        self.seen.extend(scene.owned.keys().chain(&scene.ended).cloned());
        // Of plain lines nothing is drawn over: what does not change any more need not be told again and again.
        let lines = render(scene, &self.seen, if self.in_place { MOST_SHARDS } else { 0 });
        let picture: String = lines.iter().map(|line| format!("{line}\n")).collect();
        // Without wrapping (DECAWM off) a line is a line, however narrow the terminal: else going up would miss the first.
        let text = if self.in_place { format!("{}\x1b[?7l{picture}\x1b[?7h", self.erase()) } else { picture };
        self.write(&text);
        self.drawn = if self.in_place { lines.len() } else { 0 };
    }

    /// What takes the picture off the terminal: up to its first line, and all below erased.
    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        }
    }

    fn write(&self, text: &str) {
        // Whoever watched may have closed the pipe: no reason to stop.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

impl Default for Display {
    fn default() -> Self {
        Self::new()
    }
}

/// The scene in lines. Shards that are read to their ends have rows of their own while there is room for so many rows.
fn render(scene: &Scene, seen: &BTreeSet<ShardId>, room_for_ended: usize) -> Vec<String> {
    let Counts { published, delivered, duplicates, dead_lettered, outstanding: _ } = scene.counts;
    let mut lines = vec![
        format!(
            "{:5.1} s  published {}/{}  delivered {}  again {}  dead letters {}  workers {}",
            scene.elapsed.as_secs_f64(),
            thousands(published),
            thousands(scene.total as u64),
            thousands(delivered),
            thousands(duplicates),
            thousands(dead_lettered),
            scene.workers,
        ),
        row("shard", "owner", "state", "records", "position", "lag"),
    ];
    let (ended, live): (Vec<_>, Vec<_>) = seen.iter().partition(|shard| scene.ended.contains(*shard) && !scene.owned.contains_key(*shard));
    let rows_for_ended = room_for_ended.saturating_sub(live.len()).min(ended.len());
    let hidden = ended.len() - rows_for_ended;
    for shard in &ended[hidden..] {
        lines.push(row(shard.as_str(), "-", "read to its end", "", "SHARD_END", ""));
    }
    for shard in live.iter().take(MOST_SHARDS) {
        lines.push(match scene.owned.get(*shard) {
            Some((owner, status)) => {
                let position =
                    status.finished.map_or_else(|| status.checkpoint.to_string(), |position| position.sequence_number.to_string());
                row(shard.as_str(), owner, state(status.state), &thousands(status.records), shortened(&position), &lag(status.lag))
            }
            None => row(shard.as_str(), "nobody", "waits for worker", "", "", ""),
        });
    }
    if live.len() > MOST_SHARDS {
        lines.push(format!(" and {} shards more", live.len() - MOST_SHARDS));
    }
    if hidden > 0 {
        lines.push(format!(" and {hidden} shards that are read to their ends"));
    }
    lines
}

fn row(shard: &str, owner: &str, state: &str, records: &str, position: &str, lag: &str) -> String {
    format!(" {shard:<20} {owner:<10}{state:<17}{records:>9}  {position:<12}{lag:>8}").trim_end().to_owned()
}

fn state(state: ShardState) -> &'static str {
    match state {
        ShardState::Starting => "starting",
        ShardState::Processing => "processing",
        ShardState::Retrying => "retrying",
        ShardState::WaitingForDeadLetterQueue => "waits for queue",
        ShardState::BlockedByRecord => "blocked by record",
        ShardState::BlockedByTrimmedRecords => "records trimmed",
        ShardState::ReadFailing => "can't read",
        ShardState::Suspended => "suspended",
        ShardState::Ending => "ending",
        ShardState::LettingGo => "letting go",
        _ => "other",
    }
}

/// Those of a sequence number's 56 digits that count: before them stands what is the same in the whole stream, after them a time and
/// the shard.
fn shortened(position: &str) -> &str {
    if position.len() == 56 { &position[20..32] } else { position }
}

fn lag(lag: Option<Duration>) -> String {
    match lag {
        None => "-".to_owned(),
        Some(lag) if lag < Duration::from_secs(1) => format!("{} ms", lag.as_millis()),
        Some(lag) => format!("{:.1} s", lag.as_secs_f64()),
    }
}

/// A count with commas.
#[must_use]
pub fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use kcl_core::{ExtendedSequenceNumber, SequenceNumber};

    use super::*;

    fn status(finished: Option<SequenceNumber>) -> ShardStatus {
        ShardStatus {
            finished: finished.map(ExtendedSequenceNumber::whole),
            lag: Some(Duration::from_millis(1234)),
            records: 5678,
            ..ShardStatus::in_state(ShardState::Processing)
        }
    }

    fn shard(number: u32) -> ShardId {
        ShardId::from(format!("shardId-{number:012}"))
    }

    #[test]
    fn each_shard_has_its_row() {
        let counts = Counts { published: 12_345, delivered: 12_000, duplicates: 17, dead_lettered: 12, outstanding: 333 };
        let position = "49601189658422359378836298521827638475320189012309704722".parse().unwrap();
        let owned = BTreeMap::from([
            (shard(0), ("worker-1".to_owned(), status(Some(position)))),
            (shard(3), ("worker-2".to_owned(), status(None))),
        ]);
        let ended = BTreeSet::from([shard(1)]);
        let seen = (0..4).map(shard).collect();
        let scene = Scene { elapsed: Duration::from_millis(12_345), total: 20_000, counts, workers: 2, owned, ended };
        assert_eq!(
            render(&scene, &seen, MOST_SHARDS),
            [
                " 12.3 s  published 12,345/20,000  delivered 12,000  again 17  dead letters 12  workers 2",
                " shard                owner     state              records  position         lag",
                " shardId-000000000001 -         read to its end             SHARD_END",
                " shardId-000000000000 worker-1  processing           5,678  836298521827   1.2 s",
                " shardId-000000000002 nobody    waits for worker",
                " shardId-000000000003 worker-2  processing           5,678  TRIM_HORIZON   1.2 s",
            ]
        );
        let plain = render(&scene, &seen, 0);
        assert_eq!((plain.len(), plain.last().unwrap().as_str()), (6, " and 1 shards that are read to their ends"));
    }

    #[test]
    fn many_shards_do_not_outgrow_the_terminal() {
        let seen: BTreeSet<_> = (0..100).map(shard).collect();
        let scene = |ended: std::ops::Range<u32>| {
            let owned = (ended.end..100).map(|number| (shard(number), ("worker-1".to_owned(), status(None)))).collect();
            let ended = ended.map(shard).collect();
            render(&Scene { elapsed: Duration::ZERO, total: 1, counts: Counts::default(), workers: 1, owned, ended }, &seen, MOST_SHARDS)
        };
        let lines = scene(0..95);
        assert_eq!(lines.len(), 2 + MOST_SHARDS + 1);
        assert_eq!(lines.iter().filter(|line| line.contains("worker-1")).count(), 5, "{lines:#?}");
        assert_eq!(lines.last().unwrap(), " and 86 shards that are read to their ends");
        let lines = scene(0..20);
        assert_eq!(lines.len(), 2 + MOST_SHARDS + 2);
        assert_eq!(lines[lines.len() - 2..], [" and 66 shards more", " and 20 shards that are read to their ends"]);
    }

    #[test]
    fn counts_are_easy_to_read() {
        let shown = [0, 999, 1000, 12_345, 1_234_567].map(thousands);
        assert_eq!(shown, ["0", "999", "1,000", "12,345", "1,234,567"]);
    }
}
