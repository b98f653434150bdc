//! What a stream of watches delivers: events and states, each for one or more watches.

use super::{Malformed, Reader};

/// What a delivery tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum DeliveryKind {
    Put = 1,
    Remove = 2,
    Expire = 3,
    Mkdir = 4,
    StateNotExists = 16,
    StateValue = 17,
    StateDirectory = 18,
}

impl DeliveryKind {
    fn from_byte(byte: u8) -> Option<DeliveryKind> {
        Some(match byte {
            1 => DeliveryKind::Put,
            2 => DeliveryKind::Remove,
            3 => DeliveryKind::Expire,
            4 => DeliveryKind::Mkdir,
            16 => DeliveryKind::StateNotExists,
            17 => DeliveryKind::StateValue,
            18 => DeliveryKind::StateDirectory,
            _ => return None,
        })
    }

    /// A state, not an event.
    pub fn is_state(self) -> bool {
        self as u8 >= DeliveryKind::StateNotExists as u8
    }
}

const DIR: u8 = 1;

/// One delivery without its watches, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// What it tells.
    pub kind: DeliveryKind,
    /// The node is, or was, a directory.
    pub dir: bool,
    /// Of the change, or the update index of the state.
    pub index: u64,
    /// Events: leader's clock when it accepted the operation, ms.
    pub time_ms: u64,
    /// Events: update index of the node before the change; 0 = it did not exist.
    pub prev_index: u64,
    /// Events: the key that changed.
    pub key: &'a [u8],
    /// The new value; empty when there is none, or it was not asked for.
    pub value: &'a [u8],
}

/// Bytes of a delivery to one watch, without key and value.
pub const DELIVERY_BYTES: usize = 2 + 4 + 8 + 24;

impl Delivery<'_> {
    /// Appends the packed form, for these watches (at most 65,535).
    pub fn pack(&self, watches: &[u32], out: &mut Vec<u8>) {
        out.reserve(DELIVERY_BYTES + 4 * watches.len() + self.key.len() + self.value.len());
        out.extend_from_slice(&(watches.len() as u16).to_le_bytes());
        for id in watches {
            out.extend_from_slice(&id.to_le_bytes());
        }
        out.push(self.kind as u8);
        out.push(if self.dir { DIR } else { 0 });
        out.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.value.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.prev_index.to_le_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
    }
}

/// The watches that a delivery is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchIds<'a>(&'a [u8]);

impl WatchIds<'_> {
    /// The ids, in the order in which they were packed.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id))
    }
}

/// Iterates over packed deliveries. After an error it ends.
pub struct Deliveries<'a> {
    reader: Reader<'a>,
}

/// Reads packed deliveries one after the other.
pub fn deliveries(bytes: &[u8]) -> Deliveries<'_> {
    Deliveries { reader: Reader { bytes, at: 0 } }
}

impl<'a> Deliveries<'a> {
    fn read(&mut self) -> Option<(WatchIds<'a>, Delivery<'a>)> {
        let reader = &mut self.reader;
        let count = reader.u16()? as usize;
        let ids = WatchIds(reader.take(count * 4)?);
        let kind = DeliveryKind::from_byte(reader.u8()?)?;
        let flags = reader.u8()?;
        let key_len = reader.u16()? as usize;
        let value_len = reader.u32()? as usize;
        let (index, time_ms, prev_index) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (key, value) = (reader.take(key_len)?, reader.take(value_len)?);
        let dir = flags & DIR != 0;
        Some((ids, Delivery { kind, dir, index, time_ms, prev_index, key, value }))
    }
}

impl<'a> Iterator for Deliveries<'a> {
    type Item = Result<(WatchIds<'a>, Delivery<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.is_done() {
            return None;
        }
        let offset = self.reader.at;
        let read = self.read();
        if read.is_none() {
            self.reader.at = self.reader.bytes.len();
        }
        Some(read.ok_or(Malformed { offset, what: "a delivery" }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = DeliveryKind> {
        prop::sample::select(vec![1u8, 2, 3, 4, 16, 17, 18])
            .prop_map(|byte| DeliveryKind::from_byte(byte).unwrap())
    }

    #[test]
    fn layout_is_as_written_down() {
        let delivery = Delivery {
            kind: DeliveryKind::Mkdir,
            dir: true,
            index: 5,
            time_ms: 6,
            prev_index: 7,
            key: b"k",
            value: b"",
        };
        let mut out = Vec::new();
        delivery.pack(&[258], &mut out);
        let mut expected = vec![1, 0, 2, 1, 0, 0, 4, 1, 1, 0, 0, 0, 0, 0];
        for number in [5u64, 6, 7] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        expected.push(b'k');
        assert_eq!(out, expected);
        assert_eq!(out.len(), DELIVERY_BYTES + 1);
        assert!(deliveries(&out[..out.len() - 1]).next().unwrap().is_err());
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(
            kind in kinds(), dir: bool, index: u64, time_ms: u64, prev_index: u64,
            key in prop::collection::vec(any::<u8>(), 0..20),
            value in prop::collection::vec(any::<u8>(), 0..40),
            ids in prop::collection::vec(any::<u32>(), 0..5),
        ) {
            let delivery = Delivery { kind, dir, index, time_ms, prev_index, key: &key, value: &value };
            let mut out = Vec::new();
            delivery.pack(&ids, &mut out);
            delivery.pack(&[9], &mut out);
            let read: Vec<_> = deliveries(&out).map(Result::unwrap).collect();
            prop_assert_eq!(read.len(), 2);
            prop_assert_eq!(read[0].1, delivery);
            prop_assert_eq!(read[0].0.iter().collect::<Vec<_>>(), ids);
            prop_assert_eq!(read[1].0.iter().collect::<Vec<_>>(), [9]);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = deliveries(&bytes).count();
        }
    }
}
