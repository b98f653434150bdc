//! Faults that the simulation plants in the product, to prove that it would find them. Outside of
//! the unit tests there are none: every question here is the constant `false`.

/// A mistake that somebody could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Writes are acknowledged although they were not synced.
    SyncSkipped,
    /// A lease read does not look at the lease again after the read.
    LeaseNotCheckedAgain,
    /// The lease is longer than the time after which another leader can be elected.
    LeaseTooLong,
    /// A vote is answered before it is on disk.
    VoteNotPersisted,
    /// A disk that came back shorter than it was goes on.
    LossIgnored,
    /// A checkpoint counts as written although it is not, so the log is purged beyond it.
    CheckpointSkipped,
    /// A checkpoint does not say how far it is.
    ProgressSkipped,
    /// A snapshot becomes the state before all of its records are there.
    SnapshotSwitchedEarly,
    /// Membership changes on whatever configuration there is.
    ConfigIndexIgnored,
    /// A leader answers reads without asking a quorum whether it still leads.
    ReadWithoutQuorum,
    /// Messages of a group that was destroyed reach the group that has its id now.
    GenerationIgnored,
}

pub use plot::{Plot, has, pause};

#[cfg(not(test))]
mod plot {
    use super::Fault;

    /// Nothing is planted.
    pub struct Plot;

    impl Plot {
        pub const fn here() -> Plot {
            Plot
        }

        pub const fn enter(&self) {}
    }

    #[inline(always)]
    pub const fn has(_: Fault) -> bool {
        false
    }

    #[inline(always)]
    pub const fn pause() {}
}

#[cfg(test)]
mod plot {
    use super::Fault;
    use parking_lot::Mutex;
    use std::cell::RefCell;
    use std::sync::{Arc, mpsc};

    thread_local! {
        static HERE: RefCell<Plot> = RefCell::default();
    }

    /// What is planted in one simulation. All of its threads enter it; others know nothing of it.
    #[derive(Clone, Default)]
    pub struct Plot(Arc<Parts>);

    #[derive(Default)]
    struct Parts {
        fault: Mutex<Option<Fault>>,
        gate: Mutex<Option<Gate>>,
    }

    struct Gate {
        reached: mpsc::Sender<()>,
        released: mpsc::Receiver<()>,
    }

    /// The other side of a gate.
    pub struct Pause {
        reached: mpsc::Receiver<()>,
        release: mpsc::Sender<()>,
    }

    impl Plot {
        /// That of this thread.
        pub fn here() -> Plot {
            HERE.with_borrow(Plot::clone)
        }

        /// Makes it that of this thread.
        pub fn enter(&self) {
            HERE.set(self.clone());
        }

        /// From now on there is this fault and no other.
        pub fn plant(&self, fault: Option<Fault>) {
            *self.0.fault.lock() = fault;
        }

        /// The next thread that could be paused will be.
        pub fn pause_next(&self) -> Pause {
            let (reach, reached) = mpsc::channel();
            let (release, released) = mpsc::channel();
            *self.0.gate.lock() = Some(Gate { reached: reach, released });
            Pause { reached, release }
        }
    }

    impl Pause {
        /// Waits until a thread stands still; false when none does within ten seconds.
        pub fn reached(&self) -> bool {
            self.reached.recv_timeout(std::time::Duration::from_secs(10)).is_ok()
        }

        /// Lets it go on.
        pub fn release(self) {
            let _ = self.release.send(());
        }
    }

    /// Whether this fault is planted.
    pub fn has(fault: Fault) -> bool {
        HERE.with_borrow(|plot| *plot.0.fault.lock() == Some(fault))
    }

    /// A place where a thread may lose the processor for long.
    pub fn pause() {
        let gate = HERE.with_borrow(|plot| plot.0.gate.lock().take());
        if let Some(gate) = gate {
            let _ = gate.reached.send(());
            let _ = gate.released.recv();
        }
    }
}
