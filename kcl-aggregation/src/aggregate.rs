//! An aggregate whose message was checked whole.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::BrokenAggregate;
use crate::range::Sides;
use crate::rules::Rules;
use crate::sub_record::SubRecords;
use crate::survey::survey;
use crate::tables::{LONGEST_MESSAGE, Tables};

/// The sub-records of one Kinesis record, all of them known to be readable. A clone is cheap and shares everything.
#[derive(Clone)]
pub struct Aggregate {
    checked: Arc<Checked>,
}

/// A message in which nothing is wrong, and what is needed to walk it.
pub(crate) struct Checked {
    pub(crate) message: Bytes,
    pub(crate) tables: Tables,
    pub(crate) sub_records: usize,
    /// If a range was asked for: every sub-record was judged.
    pub(crate) sides: Option<Sides>,
    outside: usize,
}

impl Aggregate {
    /// Checks a message that was taken out of its envelope. [`disaggregate`](crate::disaggregate) does both; this is for those who have
    /// checked the digest themselves.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it. All of the message is checked, whatever part of it the sub-records refer to.
    pub fn open(message: Bytes, range: Option<&RangeInclusive<u128>>, rules: &Rules) -> Result<Self, BrokenAggregate> {
        if message.len() > LONGEST_MESSAGE {
            return Err(BrokenAggregate::TooLarge { len: message.len() });
        }
        let survey = survey(&message, rules)?;
        let tables = Tables::of(&message, &survey);
        let (sides, outside) = match range {
            None => (None, 0),
            Some(range) => {
                let (sides, outside) = Sides::judge(&message, &tables, range);
                (Some(sides), outside)
            }
        };
        Ok(Self { checked: Arc::new(Checked { message, tables, sub_records: survey.sub_records, sides, outside }) })
    }

    /// How many sub-records there are: at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an aggregate without sub-records is broken")]
    pub fn len(&self) -> usize {
        self.checked.sub_records
    }

    /// How many sub-records belong to another shard than the one whose range was given; 0 if none was.
    ///
    /// There are such after the stream was resharded between packing and sending. The Java library delivers nothing of
    /// an aggregate that has even one of them, and trusts that the producer has sent those records again. To deliver them all the same can
    /// repeat some, never lose any; which of the two is for the caller to choose.
    #[must_use]
    pub fn outside_range(&self) -> usize {
        self.checked.outside
    }

    /// The sub-records from the first on, found one by one as they are asked for.
    #[must_use]
    pub fn sub_records(&self) -> SubRecords {
        SubRecords::new(Arc::clone(&self.checked))
    }
}

impl IntoIterator for Aggregate {
    type Item = crate::SubRecord;
    type IntoIter = SubRecords;

    fn into_iter(self) -> SubRecords {
        SubRecords::new(self.checked)
    }
}

impl fmt::Debug for Aggregate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Aggregate")
            .field("sub_records", &self.len())
            .field("outside_range", &self.outside_range())
            .field("message_len", &self.checked.message.len())
            .finish_non_exhaustive()
    }
}
