//! What is finished beyond the checkpoint: a bounded note, kept with the lease, so that a restart need not repeat it.
//!
//! Records finish out of order: lanes run beside each other, and neighbours of a record that fails go on. The checkpoint stands before the first one
//! that is not finished. This says up to where all others are, and which are not: by address, so that it stays true whatever is
//! read or configured later. It only ever spares repetition. A checkpoint below the one that it was made with was put back on
//! purpose, and makes it void.

use ethnum::U256;

use crate::planted::{Bug, is_planted};
use crate::position::Checkpoint;
use crate::sequence_number::{ExtendedSequenceNumber, SequenceNumber};

/// The most unfinished records that are noted: with each some 20 bytes, a lease stays below a kilobyte, which is what DynamoDB charges by.
pub const MOST_OPEN: usize = 20;

/// The form that [`FinishedBeyond::encode`] writes.
const VERSION: u8 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedBeyond {
    /// The checkpoint that it was written with; `None`: that named no record.
    pub base: Option<ExtendedSequenceNumber>,
    /// All records from the checkpoint up to this one are finished ...
    pub until: ExtendedSequenceNumber,
    /// ... but for these, in order.
    pub open: Vec<ExtendedSequenceNumber>,
}

/// The bytes are none that [`FinishedBeyond::encode`] has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no note of finished records in a form that this version reads")]
pub struct UnreadableNote;

impl FinishedBeyond {
    /// Whether this and another note say the same of records.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.until == other.until && self.open == other.open
    }

    /// Whether it says anything about a lease with this checkpoint.
    #[must_use]
    pub fn is_valid_for(&self, checkpoint: Checkpoint) -> bool {
        match self.base {
            None => true,
            Some(base) => checkpoint >= Checkpoint::At(base),
        }
    }

    /// Whether this record, which is beyond the checkpoint, is finished. `aggregated`: it is one of several under its sequence number.
    ///
    /// In doubt it is not: one that was a record of its own when the note was made, and is taken for a part of an aggregate now, or the other way round.
    #[must_use]
    pub fn covers(&self, record: ExtendedSequenceNumber, aggregated: bool) -> bool {
        if is_planted(Bug::OpenRecordsForgotten) {
            return record <= self.until;
        }
        let of_the_same = |open: &&ExtendedSequenceNumber| open.sequence_number == record.sequence_number;
        if is_planted(Bug::NoteBySequenceNumber) {
            return record.sequence_number <= self.until.sequence_number && !self.open.contains(&record);
        }
        if aggregated {
            record <= self.until && !self.open.iter().filter(of_the_same).any(|open| *open == record || open.sub_sequence_number == 0)
        } else {
            let is_before = record.sequence_number < self.until.sequence_number || record == self.until;
            is_before && !self.open.iter().any(|open| of_the_same(&open))
        }
    }

    /// Its bytes, as they are kept with the lease.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, u8::from(self.base.is_some())];
        let mut last = U256::ZERO;
        for record in self.base.iter().chain(&self.open).chain([&self.until]) {
            let (high, low) = record.sequence_number.into_words();
            let number = U256::from_words(high, low);
            // They ascend; a number would wrap only if they did not, and come out the same.
            put(&mut bytes, number.wrapping_sub(last));
            put(&mut bytes, U256::from(record.sub_sequence_number));
            last = number;
        }
        bytes
    }

    /// Reads what [`encode`](Self::encode) has written.
    ///
    /// # Errors
    /// [`UnreadableNote`]: another version's, or not ours.
    pub fn decode(bytes: &[u8]) -> Result<Self, UnreadableNote> {
        let [VERSION, has_base @ (0 | 1), rest @ ..] = bytes else { return Err(UnreadableNote) };
        let (mut rest, mut records, mut last) = (rest, Vec::new(), U256::ZERO);
        while !rest.is_empty() {
            let number = last.wrapping_add(take(&mut rest)?);
            let sub_sequence_number = u64::try_from(take(&mut rest)?).map_err(|_| UnreadableNote)?;
            let (high, low) = number.into_words();
            records.push(ExtendedSequenceNumber::new(SequenceNumber::from_words(high, low), sub_sequence_number));
            last = number;
        }
        let until = records.pop().ok_or(UnreadableNote)?;
        let base = if *has_base == 1 && !records.is_empty() { Some(records.remove(0)) } else { None };
        if u8::from(base.is_some()) != *has_base {
            return Err(UnreadableNote);
        }
        Ok(Self { base, until, open: records })
    }
}

/// Seven bits to a byte, the lowest first; the last byte has its highest bit clear.
fn put(bytes: &mut Vec<u8>, mut number: U256) {
    loop {
        let low = number.as_u8() & 0x7f;
        number >>= 7;
        if number == U256::ZERO {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

fn take(bytes: &mut &[u8]) -> Result<U256, UnreadableNote> {
    let mut number = U256::ZERO;
    for shift in (0..256).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(UnreadableNote)?;
        *bytes = rest;
        number |= U256::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(UnreadableNote)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(number: u128, sub: u64) -> ExtendedSequenceNumber {
        ExtendedSequenceNumber::new(number.into(), sub)
    }

    fn note(base: Option<u128>, until: ExtendedSequenceNumber, open: &[ExtendedSequenceNumber]) -> FinishedBeyond {
        FinishedBeyond { base: base.map(|base| at(base, 0)), until, open: open.to_vec() }
    }

    #[test]
    fn all_up_to_the_end_is_finished_but_for_what_is_open() {
        let note = note(Some(5), at(20, 0), &[at(6, 0), at(9, 3)]);
        for (record, aggregated, finished) in [
            (at(6, 0), false, false),
            (at(7, 0), false, true),
            (at(20, 0), false, true),
            (at(21, 0), false, false),
            (at(9, 2), true, true),
            (at(9, 3), true, false),
            (at(9, 4), true, true),
            (at(9, 0), true, true),
            (at(9, 0), false, false), // was an aggregate then: not all of it is finished
            (at(6, 4), true, false),  // was a record of its own then
            (at(20, 1), true, false), // the end was a record of its own then
        ] {
            assert_eq!(note.covers(record, aggregated), finished, "{record} {aggregated}");
        }
        let inside = FinishedBeyond { until: at(20, 4), ..note };
        assert!(inside.covers(at(20, 4), true) && !inside.covers(at(20, 5), true) && !inside.covers(at(20, 0), false));
    }

    #[test]
    fn two_notes_say_the_same_whatever_checkpoint_they_were_made_with() {
        let first = note(Some(5), at(20, 0), &[at(6, 0)]);
        for (other, same) in [
            (note(Some(5), at(20, 0), &[at(6, 0)]), true),
            (note(None, at(20, 0), &[at(6, 0)]), true),
            (note(Some(5), at(20, 1), &[at(6, 0)]), false),
            (note(Some(5), at(20, 0), &[at(7, 0)]), false),
            (note(Some(5), at(21, 0), &[]), false),
        ] {
            assert_eq!(first.says_the_same(&other), same, "{other:?}");
        }
    }

    #[test]
    fn a_checkpoint_that_was_put_back_makes_it_void() {
        let beyond = note(Some(5), at(20, 0), &[at(6, 0)]);
        for (checkpoint, valid) in [
            (Checkpoint::At(at(5, 0)), true),
            (Checkpoint::At(at(8, 0)), true),
            (Checkpoint::At(at(4, 0)), false),
            (Checkpoint::TrimHorizon, false),
        ] {
            assert_eq!(beyond.is_valid_for(checkpoint), valid, "{checkpoint}");
        }
        assert!(note(None, at(20, 0), &[at(6, 0)]).is_valid_for(Checkpoint::TrimHorizon));
    }

    #[test]
    fn a_full_note_is_small() {
        let first: SequenceNumber = "49601189658422359378836298521827638475320189012309704722".parse().unwrap();
        let (high, low) = first.into_words();
        // Records a second apart, as Kinesis numbers them.
        let number = |index: u128| SequenceNumber::from_words(high, low + index * 1_074_533_273_769_343_790_488_162);
        let open = (1..=MOST_OPEN as u128).map(|index| ExtendedSequenceNumber::whole(number(index))).collect();
        let note =
            FinishedBeyond { base: Some(ExtendedSequenceNumber::whole(first)), until: ExtendedSequenceNumber::whole(number(100)), open };
        assert!(note.encode().len() < 420, "{}", note.encode().len());
        assert_eq!(FinishedBeyond::decode(&note.encode()), Ok(note));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        for bytes in [&[][..], &[1], &[2, 0, 1, 1], &[1, 0], &[1, 1, 5, 0], &[1, 2, 5, 0], &[1, 0, 0x80], &[1, 0, 5]] {
            assert_eq!(FinishedBeyond::decode(bytes), Err(UnreadableNote), "{bytes:?}");
        }
        assert_eq!(FinishedBeyond::decode(&[[1, 0].as_slice(), &[0xff; 60]].concat()), Err(UnreadableNote));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(numbers: Vec<(u128, u64)>, until: (u128, u128, u64), base: Option<(u128, u64)>) {
            let note = FinishedBeyond {
                base: base.map(|(number, sub)| at(number, sub)),
                until: ExtendedSequenceNumber::new(SequenceNumber::from_words(until.0, until.1), until.2),
                open: numbers.into_iter().map(|(number, sub)| at(number, sub)).collect(),
            };
            prop_assert_eq!(FinishedBeyond::decode(&note.encode()), Ok(note));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = FinishedBeyond::decode(&bytes);
        }
    }
}
