//! A dead-letter queue in memory, behind the fault layer.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::events::Event;
use super::faults::Service;
use super::network::{Asked, Failure, Link};
use crate::dead_letter::{DeadLetter, DeadLetterError, DeadLetterQueue};

/// A queue's letters, in the order of acceptance; whoever reaches it. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Letters(Arc<Mutex<Vec<DeadLetter>>>);

impl Letters {
    pub(super) fn all(&self) -> Vec<DeadLetter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A dead-letter queue as one host reaches it.
#[derive(Clone, Debug)]
pub struct SimulatedDeadLetterQueue {
    name: String,
    letters: Letters,
    link: Link,
    timeout: Duration,
}

impl SimulatedDeadLetterQueue {
    pub(super) fn new(name: &str, letters: Letters, link: Link, timeout: Duration) -> Self {
        Self { name: name.to_owned(), letters, link, timeout }
    }

    fn asked(&self, operation: &'static str) -> Asked<'static> {
        let errors = &["QueueDoesNotExist", "AccessDenied", "InternalFailure"];
        Asked { service: Service::DeadLetters, operation, shard: "", may_be_stale: false, errors, timeout: self.timeout }
    }

    fn error(&self, operation: &'static str, failure: Failure) -> DeadLetterError {
        let (queue, message) = (self.name.clone(), "a simulated fault".to_owned());
        match failure {
            Failure::Refused("QueueDoesNotExist") => DeadLetterError::NotFound { queue, message },
            Failure::Refused("AccessDenied") => DeadLetterError::AccessDenied { queue, operation, message },
            Failure::Throttled | Failure::Refused(_) | Failure::NoAnswer => DeadLetterError::Unavailable { queue, message },
        }
    }
}

#[async_trait]
impl DeadLetterQueue for SimulatedDeadLetterQueue {
    async fn check(&self) -> Result<(), DeadLetterError> {
        const OPERATION: &str = "sqs:GetQueueAttributes";
        self.link.read(self.asked(OPERATION), |_| ()).await.map_err(|failure| self.error(OPERATION, failure))
    }

    async fn send(&self, letters: &[DeadLetter]) -> Vec<Result<(), DeadLetterError>> {
        const OPERATION: &str = "sqs:SendMessageBatch";
        let (kept, link, sent) = (self.letters.clone(), self.link.clone(), letters.to_vec());
        let accepted = self.link.write(self.asked(OPERATION), move || {
            let mut answers = Vec::with_capacity(sent.len());
            let mut refused = BTreeSet::new();
            for letter in &sent {
                // Each letter has an answer of its own; but one that comes after a refused one of its key is not sent.
                let key = letter.record.partition_key().map(|key| (letter.shard_id.clone(), key.to_owned()));
                let waits = key.as_ref().is_some_and(|key| refused.contains(key));
                let is_accepted = !waits && !link.refuses_entry(Service::DeadLetters);
                answers.push(is_accepted);
                if !is_accepted {
                    refused.extend(key);
                    continue;
                }
                // Kept as it was, but without its hold on the sender's memory.
                let record = letter.record.detached();
                kept.0.lock().unwrap_or_else(PoisonError::into_inner).push(DeadLetter { record, ..letter.clone() });
                link.network.observers.tell(&Event::DeadLetterAccepted { host: &link.host, letter });
            }
            answers
        });
        let answer = |accepted: bool| if accepted { Ok(()) } else { Err(self.error(OPERATION, Failure::Throttled)) };
        match accepted.await {
            Ok(answers) => answers.into_iter().map(answer).collect(),
            Err(failure) => vec![Err(self.error(OPERATION, failure)); letters.len()],
        }
    }
}
