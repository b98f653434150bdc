//! Packed operations and results: the layout of `Frame.ops` and `FrameReply.results`, and of the
//! commands in the log. It is written down in `proto/dtkv/v1/packed.md`.

pub mod delivery;
pub mod expiry;
pub mod lock;
pub mod scope;
pub mod txn;

use crate::v1::Code;

/// Bytes in front of every operation: kind, flags, key length, value length.
pub const HEADER_BYTES: usize = 8;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    Put = 1,
    Remove = 2,
    Mkdir = 3,
    CompareAndSet = 4,
    Batch = 5,
    Get = 6,
    UpdateTtl = 7,
    TryLock = 8,
    Unlock = 9,
    UpdateLease = 10,
    KeepAlive = 11,
    DropOwner = 12,
    Txn = 13,
    /// Only leaders propose it; see [`expiry`].
    Expire = 14,
    /// Makes the operations behind it happen once; has no result. See [`scope`].
    Scope = 15,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Put,
            2 => Kind::Remove,
            3 => Kind::Mkdir,
            4 => Kind::CompareAndSet,
            5 => Kind::Batch,
            6 => Kind::Get,
            7 => Kind::UpdateTtl,
            8 => Kind::TryLock,
            9 => Kind::Unlock,
            10 => Kind::UpdateLease,
            11 => Kind::KeepAlive,
            12 => Kind::DropOwner,
            13 => Kind::Txn,
            14 => Kind::Expire,
            15 => Kind::Scope,
            _ => return None,
        })
    }
}

const SESSION: u8 = 0x01;
const TTL: u8 = 0x02;
const EXPECT_INDEX: u8 = 0x04;
const EXPECT_VALUE: u8 = 0x08;
const NEW_VALUE: u8 = 0x10;
const CREATE_PARENTS: u8 = 0x20;
const RECURSIVE: u8 = 0x40;
const GUARD: u8 = 0x80;

/// One operation, borrowed from packed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op<'a> {
    /// What it does.
    pub kind: Kind,
    /// The key; empty for operations that have none.
    pub key: &'a [u8],
    /// Put: the value. Compare-and-set: the new value. Batch: packed operations. Others: see
    /// `packed.md`.
    pub value: &'a [u8],
    /// Client id (16 bytes) and sequence.
    pub session: Option<([u8; 16], u64)>,
    /// Milliseconds.
    pub ttl_ms: Option<u64>,
    /// Only while the update index is this one; 0 = must not exist.
    pub expect_index: Option<u64>,
    /// Compare-and-set by value.
    pub expect: Option<&'a [u8]>,
    /// Compare-and-set: false = delete.
    pub has_new_value: bool,
    /// Make missing parents.
    pub create_parents: bool,
    /// Remove the whole subtree.
    pub recursive: bool,
    /// Fencing token and lock key.
    pub guard: Option<(u64, &'a [u8])>,
}

impl<'a> Op<'a> {
    /// An operation without options.
    pub fn new(kind: Kind, key: &'a [u8], value: &'a [u8]) -> Op<'a> {
        Op {
            kind,
            key,
            value,
            session: None,
            ttl_ms: None,
            expect_index: None,
            expect: None,
            has_new_value: false,
            create_parents: false,
            recursive: false,
            guard: None,
        }
    }

    fn flags(&self) -> u8 {
        let mut flags = 0;
        let mut set = |on: bool, flag: u8| flags |= if on { flag } else { 0 };
        set(self.session.is_some(), SESSION);
        set(self.ttl_ms.is_some(), TTL);
        set(self.expect_index.is_some(), EXPECT_INDEX);
        set(self.expect.is_some(), EXPECT_VALUE);
        set(self.has_new_value, NEW_VALUE);
        set(self.create_parents, CREATE_PARENTS);
        set(self.recursive, RECURSIVE);
        set(self.guard.is_some(), GUARD);
        flags
    }

    /// Bytes of the packed form.
    pub fn packed_len(&self) -> usize {
        HEADER_BYTES
            + self.key.len()
            + self.value.len()
            + self.session.map_or(0, |_| 24)
            + self.ttl_ms.map_or(0, |_| 8)
            + self.expect_index.map_or(0, |_| 8)
            + self.expect.map_or(0, |expect| 4 + expect.len())
            + self.guard.map_or(0, |(_, lock)| 10 + lock.len())
    }

    /// Appends the packed form. Lengths must have been checked: a key longer than 65,535 bytes or
    /// a value longer than 4 GiB does not fit the layout and is cut by the caller's limits.
    pub fn pack(&self, out: &mut Vec<u8>) {
        out.reserve(HEADER_BYTES + self.key.len() + self.value.len());
        let flags = self.flags();
        out.push(self.kind as u8);
        out.push(flags);
        out.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.value.len() as u32).to_le_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
        if flags != 0 {
            self.pack_extensions(out);
        }
    }

    fn pack_extensions(&self, out: &mut Vec<u8>) {
        if let Some((client, sequence)) = self.session {
            out.extend_from_slice(&client);
            out.extend_from_slice(&sequence.to_le_bytes());
        }
        if let Some(ttl) = self.ttl_ms {
            out.extend_from_slice(&ttl.to_le_bytes());
        }
        if let Some(index) = self.expect_index {
            out.extend_from_slice(&index.to_le_bytes());
        }
        if let Some(expect) = self.expect {
            out.extend_from_slice(&(expect.len() as u32).to_le_bytes());
            out.extend_from_slice(expect);
        }
        if let Some((token, lock)) = self.guard {
            out.extend_from_slice(&token.to_le_bytes());
            out.extend_from_slice(&(lock.len() as u16).to_le_bytes());
            out.extend_from_slice(lock);
        }
    }
}

/// The bytes do not follow the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packed bytes are malformed at offset {offset}: {what}")]
pub struct Malformed {
    /// Offset of the operation or result that could not be read.
    pub offset: usize,
    /// What was expected.
    pub what: &'static str,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(n)?;
        let slice = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(slice)
    }
    fn is_done(&self) -> bool {
        self.at == self.bytes.len()
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|a| a[0])
    }
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Iterates over packed operations. After an error it ends.
pub struct Ops<'a> {
    reader: Reader<'a>,
}

/// Reads packed operations one after the other.
pub fn ops(bytes: &[u8]) -> Ops<'_> {
    Ops { reader: Reader { bytes, at: 0 } }
}

impl<'a> Ops<'a> {
    /// Offset of the next operation.
    pub fn offset(&self) -> usize {
        self.reader.at
    }

    #[inline]
    fn read(&mut self) -> Option<Op<'a>> {
        let header: [u8; HEADER_BYTES] = self.reader.array()?;
        let kind = Kind::from_byte(header[0])?;
        let flags = header[1];
        let key_len = u16::from_le_bytes([header[2], header[3]]) as usize;
        let value_len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let key = self.reader.take(key_len)?;
        let value = self.reader.take(value_len)?;
        let mut op = Op::new(kind, key, value);
        if flags != 0 {
            self.read_extensions(flags, &mut op)?;
        }
        Some(op)
    }

    fn read_extensions(&mut self, flags: u8, op: &mut Op<'a>) -> Option<()> {
        let reader = &mut self.reader;
        if flags & SESSION != 0 {
            op.session = Some((reader.array()?, reader.u64()?));
        }
        if flags & TTL != 0 {
            op.ttl_ms = Some(reader.u64()?);
        }
        if flags & EXPECT_INDEX != 0 {
            op.expect_index = Some(reader.u64()?);
        }
        if flags & EXPECT_VALUE != 0 {
            let len = reader.u32()? as usize;
            op.expect = Some(reader.take(len)?);
        }
        op.has_new_value = flags & NEW_VALUE != 0;
        op.create_parents = flags & CREATE_PARENTS != 0;
        op.recursive = flags & RECURSIVE != 0;
        if flags & GUARD != 0 {
            let token = reader.u64()?;
            let len = reader.u16()? as usize;
            op.guard = Some((token, reader.take(len)?));
        }
        Some(())
    }
}

impl<'a> Iterator for Ops<'a> {
    type Item = Result<Op<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.at >= self.reader.bytes.len() {
            return None;
        }
        let offset = self.reader.at;
        let op = self.read();
        if op.is_none() {
            self.reader.at = self.reader.bytes.len();
        }
        Some(op.ok_or(Malformed { offset, what: "an operation" }))
    }
}

/// A node in a get result, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct PackedNode<'a> {
    pub dir: bool,
    pub temp: bool,
    pub lock: bool,
    pub create_index: u64,
    pub create_time_ms: u64,
    pub update_index: u64,
    pub update_time_ms: u64,
    pub child_count: u32,
    pub value: &'a [u8],
    /// Remaining TTL in ms and owner.
    pub lease: Option<(u64, [u8; 16])>,
}

const NODE_DIR: u8 = 1;
const NODE_TEMP: u8 = 2;
const NODE_LOCK: u8 = 4;
const NODE_LEASE: u8 = 8;

impl PackedNode<'_> {
    /// Appends a SUCCESS code and the node.
    pub fn pack(&self, out: &mut Vec<u8>) {
        let mut flags = 0;
        let mut set = |on: bool, flag: u8| flags |= if on { flag } else { 0 };
        set(self.dir, NODE_DIR);
        set(self.temp, NODE_TEMP);
        set(self.lock, NODE_LOCK);
        set(self.lease.is_some(), NODE_LEASE);
        out.reserve(42 + self.value.len());
        out.push(Code::Success as u8);
        out.push(flags);
        for number in [self.create_index, self.create_time_ms, self.update_index, self.update_time_ms] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.child_count.to_le_bytes());
        out.extend_from_slice(&(self.value.len() as u32).to_le_bytes());
        out.extend_from_slice(self.value);
        if let Some((ttl, owner)) = self.lease {
            out.extend_from_slice(&ttl.to_le_bytes());
            out.extend_from_slice(&owner);
        }
    }
}

/// Appends the result of a batch: its code and the items' codes.
pub fn pack_batch_result(code: Code, items: &[u8], out: &mut Vec<u8>) {
    out.push(code as u8);
    out.extend_from_slice(&(items.len() as u16).to_le_bytes());
    out.extend_from_slice(items);
}

/// Appends the result of a try-lock or of an update of a lease.
pub fn pack_token_result(code: Code, token: u64, out: &mut Vec<u8>) {
    out.push(code as u8);
    out.extend_from_slice(&token.to_le_bytes());
}

/// Appends the result of an operation on everything that a client owns, or of an expiry.
pub fn pack_count_result(code: Code, count: u32, out: &mut Vec<u8>) {
    out.push(code as u8);
    out.extend_from_slice(&count.to_le_bytes());
}

/// Appends the result of an operation of this kind that was refused as a whole.
pub fn pack_refusal(kind: Kind, code: Code, out: &mut Vec<u8>) {
    match kind {
        Kind::Batch => pack_batch_result(code, &[], out),
        Kind::TryLock | Kind::UpdateLease => pack_token_result(code, 0, out),
        Kind::KeepAlive | Kind::DropOwner | Kind::Expire => pack_count_result(code, 0, out),
        Kind::Txn => txn::TxnResult { code, succeeded: false, failed_op: None, results: &[] }.pack(out),
        Kind::Scope => {}
        _ => out.push(code as u8),
    }
}

/// One result, borrowed from packed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedResult<'a> {
    /// Put, remove, mkdir, compare-and-set, update-ttl, unlock; a get that found nothing.
    Code(Code),
    /// Try-lock, update-lease: the code, and the fencing token of the grant that the caller holds; 0
    /// when it holds none.
    Token(Code, u64),
    /// Keep-alive, drop-owner, expire: how many nodes were renewed or removed.
    Count(Code, u32),
    /// Transaction.
    Txn(txn::TxnResult<'a>),
    /// Batch: its code and a code byte for each item.
    Batch(Code, &'a [u8]),
    /// A get that found a node.
    Node(PackedNode<'a>),
}

/// Reads packed results; the caller knows the kinds because it sent the operations.
pub struct Results<'a> {
    reader: Reader<'a>,
}

/// Starts to read packed results.
pub fn results(bytes: &[u8]) -> Results<'_> {
    Results { reader: Reader { bytes, at: 0 } }
}

impl<'a> Results<'a> {
    /// Offset of the next result.
    pub fn offset(&self) -> usize {
        self.reader.at
    }

    /// The result of an operation of this kind.
    ///
    /// # Errors
    /// When the bytes end too early or hold an unknown code.
    #[inline]
    pub fn next(&mut self, kind: Kind) -> Result<PackedResult<'a>, Malformed> {
        let offset = self.reader.at;
        self.read(kind).ok_or(Malformed { offset, what: "a result" })
    }

    fn read(&mut self, kind: Kind) -> Option<PackedResult<'a>> {
        let code = Code::try_from(i32::from(self.reader.u8()?)).ok()?;
        Some(match kind {
            Kind::Batch => {
                let n = self.reader.u16()? as usize;
                PackedResult::Batch(code, self.reader.take(n)?)
            }
            Kind::Get if code == Code::Success => PackedResult::Node(self.read_node()?),
            Kind::TryLock | Kind::UpdateLease => PackedResult::Token(code, self.reader.u64()?),
            Kind::KeepAlive | Kind::DropOwner | Kind::Expire => PackedResult::Count(code, self.reader.u32()?),
            Kind::Txn => PackedResult::Txn(txn::TxnResult::read(code, &mut self.reader)?),
            _ => PackedResult::Code(code),
        })
    }

    fn read_node(&mut self) -> Option<PackedNode<'a>> {
        let reader = &mut self.reader;
        let flags = reader.u8()?;
        let mut node = PackedNode {
            dir: flags & NODE_DIR != 0,
            temp: flags & NODE_TEMP != 0,
            lock: flags & NODE_LOCK != 0,
            create_index: reader.u64()?,
            create_time_ms: reader.u64()?,
            update_index: reader.u64()?,
            update_time_ms: reader.u64()?,
            child_count: reader.u32()?,
            ..PackedNode::default()
        };
        let len = reader.u32()? as usize;
        node.value = reader.take(len)?;
        if flags & NODE_LEASE != 0 {
            node.lease = Some((reader.u64()?, reader.array()?));
        }
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn results_of_every_kind_round_trip() {
        let node = PackedNode {
            dir: false,
            temp: true,
            create_index: 1,
            update_index: 2,
            value: b"abc",
            lease: Some((5, [7; 16])),
            ..PackedNode::default()
        };
        let mut bytes = vec![Code::SuccessOverwrite as u8];
        pack_batch_result(Code::Success, &[0, 1], &mut bytes);
        node.pack(&mut bytes);
        bytes.push(Code::NotFound as u8);
        let mut r = results(&bytes);
        assert_eq!(r.next(Kind::Put), Ok(PackedResult::Code(Code::SuccessOverwrite)));
        assert_eq!(r.next(Kind::Batch), Ok(PackedResult::Batch(Code::Success, &[0, 1])));
        assert_eq!(r.next(Kind::Get), Ok(PackedResult::Node(node)));
        assert_eq!(r.next(Kind::Get), Ok(PackedResult::Code(Code::NotFound)));
        assert!(r.next(Kind::Put).is_err());
    }

    #[test]
    fn a_refusal_has_the_shape_of_its_kind() {
        let kinds: Vec<Kind> = (1..=14).filter_map(Kind::from_byte).collect();
        assert_eq!(kinds.len(), 14);
        let mut bytes = Vec::new();
        kinds.iter().for_each(|kind| pack_refusal(*kind, Code::SessionExpired, &mut bytes));
        let mut reader = results(&bytes);
        for kind in kinds {
            let code = match reader.next(kind) {
                Ok(PackedResult::Code(code) | PackedResult::Token(code, 0)) => code,
                Ok(PackedResult::Count(code, 0) | PackedResult::Batch(code, &[])) => code,
                Ok(PackedResult::Txn(result)) => result.code,
                other => panic!("{kind:?}: {other:?}"),
            };
            assert_eq!(code, Code::SessionExpired, "{kind:?}");
        }
        assert_eq!(reader.offset(), bytes.len());
    }

    proptest! {
        #[test]
        fn operations_round_trip(key: Vec<u8>, value: Vec<u8>, session: Option<([u8; 16], u64)>,
                                 ttl_ms: Option<u64>, expect_index: Option<u64>, expect: Option<Vec<u8>>,
                                 has_new_value: bool, create_parents: bool, recursive: bool,
                                 guard: Option<(u64, Vec<u8>)>) {
            let op = Op { kind: Kind::CompareAndSet, key: &key, value: &value, session, ttl_ms, expect_index,
                expect: expect.as_deref(), has_new_value, create_parents, recursive,
                guard: guard.as_ref().map(|(token, lock)| (*token, lock.as_slice())) };
            let mut bytes = Vec::new();
            op.pack(&mut bytes);
            prop_assert_eq!(bytes.len(), op.packed_len());
            op.pack(&mut bytes);
            let read: Vec<_> = ops(&bytes).collect();
            prop_assert_eq!(read, vec![Ok(op), Ok(op)]);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            for op in ops(&bytes) { let _ = op; }
            let mut r = results(&bytes);
            while r.offset() < bytes.len() && r.next(Kind::Get).is_ok() {}
        }
    }
}
