//! All payloads of one answer of `GetRecords`: the digests checked at once, each aggregate opened when its turn comes.

use std::fmt;
use std::iter::{FusedIterator, Zip};
use std::ops::RangeInclusive;
use std::vec::IntoIter;

use bytes::Bytes;

use crate::digests::intact;
use crate::envelope::Envelope;
use crate::rules::Rules;
use crate::{Disaggregated, open};

/// Says of each payload what [`disaggregate`](crate::disaggregate) says, in their order. Much faster if many are aggregates: their
/// digests, which cost most, are computed side by side.
///
/// That is done at once: some 4 ms for the 10 MiB that an answer can have. All else is done when the iterator gets there, so that no
/// more than one aggregate's tables need be in memory. The iterator itself holds a handle and a byte per payload.
///
/// ```
/// use bytes::Bytes;
/// use kcl_aggregation::{Aggregator, Disaggregated, Rules, disaggregate_all};
///
/// let mut aggregator = Aggregator::default();
/// aggregator.add("user-1", None, Bytes::from_static(b"hello"))?;
/// let aggregate = aggregator.finish().unwrap().payload;
///
/// let records = [("sequence number 1", aggregate), ("sequence number 2", Bytes::from_static(b"ordinary"))];
/// let payloads = records.iter().map(|(_, payload)| payload.clone());
/// for ((sequence_number, payload), what) in records.iter().zip(disaggregate_all(payloads, None, &Rules::default())) {
///     match what {
///         Disaggregated::NotAggregated => println!("{sequence_number}: {} bytes", payload.len()),
///         Disaggregated::Aggregate(aggregate) => println!("{sequence_number}: {} sub-records", aggregate.len()),
///         Disaggregated::Broken(error) => println!("{sequence_number}: {error}"),
///     }
/// }
/// # Ok::<(), kcl_aggregation::AddError>(())
/// ```
#[must_use]
pub fn disaggregate_all(
    payloads: impl IntoIterator<Item = Bytes>,
    range: Option<&RangeInclusive<u128>>,
    rules: &Rules,
) -> DisaggregatedAll {
    let payloads: Vec<Bytes> = payloads.into_iter().collect();
    let intact = intact(&payloads);
    DisaggregatedAll { payloads: payloads.into_iter().zip(intact), range: range.cloned(), rules: *rules }
}

/// What [`disaggregate_all`] returns. Refers to nothing of the caller's, and lets go of each payload at its turn.
pub struct DisaggregatedAll {
    /// Each payload, and whether it is an envelope with the right digest.
    payloads: Zip<IntoIter<Bytes>, IntoIter<bool>>,
    range: Option<RangeInclusive<u128>>,
    rules: Rules,
}

impl Iterator for DisaggregatedAll {
    type Item = Disaggregated;

    fn next(&mut self) -> Option<Disaggregated> {
        let (payload, intact) = self.payloads.next()?;
        Some(match Envelope::find(&payload) {
            Some(envelope) if intact => open(&envelope, self.range.as_ref(), &self.rules),
            _ => Disaggregated::NotAggregated,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.payloads.size_hint()
    }
}

impl ExactSizeIterator for DisaggregatedAll {}
impl FusedIterator for DisaggregatedAll {}

impl fmt::Debug for DisaggregatedAll {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DisaggregatedAll").field("left", &self.len()).finish_non_exhaustive()
    }
}
