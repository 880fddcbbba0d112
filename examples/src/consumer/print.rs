//! Records on standard output, one JSON object per line.
//!
//! A batch is written before it is acknowledged. Each write tells how many lines it brought out whole, and a line that broke off is
//! completed first by the next write, so that whatever fails in between, every line is a whole one.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kcl_core::{Record, ShardId};
use serde::Serialize;
use tokio::sync::{Mutex, Notify};

use crate::flags::UsageError;

/// A record's line.
#[derive(Serialize)]
struct Line<'a> {
    shard_id: &'a str,
    sequence_number: String,
    sub_sequence_number: u64,
    partition_key: Option<&'a str>,
    data: String,
}

/// Prints batches, one at a time. Clones print to the same place.
#[derive(Clone, Debug)]
pub(super) struct Printer {
    sink: Arc<Mutex<Sink<Output>>>,
    closed: Arc<Closed>,
}

#[derive(Debug, Default)]
struct Closed {
    is: AtomicBool,
    now: Notify,
}

/// A batch was not printed to its end.
#[derive(Debug)]
pub(super) struct Unprinted {
    /// Lines that are out.
    pub(super) complete: usize,
    /// Why the next one is not.
    pub(super) error: io::Error,
}

impl Printer {
    /// # Errors
    /// If there is no standard output, or it can't be written to: records would be dropped unseen.
    pub(super) fn to_standard_output() -> Result<Self, UsageError> {
        let refused = |error: io::Error| UsageError::new("--print", Some("KCL_PRINT"), format_args!("can't print: {error}"));
        let output = standard_output().and_then(|output| usable(&output).map(|()| output)).map_err(refused)?;
        Ok(Self { sink: Arc::new(Mutex::new(Sink::new(output))), closed: Arc::default() })
    }

    /// Prints records of a shard. When it returns, the operating system has them all.
    pub(super) async fn print(&self, shard: &ShardId, records: &[Record]) -> Result<(), Unprinted> {
        let lines = Lines::of(shard, records);
        let mut sink = Arc::clone(&self.sink).lock_owned().await;
        // Off the runtime: a reader that is slow makes writes wait, and leases must be renewed meanwhile.
        let written = tokio::task::spawn_blocking(move || sink.write(&lines)).await;
        let written = written.unwrap_or_else(|error| Err(Unprinted { complete: 0, error: io::Error::other(error) }));
        written.inspect_err(|unprinted| {
            if unprinted.error.kind() == io::ErrorKind::BrokenPipe {
                self.closed.is.store(true, Ordering::SeqCst);
                self.closed.now.notify_one();
            }
        })
    }

    /// Completes when the reader has closed its end.
    pub(super) async fn closed(&self) {
        self.closed.now.notified().await;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is.load(Ordering::SeqCst)
    }
}

/// Standard output without the buffer that `io::stdout` puts before it: what is written is then known exactly.
#[cfg(unix)]
type Output = std::fs::File;
#[cfg(not(unix))]
type Output = io::Stdout;

#[cfg(unix)]
fn standard_output() -> io::Result<Output> {
    use std::os::fd::AsFd as _;
    Ok(std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

#[cfg(not(unix))]
fn standard_output() -> io::Result<Output> {
    Ok(io::stdout())
}

/// Refuses a standard output that takes nothing, where that can be found out (Linux).
///
/// A descriptor that is closed when a program starts is opened again by Rust's runtime, as /dev/null for
/// reading and writing. A redirection to /dev/null opens it for writing alone.
#[cfg(target_os = "linux")]
fn usable(output: &Output) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::MetadataExt as _;
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", output.as_raw_fd())).unwrap_or_default();
    let is_null = || Ok::<_, io::Error>(output.metadata()?.rdev() == std::fs::metadata("/dev/null")?.rdev());
    match access(&about) {
        Some(Access::Read) => Err(io::Error::other("standard output is not open for writing")),
        Some(Access::Both) if is_null().unwrap_or(false) => {
            Err(io::Error::other("standard output is closed; to drop what is printed, redirect it: > /dev/null"))
        }
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn usable(_: &Output) -> io::Result<()> {
    Ok(())
}

/// The access that a descriptor was opened with.
#[cfg(target_os = "linux")]
#[derive(Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Both,
}

/// Reads what the kernel says about a descriptor: `flags`, in octal (proc(5)).
#[cfg(target_os = "linux")]
fn access(about: &str) -> Option<Access> {
    let flags = about.lines().find_map(|line| line.strip_prefix("flags:"))?;
    match u64::from_str_radix(flags.trim(), 8).ok()? & 3 {
        0 => Some(Access::Read),
        1 => Some(Access::Write),
        2 => Some(Access::Both),
        _ => None,
    }
}

/// Lines to be written, with the place where each ends.
struct Lines {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Lines {
    fn of(shard: &ShardId, records: &[Record]) -> Self {
        let mut lines = Self { bytes: Vec::new(), ends: Vec::with_capacity(records.len()) };
        for record in records {
            let line = Line {
                shard_id: shard.as_str(),
                sequence_number: record.sequence_number().to_string(),
                sub_sequence_number: record.sub_sequence_number(),
                partition_key: record.partition_key(),
                data: STANDARD.encode(record.data()),
            };
            serde_json::to_writer(&mut lines.bytes, &line).expect("invariant: strings and numbers are JSON, and memory takes them");
            lines.bytes.push(b'\n');
            lines.ends.push(lines.bytes.len());
        }
        lines
    }
}

/// Where lines go.
#[derive(Debug)]
struct Sink<W> {
    to: W,
    /// The rest of a line that broke off.
    broken_off: Vec<u8>,
}

impl<W: Write> Sink<W> {
    fn new(to: W) -> Self {
        Self { to, broken_off: Vec::new() }
    }

    fn write(&mut self, lines: &Lines) -> Result<(), Unprinted> {
        let (written, result) = write_all(&mut self.to, &self.broken_off);
        self.broken_off.drain(..written);
        result.map_err(|error| Unprinted { complete: 0, error })?;
        let (written, result) = write_all(&mut self.to, &lines.bytes);
        result.and_then(|()| self.to.flush()).map_err(|error| {
            let complete = lines.ends.partition_point(|end| *end <= written);
            let begun = complete.checked_sub(1).map_or(0, |last| lines.ends[last]);
            if written > begun {
                self.broken_off = lines.bytes[written..lines.ends[complete]].to_vec();
            }
            Unprinted { complete, error }
        })
    }
}

/// As [`Write::write_all`], but tells how much was written.
fn write_all(to: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match to.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

#[cfg(test)]
mod tests {
    use kcl_core::Bytes;

    use super::*;

    fn record(number: u128, key: Option<&str>) -> Record {
        Record::new(number.into(), key.map(str::to_owned), Bytes::from_static(b"\x00hi\xff"), None)
    }

    /// Takes this many bytes and then refuses, until it is given more room.
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room).min(7);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.bytes.extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_kernel_says_what_a_descriptor_is_open_for() {
        for (about, expected) in [
            ("pos:\t0\nflags:\t0100000\nmnt_id:\t26\n", Some(Access::Read)),
            ("pos:\t0\nflags:\t0100001\nmnt_id:\t26\n", Some(Access::Write)),
            ("pos:\t0\nflags:\t02100002\nmnt_id:\t26\n", Some(Access::Both)),
            ("pos:\t0\n", None),
            ("flags:\tx\n", None),
        ] {
            assert_eq!(access(about), expected, "{about:?}");
        }
    }

    #[test]
    fn a_line_has_these_fields() {
        let lines = Lines::of(&ShardId::from("shardId-000000000001"), &[record(u128::MAX, Some("k\"\n")), record(2, None)]);
        let expected = concat!(
            r#"{"shard_id":"shardId-000000000001","sequence_number":"340282366920938463463374607431768211455","#,
            r#""sub_sequence_number":0,"partition_key":"k\"\n","data":"AGhp/w=="}"#,
            "\n",
            r#"{"shard_id":"shardId-000000000001","sequence_number":"2","sub_sequence_number":0,"partition_key":null,"data":"AGhp/w=="}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(lines.bytes).unwrap(), expected);
    }

    #[test]
    fn wherever_a_write_breaks_off_every_line_is_whole_and_none_is_missing() {
        let shard = ShardId::from("shardId-000000000000");
        let records: Vec<_> = (1..=3).map(|number| record(number, Some("key"))).collect();
        let whole = Lines::of(&shard, &records);
        for room in 0..whole.bytes.len() {
            let mut sink = Sink::new(Disk { bytes: Vec::new(), room });
            let Unprinted { complete, error } = sink.write(&whole).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(complete, sink.to.bytes.iter().filter(|byte| **byte == b'\n').count());
            assert_eq!(sink.write(&whole).unwrap_err().complete, 0, "still full");

            sink.to.room = usize::MAX;
            sink.write(&Lines::of(&shard, &records[complete..])).unwrap();
            let text = String::from_utf8(sink.to.bytes).unwrap();
            let numbers: Vec<String> = text
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["sequence_number"].as_str().unwrap().to_owned())
                .collect();
            let mut once = numbers.clone();
            once.dedup();
            assert_eq!(once, ["1", "2", "3"], "room {room}: {numbers:?}");
            assert!(numbers.len() <= 4, "only the line that broke off comes twice: {numbers:?}");
        }
    }
}
