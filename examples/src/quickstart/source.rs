//! What is published: made-up orders, or the lines of a user's file; with a key each, and one in a thousand chosen to be poison.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{bail, ensure};
use kcl_core::Bytes;
use md5::{Digest as _, Md5};
use serde_json::{Map, Value};

/// Largest record that a stream takes unless it is set to take larger ones: data and partition key, in bytes (AWS limit).
const LARGEST_RECORD: usize = 1 << 20;

/// Longest partition key, in characters (AWS limit).
const LONGEST_KEY: usize = 256;

/// Customers among whom the made-up orders are spread.
const CUSTOMERS: usize = 1000;

/// One record in so many is poison.
const POISON_EVERY: usize = 1000;

/// Records above this size, in bytes, are never chosen to be poison: a dead letter is larger than its record by a third, and SQS queues
/// may take no more than 256 KiB.
const LARGEST_POISON: usize = 128 << 10;

/// One record to publish.
pub struct Event {
    /// Which of [`Source::keys`] it has.
    pub key: u32,
    /// The payload.
    pub data: Bytes,
}

/// All records to publish, in order.
pub struct Source {
    /// The records.
    pub events: Vec<Event>,
    /// The partition keys.
    pub keys: Vec<String>,
    /// Which of the records are poison.
    pub poison: Poison,
    /// Lines that were to be keyed by a field and have no such field, or null in it, or are no JSON objects: keyed by their own hash.
    pub unkeyed: usize,
    /// Empty lines, left out.
    pub empty: usize,
}

impl Source {
    /// Orders of made-up customers. Equal seeds make equal orders.
    #[must_use]
    pub fn made_up(records: usize, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut orders = vec![0_u32; CUSTOMERS.min(records)];
        let mut source = Builder::default();
        for _ in 0..records {
            let customer = rng.usize(..orders.len());
            orders[customer] += 1;
            let (order, cents) = (orders[customer], rng.u32(100..100_000));
            let name = format!("customer-{customer:04}");
            let data = format!(r#"{{"customer":"{name}","order":{order},"amount":{}.{:02}}}"#, cents / 100, cents % 100);
            source.push(name, data.into());
        }
        source.finish(&mut rng)
    }

    /// The lines of a file, keyed by a field of each or by their hash. The data is not copied.
    ///
    /// # Errors
    /// A file without lines, or without any line that has the field; a line that is larger than a
    /// record may be, by its number.
    pub fn lines(content: Bytes, key: Option<&str>, seed: u64) -> anyhow::Result<Self> {
        let mut source = Builder::default();
        for (number, line) in (1_u64..).zip(content.split(|byte| *byte == b'\n')) {
            if line.is_empty() {
                source.empty += 1;
                continue;
            }
            let (partition_key, own) = key_of(line, key);
            source.unkeyed += usize::from(!own);
            let size = line.len() + partition_key.len();
            ensure!(size <= LARGEST_RECORD, "line {number} makes a record of {size} bytes with its key; a stream takes {LARGEST_RECORD}");
            source.push(partition_key, content.slice_ref(line));
        }
        // What follows the last line break is no line.
        source.empty -= usize::from(content.is_empty() || content.ends_with(b"\n"));
        if source.events.is_empty() {
            bail!("it has no lines to publish");
        }
        if let Some(field) = key
            && source.unkeyed == source.events.len()
        {
            bail!("none of its {} lines is a JSON object with a value in the field `{field}` that --key names", source.unkeyed);
        }
        Ok(source.finish(&mut fastrand::Rng::with_seed(seed)))
    }

    /// The key of a record.
    #[must_use]
    pub fn key(&self, event: &Event) -> &str {
        &self.keys[event.key as usize]
    }
}

/// The events are the user's, and many.
impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Source").field("events", &self.events.len()).field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Event").field("bytes", &self.data.len()).finish_non_exhaustive()
    }
}

/// The partition key of a line, and whether it is what was asked for. Without a field to key by: the line's hash.
fn key_of(line: &[u8], field: Option<&str>) -> (String, bool) {
    let Some(field) = field else { return (hash(line), true) };
    let object: Option<Map<String, Value>> = serde_json::from_slice(line).ok();
    let key = match object.as_ref().and_then(|object| value_of(object, field)).cloned() {
        None | Some(Value::Null) => return (hash(line), false),
        Some(Value::String(key)) => key,
        Some(other) => other.to_string(),
    };
    // What Kinesis does not take as a key is replaced by its hash: equal values still are one key, and keep their order.
    let fits = !key.is_empty() && key.chars().count() <= LONGEST_KEY;
    (if fits { key } else { hash(key.as_bytes()) }, true)
}

/// The value of a field: of the one with just this name, or, along the dots in it, of a field in a field.
fn value_of<'a>(object: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    object
        .get(field)
        .or_else(|| field.match_indices('.').find_map(|(dot, _)| value_of(object.get(&field[..dot])?.as_object()?, &field[dot + 1..])))
}

fn hash(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A source that is being put together.
#[derive(Default)]
struct Builder {
    events: Vec<Event>,
    keys: Vec<String>,
    known: BTreeMap<String, u32>,
    unkeyed: usize,
    empty: usize,
}

impl Builder {
    fn push(&mut self, key: String, data: Bytes) {
        let next = u32::try_from(self.keys.len()).expect("a file in memory has fewer lines than u32::MAX");
        let key = *self.known.entry(key).or_insert_with_key(|key| {
            self.keys.push(key.clone());
            next
        });
        self.events.push(Event { key, data });
    }

    fn finish(self, rng: &mut fastrand::Rng) -> Source {
        let Self { events, keys, unkeyed, empty, .. } = self;
        let poison = Poison::choose(&events, &keys, rng);
        Source { events, keys, poison, unkeyed, empty }
    }
}

/// The records that can't be processed, known by what they are: a line of a user's file has no mark on it.
#[derive(Clone, Debug, Default)]
pub struct Poison(BTreeSet<[u8; 16]>);

impl Poison {
    /// One of each thousand records. Only such that the source has once, so that their number is exact.
    fn choose(events: &[Event], keys: &[String], rng: &mut fastrand::Rng) -> Self {
        let fingerprints: Vec<_> = events.iter().map(|event| fingerprint(&keys[event.key as usize], &event.data)).collect();
        let mut copies: BTreeMap<[u8; 16], u32> = BTreeMap::new();
        for fingerprint in &fingerprints {
            *copies.entry(*fingerprint).or_default() += 1;
        }
        let mut chosen = BTreeSet::new();
        for (events, fingerprints) in events.chunks(POISON_EVERY).zip(fingerprints.chunks(POISON_EVERY)) {
            let suits = |at: &usize| copies[&fingerprints[*at]] == 1 && events[*at].data.len() <= LARGEST_POISON;
            // In the last, shorter chunk the place may be beyond the end: then it has none, as is right for so few.
            let place = rng.usize(..POISON_EVERY);
            if place < events.len()
                && let Some(at) = (place..events.len()).chain(0..place).find(suits)
            {
                chosen.insert(fingerprints[at]);
            }
        }
        Self(chosen)
    }

    /// Whether this record is poison.
    #[must_use]
    pub fn contains(&self, key: &str, data: &[u8]) -> bool {
        self.0.contains(&fingerprint(key, data))
    }

    /// How many records are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn fingerprint(key: &str, data: &[u8]) -> [u8; 16] {
    let mut hash = Md5::new();
    // The length in front: no key and data may be taken for others that only join to the same.
    hash.update(key.len().to_be_bytes());
    hash.update(key);
    hash.update(data);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(content: &'static [u8], key: Option<&str>) -> Source {
        Source::lines(Bytes::from_static(content), key, 1).unwrap()
    }

    #[test]
    fn the_seed_decides_what_is_made_up() {
        let made_up = |seed| {
            let source = Source::made_up(5000, seed);
            (source.events.iter().map(|event| event.data.clone()).collect::<Vec<_>>(), source.poison.0)
        };
        assert_eq!(made_up(7), made_up(7));
        assert_ne!(made_up(7), made_up(8));
        assert_eq!(made_up(7).1.len(), 5, "one in a thousand is poison");
    }

    #[test]
    fn made_up_orders_count_up_within_their_key() {
        let source = Source::made_up(3000, 1);
        let mut last: BTreeMap<&str, i64> = BTreeMap::new();
        for event in &source.events {
            let order: Value = serde_json::from_slice(&event.data).unwrap();
            assert_eq!(order["customer"], source.key(event));
            let before = last.insert(source.key(event), order["order"].as_i64().unwrap());
            assert_eq!(before.unwrap_or(0) + 1, last[source.key(event)]);
        }
    }

    #[test]
    fn a_line_is_keyed_by_its_field_or_by_its_hash() {
        let hashed = |line: &str| (hash(line.as_bytes()), false);
        let own = |key: &str| (key.to_owned(), true);
        for (line, key) in [
            (r#"{"a":"x y"}"#, own("x y")),
            (r#" {"b":1,"a":"ż"} "#, own("ż")),
            (r#"{"a":7}"#, own("7")),
            (r#"{"a":true}"#, own("true")),
            (r#"{"a":1.5}"#, own("1.5")),
            (r#"{"a":{"b":[1]}}"#, own(r#"{"b":[1]}"#)),
            (r#"{"a":""}"#, own(&hash(b""))),
            (r#"{"a":null}"#, hashed(r#"{"a":null}"#)),
            (r#"{"b":1}"#, hashed(r#"{"b":1}"#)),
            (r#"["a"]"#, hashed(r#"["a"]"#)),
            ("a", hashed("a")),
            ("{", hashed("{")),
        ] {
            assert_eq!(key_of(line.as_bytes(), Some("a")), key, "{line}");
        }
        let long = "ż".repeat(LONGEST_KEY);
        assert_eq!(key_of(format!(r#"{{"a":"{long}"}}"#).as_bytes(), Some("a")), own(&long));
        assert_eq!(key_of(format!(r#"{{"a":"{long}x"}}"#).as_bytes(), Some("a")), own(&hash(format!("{long}x").as_bytes())));
        assert_eq!(key_of(b"a", None), own(&hash(b"a")));
    }

    #[test]
    fn a_key_may_be_a_field_in_a_field() {
        for (line, key) in [
            (r#"{"customer":{"id":7}}"#, Some("7")),
            (r#"{"customer.id":8,"customer":{"id":7}}"#, Some("8")),
            (r#"{"customer":{"id":{"x":1}}}"#, Some(r#"{"x":1}"#)),
            (r#"{"customer":{"id":null}}"#, None),
            (r#"{"customer":{"name":"x"}}"#, None),
            (r#"{"customer":"x"}"#, None),
            (r#"{"customer":[{"id":7}]}"#, None),
        ] {
            let (found, own) = key_of(line.as_bytes(), Some("customer.id"));
            assert_eq!(own.then_some(found.as_str()), key, "{line}");
        }
        assert_eq!(key_of(br#"{"a.b":{"c":1}}"#, Some("a.b.c")), ("1".to_owned(), true));
        assert_eq!(key_of(br#"{"a":{"b.c":1}}"#, Some("a.b.c")), ("1".to_owned(), true));
    }

    #[test]
    fn a_key_that_no_line_has_is_an_error() {
        let content = "{\"id\":1}\nx\n";
        let error = Source::lines(content.into(), Some("customer.id"), 1).unwrap_err().to_string();
        assert!(error.contains("`customer.id`") && error.contains("--key"), "{error}");
        assert_eq!(Source::lines(content.into(), Some("id"), 1).unwrap().unkeyed, 1);
    }

    #[test]
    fn a_files_bytes_are_published_as_they_are() {
        let source = lines(b"one\n\n\xff\xfe\r\n  \none", None);
        let data: Vec<&[u8]> = source.events.iter().map(|event| event.data.as_ref()).collect();
        assert_eq!(data, [b"one".as_slice(), b"\xff\xfe\r", b"  ", b"one"]);
        assert_eq!((source.empty, source.unkeyed, source.keys.len()), (1, 0, 3));
        assert_eq!(source.events[0].key, source.events[3].key);

        assert_eq!(lines(b"a\nb\n", None).empty, 0);
        assert_eq!(lines(b"a\nb\n\n", None).empty, 1);
        assert_eq!(lines(b"{\"k\":1}\n{}\n{\"k\":null}\n", Some("k")).unkeyed, 2);
    }

    #[test]
    fn a_file_that_can_not_be_published_is_refused() {
        for content in ["", "\n", "\n\n\n"] {
            let error = Source::lines(Bytes::from_static(content.as_bytes()), None, 1).unwrap_err();
            assert_eq!(error.to_string(), "it has no lines to publish");
        }
        let content = format!("short\n{}\n", "x".repeat(LARGEST_RECORD));
        let error = Source::lines(content.into(), None, 1).unwrap_err();
        assert!(error.to_string().starts_with("line 2 makes a record of 1048608 bytes"), "{error}");
    }

    #[test]
    fn poison_is_exact_even_where_lines_repeat() {
        let content: String = (0..4000).map(|line| if line % 4 == 0 { format!("{line}\n") } else { "same\n".into() }).collect();
        let source = Source::lines(content.into(), None, 1).unwrap();
        let poison = source.events.iter().filter(|event| source.poison.contains(source.key(event), &event.data));
        assert_eq!((poison.count(), source.poison.len()), (4, 4));
        let same = Source::lines("same\n".repeat(5000).into(), None, 1).unwrap();
        assert!(same.poison.is_empty());
    }
}
