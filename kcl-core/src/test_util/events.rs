//! What observers of the simulated services are told, at the moment when it takes effect.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kcl_lease::{Lease, LeaseWrite, TransactItems};

use super::faults::{FaultKind, Service};
use crate::dead_letter::DeadLetter;

/// Something that took effect in a service, or became of a call. `host` is the process that made the call, as [`Host::name`](super::Host::name).
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A call was sent.
    Sent {
        /// Who.
        host: &'a str,
        /// To what.
        service: Service,
        /// The operation.
        operation: &'static str,
        /// The shard that it is about, or nothing.
        shard: &'a str,
        /// What happened to it.
        fault: Option<FaultKind>,
    },
    /// A conditional write of a lease was applied.
    LeaseWritten {
        /// Who.
        host: &'a str,
        /// When it was sent, since the start of the services.
        sent: Duration,
        /// The write.
        write: &'a LeaseWrite,
        /// The row before.
        before: &'a Lease,
        /// The row after.
        after: &'a Lease,
    },
    /// Items were written together with a lease, as one transaction; of the lease, [`LeaseWritten`](Self::LeaseWritten) was told just before.
    ItemsWritten {
        /// Who.
        host: &'a str,
        /// The write of the lease.
        write: &'a LeaseWrite,
        /// The items.
        items: &'a TransactItems,
    },
    /// A conditional write found itself in effect: its answer was lost, or it came twice.
    LeaseWriteRecognised {
        /// Who.
        host: &'a str,
        /// The write.
        write: &'a LeaseWrite,
    },
    /// A conditional write was refused.
    LeaseWriteRefused {
        /// Who.
        host: &'a str,
        /// The write.
        write: &'a LeaseWrite,
        /// The row as it is, if there is one.
        row: Option<&'a Lease>,
    },
    /// A lease was created.
    LeaseCreated {
        /// Who.
        host: &'a str,
        /// The row.
        lease: &'a Lease,
    },
    /// A lease was deleted.
    LeaseDeleted {
        /// Who.
        host: &'a str,
        /// The row as it was.
        lease: &'a Lease,
    },
    /// A dead letter was accepted.
    DeadLetterAccepted {
        /// Who.
        host: &'a str,
        /// The letter.
        letter: &'a DeadLetter,
    },
    /// The process is so busy that simulated time can't go on: its tasks wake each other, or themselves, without waiting for
    /// anything. Told once.
    TimeStandsStill {
        /// Who.
        host: &'a str,
    },
}

type Observer = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// Who is told. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Observers(Arc<Mutex<Vec<Observer>>>);

impl Observers {
    pub(super) fn add(&self, observer: impl Fn(&Event<'_>) + Send + Sync + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(observer));
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn tell(&self, event: &Event<'_>) {
        let observers = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for observer in observers {
            observer(event);
        }
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Observers")
    }
}
