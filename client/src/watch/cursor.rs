//! How far an event watch is. Pure.

/// The first index that is wanted, and how much of it is known. The events of one index come in the
/// same order from every replica, so that counting them tells them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    next: Option<u64>,
    /// Events of `next` that have been taken.
    seen: u32,
    /// Those of them that will be told again.
    skip: u32,
}

impl Cursor {
    /// Everything from an index on; None: from the registration on.
    pub fn new(from: Option<u64>) -> Cursor {
        Cursor { next: from, seen: 0, skip: 0 }
    }

    /// What to register with, now.
    pub fn register(&mut self) -> Option<u64> {
        self.skip = self.seen;
        self.next
    }

    /// Index up to which nothing is wanted any more.
    pub fn known(&self) -> u64 {
        self.next.map_or(0, |next| next - 1)
    }

    /// The registration tells everything after this index.
    pub fn registered(&mut self, applied: u64) {
        self.next.get_or_insert(applied + 1);
    }

    /// Takes an event; false when it is known.
    pub fn take(&mut self, index: u64) -> bool {
        match self.next {
            Some(next) if index < next => false,
            Some(next) if index == next && self.skip > 0 => {
                self.skip -= 1;
                false
            }
            Some(next) if index == next => {
                self.seen += 1;
                true
            }
            _ => {
                *self = Cursor { next: Some(index), seen: 1, skip: 0 };
                true
            }
        }
    }

    /// Nothing up to this index is missing.
    pub fn passed(&mut self, index: u64) {
        if self.next.is_some_and(|next| next <= index) {
            *self = Cursor::new(Some(index + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events_of_a_half_known_index_are_told_apart_by_their_number() {
        let mut cursor = Cursor::new(None);
        cursor.registered(6);
        assert!(cursor.take(7) && cursor.take(9) && cursor.take(9));
        assert_eq!(cursor.register(), Some(9));
        let told: Vec<bool> = [9, 9, 9, 10].map(|index| cursor.take(index)).into();
        assert_eq!(told, [false, false, true, true]);
    }

    #[test]
    fn progress_moves_the_cursor_and_never_back() {
        let mut cursor = Cursor::new(None);
        cursor.passed(5);
        assert_eq!(cursor.register(), None, "not before the registration");
        cursor.registered(3);
        cursor.passed(5);
        assert_eq!(cursor.register(), Some(6));
        cursor.passed(4);
        assert_eq!(cursor.register(), Some(6));
    }

    proptest! {
        /// Lost streams, replicas that lag, and progress in between: each event exactly once.
        #[test]
        fn every_event_is_taken_once_whatever_is_told_again(
            sizes in prop::collection::vec(0usize..4, 1..20),
            breaks in prop::collection::vec((0usize..12, any::<bool>()), 0..12),
        ) {
            let log: Vec<(u64, usize)> = (1u64..).zip(&sizes)
                .flat_map(|(index, size)| (0..*size).map(move |at| (index, at))).collect();
            let mut cursor = Cursor::new(Some(1));
            let mut taken = Vec::new();
            for (length, with_progress) in breaks.into_iter().chain([(usize::MAX, true)]) {
                let from = cursor.register().unwrap();
                let told: Vec<_> = log.iter().filter(|(index, _)| *index >= from).take(length).collect();
                for event in &told {
                    if cursor.take(event.0) {
                        taken.push(**event);
                    }
                }
                if with_progress && let Some((last, _)) = told.last() {
                    let is_whole = log.iter().filter(|(index, _)| index == last).count()
                        == told.iter().filter(|(index, _)| index == last).count();
                    if is_whole { cursor.passed(*last) }
                }
            }
            prop_assert_eq!(taken, log);
        }
    }
}
