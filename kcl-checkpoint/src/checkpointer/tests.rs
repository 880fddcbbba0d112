//! The checkpointer over a writer that keeps what it is given.

use super::*;

/// Keeps what was written, and refuses once it is told to.
#[derive(Default)]
struct Written {
    checkpoints: Mutex<Vec<Checkpoint>>,
    prepared: Mutex<Vec<PendingCheckpoint>>,
    lost: Mutex<bool>,
}

#[async_trait]
impl CheckpointWriter for Written {
    async fn write(&self, checkpoint: Checkpoint) -> Result<(), CheckpointWriteError> {
        if *self.lost.lock().unwrap() {
            return Err(CheckpointWriteError::LeaseLost);
        }
        self.checkpoints.lock().unwrap().push(checkpoint);
        Ok(())
    }

    async fn prepare(&self, pending: PendingCheckpoint) -> Result<(), CheckpointWriteError> {
        if *self.lost.lock().unwrap() {
            return Err(CheckpointWriteError::LeaseLost);
        }
        self.prepared.lock().unwrap().push(pending);
        Ok(())
    }
}

fn record(number: u128, sub: u64) -> ExtendedSequenceNumber {
    ExtendedSequenceNumber::new(number.into(), sub)
}

fn start_at(start: Checkpoint) -> (Checkpointer, CheckpointControl, Arc<Written>) {
    let written = Arc::new(Written::default());
    let writer: Arc<dyn CheckpointWriter> = Arc::<Written>::clone(&written);
    let (checkpointer, control) = Checkpointer::pair(start, writer);
    (checkpointer, control, written)
}

#[tokio::test]
async fn everything_delivered_so_far_is_checkpointed_once() {
    let (checkpointer, control, written) = start_at(Checkpoint::TrimHorizon);
    checkpointer.checkpoint().await.unwrap();
    control.note_delivered(record(5, 0));
    checkpointer.checkpoint().await.unwrap();
    checkpointer.checkpoint().await.unwrap();
    assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::At(record(5, 0))]);
}

#[tokio::test]
async fn the_control_sees_that_a_processor_has_used_its_handle_and_not_that_the_engine_has() {
    let (checkpointer, control, _) = start_at(Checkpoint::TrimHorizon);
    let engines = checkpointer.of_engine(&control);
    control.note_delivered(record(1, 0));
    engines.checkpoint().await.unwrap();
    engines.checkpoint_at(record(1, 0)).await.unwrap();
    assert!(!control.is_used());
    assert_eq!((checkpointer.last(), checkpointer.delivered()), (Checkpoint::At(record(1, 0)), Some(record(1, 0))));
    assert!(!control.is_used(), "a look is no use");

    for call in 0..3 {
        let (checkpointer, control, _) = start_at(Checkpoint::TrimHorizon);
        match call {
            0 => checkpointer.checkpoint().await.unwrap(),
            1 => drop(checkpointer.checkpoint_at(record(1, 0)).await),
            _ => drop(checkpointer.prepare("").await),
        }
        assert!(control.is_used(), "whether or not anything was written: {call}");
    }
}

#[tokio::test]
async fn never_backwards_and_never_past_what_was_delivered() {
    let (checkpointer, control, written) = start_at(Checkpoint::At(record(10, 2)));
    assert!(matches!(checkpointer.checkpoint_at(record(10, 3)).await, Err(CheckpointError::BeyondDelivered { delivered: None, .. })));
    control.note_delivered(record(11, 0));
    assert!(matches!(checkpointer.checkpoint_at(record(10, 1)).await, Err(CheckpointError::Backwards { .. })));
    assert!(matches!(checkpointer.checkpoint_at(record(11, 1)).await, Err(CheckpointError::BeyondDelivered { .. })));
    checkpointer.checkpoint_at(record(10, 2)).await.unwrap();
    checkpointer.checkpoint_at(record(11, 0)).await.unwrap();
    assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::At(record(11, 0))]);
}

#[tokio::test]
async fn what_failed_is_not_checkpointed_before_it_is_delivered_again() {
    let (checkpointer, control, written) = start_at(Checkpoint::At(record(1, 0)));
    control.note_delivered(record(9, 0));
    control.note_failed_after(Some(record(4, 0)));
    assert!(matches!(checkpointer.checkpoint_at(record(9, 0)).await, Err(CheckpointError::BeyondDelivered { .. })));
    control.note_delivered(record(5, 0));
    checkpointer.checkpoint().await.unwrap();
    assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::At(record(5, 0))]);
    control.note_failed_after(None);
    checkpointer.checkpoint().await.unwrap();
    assert_eq!(written.checkpoints.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_checkpoint_that_was_written_along_with_something_else_is_not_written_again() {
    let (checkpointer, control, written) = start_at(Checkpoint::At(record(1, 0)));
    control.note_delivered(record(5, 0));
    for (noted, last) in [(5, 5), (4, 5)] {
        control.note_written(Checkpoint::At(record(noted, 0)));
        assert_eq!(checkpointer.last(), Checkpoint::At(record(last, 0)), "after {noted}");
    }
    checkpointer.checkpoint().await.unwrap();
    assert!(matches!(checkpointer.checkpoint_at(record(4, 0)).await, Err(CheckpointError::Backwards { .. })));
    assert!(written.checkpoints.lock().unwrap().is_empty());
}

#[tokio::test]
async fn shard_end_only_after_the_shard_has_ended() {
    let (checkpointer, control, written) = start_at(Checkpoint::TrimHorizon);
    control.note_delivered(record(1, 0));
    checkpointer.checkpoint().await.unwrap();
    control.note_shard_end();
    checkpointer.checkpoint().await.unwrap();
    assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::At(record(1, 0)), Checkpoint::ShardEnd]);
    assert!(matches!(checkpointer.checkpoint_at(record(1, 0)).await, Err(CheckpointError::Backwards { .. })));
}

#[tokio::test]
async fn no_shard_end_while_records_come_again() {
    let (checkpointer, control, written) = start_at(Checkpoint::TrimHorizon);
    control.note_delivered(record(2, 0));
    control.note_shard_end();
    control.note_failed_after(Some(record(1, 0)));
    checkpointer.checkpoint().await.unwrap();
    assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::At(record(1, 0))]);
}

#[tokio::test]
async fn a_lost_lease_leaves_the_last_checkpoint_as_it_was() {
    let (checkpointer, control, written) = start_at(Checkpoint::Latest);
    control.note_delivered(record(1, 0));
    *written.lost.lock().unwrap() = true;
    let error = checkpointer.checkpoint().await.unwrap_err();
    assert!(error.is_lease_lost() && !error.is_retryable());
    assert_eq!(checkpointer.last(), Checkpoint::Latest);
}

fn pending(record: ExtendedSequenceNumber, state: &'static [u8]) -> PendingCheckpoint {
    PendingCheckpoint { checkpoint: Checkpoint::At(record), state: (!state.is_empty()).then(|| Bytes::from_static(state)) }
}

#[tokio::test]
async fn a_checkpoint_in_two_phases_moves_at_its_commit() {
    let (checkpointer, control, written) = start_at(Checkpoint::TrimHorizon);
    control.note_delivered(record(5, 1));
    let prepared = checkpointer.prepare("batch 7").await.unwrap();
    assert_eq!((prepared.checkpoint(), checkpointer.last()), (Checkpoint::At(record(5, 1)), Checkpoint::TrimHorizon));
    assert_eq!(*written.prepared.lock().unwrap(), [pending(record(5, 1), b"batch 7")]);
    assert!(written.checkpoints.lock().unwrap().is_empty());

    // What is delivered meanwhile is not of it.
    control.note_delivered(record(6, 0));
    prepared.commit().await.unwrap();
    prepared.commit().await.unwrap();
    assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::At(record(5, 1))]);
    assert_eq!(checkpointer.last(), Checkpoint::At(record(5, 1)));
}

#[tokio::test]
async fn a_prepared_checkpoint_is_refused_as_every_other_one_is() {
    let (checkpointer, control, written) = start_at(Checkpoint::At(record(10, 2)));
    assert!(matches!(checkpointer.prepare_at(record(10, 3), "").await, Err(CheckpointError::BeyondDelivered { .. })));
    control.note_delivered(record(11, 0));
    assert!(matches!(checkpointer.prepare_at(record(10, 1), "").await, Err(CheckpointError::Backwards { .. })));
    assert!(matches!(checkpointer.prepare_at(record(11, 1), "").await, Err(CheckpointError::BeyondDelivered { .. })));
    let prepared = checkpointer.prepare_at(record(11, 0), "").await.unwrap();
    assert_eq!(*written.prepared.lock().unwrap(), [pending(record(11, 0), b"")], "an empty state is none");

    // Its records failed after it was prepared.
    control.note_failed_after(None);
    assert!(matches!(prepared.commit().await, Err(CheckpointError::BeyondDelivered { .. })));
    control.note_delivered(record(12, 0));
    checkpointer.checkpoint().await.unwrap();
    assert!(matches!(prepared.commit().await, Err(CheckpointError::Backwards { .. })));
}

#[tokio::test]
async fn without_anything_new_nothing_is_prepared() {
    let (checkpointer, control, written) = start_at(Checkpoint::At(record(10, 2)));
    for delivered in [None, Some(record(10, 0)), Some(record(10, 2))] {
        if let Some(delivered) = delivered {
            control.note_delivered(delivered);
        }
        let prepared = checkpointer.prepare("state").await.unwrap();
        assert_eq!(prepared.checkpoint(), Checkpoint::At(record(10, 2)));
        prepared.commit().await.unwrap();
    }
    assert!(written.prepared.lock().unwrap().is_empty() && written.checkpoints.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_end_of_a_shard_can_be_prepared_while_it_stands() {
    let (checkpointer, control, written) = start_at(Checkpoint::TrimHorizon);
    control.note_delivered(record(1, 0));
    control.note_shard_end();
    let prepared = checkpointer.prepare(Bytes::new()).await.unwrap();
    assert_eq!(prepared.checkpoint(), Checkpoint::ShardEnd);
    let beyond = checkpointer.prepare_at(record(2, 0), "").await;
    assert!(matches!(beyond, Err(CheckpointError::BeyondDelivered { .. })), "no record came after the last one");
    control.note_failed_after(Some(record(1, 0)));
    assert!(matches!(prepared.commit().await, Err(CheckpointError::BeyondDelivered { .. })));
    control.note_shard_end();
    prepared.commit().await.unwrap();
    assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::ShardEnd]);
}

#[tokio::test]
async fn a_state_beyond_the_limit_is_refused_before_anything_is_written() {
    let (checkpointer, control, written) = start_at(Checkpoint::TrimHorizon);
    control.note_delivered(record(1, 0));
    let most = PendingCheckpoint::MAX_STATE_BYTES;
    let error = checkpointer.prepare(vec![0; most + 1]).await.unwrap_err();
    assert!(matches!(error, CheckpointError::StateTooLarge { bytes } if bytes == most + 1) && !error.is_retryable());
    let error = checkpointer.prepare_at(record(1, 0), vec![0; most + 1]).await.unwrap_err();
    assert!(error.to_string().contains("262145 bytes"), "{error}");
    assert!(written.prepared.lock().unwrap().is_empty());
    let _ = checkpointer.prepare(vec![0; most]).await.unwrap();
    assert_eq!(written.prepared.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_lost_lease_prepares_nothing() {
    let (checkpointer, control, written) = start_at(Checkpoint::TrimHorizon);
    control.note_delivered(record(1, 0));
    *written.lost.lock().unwrap() = true;
    assert!(checkpointer.prepare("state").await.unwrap_err().is_lease_lost());
}

#[test]
fn an_error_says_whether_to_try_again_whether_the_lease_is_lost_and_what_was_delivered() {
    let beyond = |delivered| CheckpointError::BeyondDelivered { requested: Checkpoint::At(record(9, 0)), delivered };
    let unavailable = CheckpointError::Write(CheckpointWriteError::Unavailable(None));
    for (error, is_retryable, is_lease_lost, words) in [
        (unavailable, true, false, "did not confirm the checkpoint"),
        (CheckpointError::Write(CheckpointWriteError::LeaseLost), false, true, "the lease is lost"),
        (beyond(Some(record(8, 1))), false, false, "(up to 8/1)"),
        (beyond(None), false, false, "(nothing)"),
    ] {
        assert_eq!((error.is_retryable(), error.is_lease_lost()), (is_retryable, is_lease_lost), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn the_state_is_not_shown() {
    let shown = format!("{:?}", pending(record(1, 0), b"confidential"));
    assert!(shown.contains("state_bytes: 12") && !shown.contains("confidential"), "{shown}");
}
