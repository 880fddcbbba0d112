//! Refusals of a starting position, and when they say that the service does not know the record.
//!
//! GetShardIterator and SubscribeToShard refuse a sequence number that is not of the shard, with the
//! same error as any other argument that they dislike. One such answer may be a hiccup of the
//! service or of a proxy, and what follows from it is grave: the shard stops, or is read anew from
//! its oldest record. So only two in a row count.

use kcl_checkpoint::StartingPosition;

use crate::stream::StreamError;

/// Refusals of the present starting position in a row.
#[derive(Debug, Default)]
pub(crate) struct StartRefusals(u32);

impl StartRefusals {
    /// Takes in the error of a call that named `start`. Returns the error to report: the second
    /// refusal in a row of a sequence number is [`StreamError::StartRefused`]. Errors that say
    /// nothing of the position, as throttling, neither count nor end a row.
    pub(crate) fn judge(&mut self, error: StreamError, start: StartingPosition) -> StreamError {
        let StreamError::InvalidArgument { stream, operation, message } = error else { return error };
        self.0 = self.0.saturating_add(1);
        let names_a_record = matches!(start, StartingPosition::AtSequenceNumber(_) | StartingPosition::AfterSequenceNumber(_));
        if self.0 >= 2 && names_a_record {
            StreamError::StartRefused { stream, operation, message }
        } else {
            StreamError::InvalidArgument { stream, operation, message }
        }
    }

    /// The service took the position.
    pub(crate) fn accepted(&mut self) {
        self.0 = 0;
    }
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::Timestamp;

    use super::*;
    use crate::retrieval::fake::{Failure, error};

    #[test]
    fn only_two_refusals_in_a_row_of_a_sequence_number_count() {
        let at = StartingPosition::AtSequenceNumber(5.into());
        let refused = |refusals: &mut StartRefusals, failure, start| {
            matches!(refusals.judge(error(failure), start), StreamError::StartRefused { .. })
        };
        let mut refusals = StartRefusals::default();
        assert!(!refused(&mut refusals, Failure::Invalid, at));
        assert!(!refused(&mut refusals, Failure::Throttled, at));
        assert!(refused(&mut refusals, Failure::Invalid, at));
        assert!(refused(&mut refusals, Failure::Invalid, at), "and so on");
        refusals.accepted();
        assert!(!refused(&mut refusals, Failure::Invalid, at));
        for start in [StartingPosition::TrimHorizon, StartingPosition::Latest, StartingPosition::AtTimestamp(Timestamp::from_millis(7))] {
            let mut refusals = StartRefusals::default();
            assert!((0..5).all(|_| !refused(&mut refusals, Failure::Invalid, start)), "{start:?} names no record");
        }
    }
}
