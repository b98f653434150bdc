//! The machine's own record: what is neither in a node nor in a session. All integers are little
//! endian: version (1), the group's clock, the last fencing token and the last ticket of a lock's queue
//! (3 x 8), and until when clients are suspect (8).

use crate::session::BadSession;
use crate::tree::{BadRecord, Counters};

const VERSION: u8 = 1;

/// A record that cannot be loaded. The store's data are damaged, or newer than this program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadState {
    /// Of a node.
    #[error(transparent)]
    Node(#[from] BadRecord),
    /// Of a session.
    #[error(transparent)]
    Session(#[from] BadSession),
    /// The machine's own.
    #[error("the machine's record cannot be loaded: it is damaged or was written by a newer release")]
    Machine,
    /// Under a key that names nothing.
    #[error("there is a record under the key \"{}\", which names nothing", .0.escape_ascii())]
    Key(Box<[u8]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MachineRecord {
    pub(super) counters: Counters,
    pub(super) suspect_until_ms: u64,
}

impl MachineRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        let Counters { clock_ms, last_token, last_ticket } = self.counters;
        for number in [clock_ms, last_token, last_ticket, self.suspect_until_ms] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<MachineRecord> {
        let mut rest = bytes.strip_prefix(&[VERSION])?;
        let mut number = || {
            let (number, left) = rest.split_first_chunk()?;
            rest = left;
            Some(u64::from_le_bytes(*number))
        };
        let counters = Counters { clock_ms: number()?, last_token: number()?, last_ticket: number()? };
        let record = MachineRecord { counters, suspect_until_ms: number()? };
        rest.is_empty().then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_version_1_stays_as_it_is() {
        let counters = Counters { clock_ms: 2, last_token: 3, last_ticket: 4 };
        let record = MachineRecord { counters, suspect_until_ms: 0x0105 };
        let mut golden = vec![1];
        [[2, 0], [3, 0], [4, 0], [5, 1]].iter().for_each(|low| golden.extend([&low[..], &[0; 6]].concat()));
        assert_eq!(record.encode(), golden);
        assert_eq!(MachineRecord::decode(&golden), Some(record));
        for broken in [&golden[..32], &[&golden[..], &[0]].concat(), &[&[2], &golden[1..]].concat(), b""] {
            assert_eq!(MachineRecord::decode(broken), None);
        }
    }
}
