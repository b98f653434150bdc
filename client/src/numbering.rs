//! The numbers of one client's writes to one group: they make each write happen once.
//!
//! Every frame of writes has a number. A frame whose outcome is unknown is sent again under the same
//! number, and the store, which remembers numbers and answers, does not carry it out twice. What the
//! client will never send again it acknowledges, so that the store can forget it.

use crate::limits::SESSION_ANSWERS_MAX;
use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

/// Frames without an answer, or above one without, at most: well below what the store remembers, so
/// that no answer which may still be asked for has to make room.
const WINDOW: usize = SESSION_ANSWERS_MAX / 2;
/// Low bits of a number that begins a new range; they are random.
const RANDOM_BITS: u32 = 20;

/// Who a client's writes come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub client_id: [u8; 16],
    /// The id was given, so somebody may have used it before, or may use it now.
    pub is_shared: bool,
}

impl Identity {
    /// Where a range of numbers begins that this client has not used yet.
    ///
    /// What used a shared id before began at an earlier time; it would have needed more than a
    /// million frames a millisecond to come this far.
    fn begin(self) -> u64 {
        if !self.is_shared {
            return 1;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX >> RANDOM_BITS);
        ms << RANDOM_BITS | rand::random_range(1..1 << RANDOM_BITS)
    }
}

/// The numbers of one client's writes to one group.
pub(crate) struct Numbering {
    identity: Identity,
    next: u64,
    /// Numbers that are in use, and above them those that are not any more, in order.
    used: VecDeque<(u64, bool)>,
}

impl Numbering {
    pub fn new(identity: Identity) -> Numbering {
        Numbering { identity, next: identity.begin(), used: VecDeque::new() }
    }

    pub fn client_id(&self) -> [u8; 16] {
        self.identity.client_id
    }

    /// True when there is room for another frame.
    pub fn has_room(&self) -> bool {
        self.used.len() < WINDOW
    }

    /// The next number; it is in use until [`Numbering::settle`].
    pub fn take(&mut self) -> u64 {
        let sequence = self.next;
        self.next += 1;
        self.used.push_back((sequence, true));
        sequence
    }

    /// Every number below this one was settled.
    pub fn acknowledged_below(&self) -> u64 {
        self.used.front().map_or(self.next, |(sequence, _)| *sequence)
    }

    /// What has this number will not be sent again.
    pub fn settle(&mut self, sequence: u64) {
        if let Ok(at) = self.used.binary_search_by_key(&sequence, |(sequence, _)| *sequence) {
            self.used[at].1 = false;
        }
        while self.used.front().is_some_and(|(_, in_use)| !in_use) {
            self.used.pop_front();
        }
    }

    /// The store takes this number for an old one, though it was never sent before: its session was
    /// used by somebody else, or lost in part. The following numbers begin anew.
    pub fn refused(&mut self, sequence: u64) {
        self.settle(sequence);
        self.next = self.next.max(self.identity.begin());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbering(is_shared: bool) -> Numbering {
        Numbering::new(Identity { client_id: [1; 16], is_shared })
    }

    #[test]
    fn what_is_settled_in_any_order_is_acknowledged_in_order() {
        let mut numbering = numbering(false);
        assert_eq!(numbering.acknowledged_below(), 1);
        let taken: Vec<u64> = (0..4).map(|_| numbering.take()).collect();
        assert_eq!(taken, [1, 2, 3, 4]);
        numbering.settle(2);
        numbering.settle(3);
        assert_eq!(numbering.acknowledged_below(), 1);
        numbering.settle(1);
        assert_eq!(numbering.acknowledged_below(), 4);
        numbering.settle(4);
        numbering.settle(4);
        assert_eq!((numbering.acknowledged_below(), numbering.take()), (5, 5));
    }

    #[test]
    fn one_frame_without_an_answer_keeps_the_window_closed() {
        let mut numbering = numbering(false);
        let first = numbering.take();
        for _ in 1..WINDOW {
            let sequence = numbering.take();
            numbering.settle(sequence);
        }
        assert!(!numbering.has_room());
        numbering.settle(first);
        assert!(numbering.has_room());
    }

    #[test]
    fn shared_id_begins_above_all_earlier_numbers() {
        let mut earlier = numbering(true);
        let used = (0..1000).map(|_| earlier.take()).max().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(numbering(true).take() > used);
        let refused = earlier.take();
        earlier.refused(refused);
        assert!(earlier.take() > refused);
    }
}
