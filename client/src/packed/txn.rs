//! Transactions: compares, and the operations for either outcome.

use super::{Malformed, Ops, Reader};
use crate::v1::Code;

/// What a compare looks at. A key that is absent has the indexes 0 and no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Target {
    /// The value; a directory has none. Operand: bytes.
    Value = 1,
    /// Operand: a number.
    UpdateIndex = 2,
    /// Operand: a number.
    CreateIndex = 3,
    /// The fencing token of the lock's holder; 0 when the lock is free. Operand: a number.
    LockToken = 4,
}

/// How the target has to relate to the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Relation {
    Equal = 0,
    NotEqual = 1,
    Less = 2,
    Greater = 3,
}

/// One compare. A value that is not there equals nothing, and is neither less nor greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare<'a> {
    /// What is looked at.
    pub target: Target,
    /// How it has to relate to the operand.
    pub relation: Relation,
    /// The key.
    pub key: &'a [u8],
    /// Bytes for [`Target::Value`], otherwise a number of 8 bytes.
    pub operand: &'a [u8],
}

impl<'a> Compare<'a> {
    /// Appends the packed form.
    pub fn pack(&self, out: &mut Vec<u8>) {
        out.push(self.target as u8);
        out.push(self.relation as u8);
        out.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.operand.len() as u32).to_le_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.operand);
    }

    /// The operand as a number.
    pub fn number(&self) -> Option<u64> {
        self.operand.try_into().ok().map(u64::from_le_bytes)
    }

    fn read(reader: &mut Reader<'a>) -> Option<Compare<'a>> {
        let target = match reader.u8()? {
            1 => Target::Value,
            2 => Target::UpdateIndex,
            3 => Target::CreateIndex,
            4 => Target::LockToken,
            _ => return None,
        };
        let relation = match reader.u8()? {
            0 => Relation::Equal,
            1 => Relation::NotEqual,
            2 => Relation::Less,
            3 => Relation::Greater,
            _ => return None,
        };
        let (key_len, operand_len) = (reader.u16()? as usize, reader.u32()? as usize);
        let compare =
            Compare { target, relation, key: reader.take(key_len)?, operand: reader.take(operand_len)? };
        (target == Target::Value || compare.number().is_some()).then_some(compare)
    }
}

/// The value of a transaction, borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn<'a> {
    /// All must hold for the first branch.
    pub compares: Vec<Compare<'a>>,
    /// Packed operations for when they hold.
    pub then_ops: &'a [u8],
    /// Packed operations for when they do not.
    pub else_ops: &'a [u8],
}

impl<'a> Txn<'a> {
    /// Appends the packed form.
    pub fn pack(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.compares.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.then_ops.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.else_ops.len() as u32).to_le_bytes());
        self.compares.iter().for_each(|compare| compare.pack(out));
        out.extend_from_slice(self.then_ops);
        out.extend_from_slice(self.else_ops);
    }

    /// Reads the value of a transaction.
    ///
    /// # Errors
    /// When the bytes do not follow the layout. The operations are not read.
    pub fn read(value: &'a [u8]) -> Result<Txn<'a>, Malformed> {
        let mut reader = Reader { bytes: value, at: 0 };
        let read = Txn::read_parts(&mut reader).filter(|_| reader.is_done());
        read.ok_or(Malformed { offset: reader.at, what: "a transaction" })
    }

    fn read_parts(reader: &mut Reader<'a>) -> Option<Txn<'a>> {
        let compares = reader.u16()?;
        let (then_len, else_len) = (reader.u32()? as usize, reader.u32()? as usize);
        let compares = (0..compares).map(|_| Compare::read(reader)).collect::<Option<_>>()?;
        Some(Txn { compares, then_ops: reader.take(then_len)?, else_ops: reader.take(else_len)? })
    }

    /// The operations of a branch.
    pub fn branch(&self, succeeded: bool) -> Ops<'a> {
        super::ops(if succeeded { self.then_ops } else { self.else_ops })
    }
}

/// The result of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnResult<'a> {
    /// SUCCESS, or why nothing has happened: the code of the operation that failed, FENCED,
    /// SESSION_EXPIRED.
    pub code: Code,
    /// Whether the compares held.
    pub succeeded: bool,
    /// Which operation of the branch, from 0, made it fail.
    pub failed_op: Option<u16>,
    /// Packed results of the operations of the branch taken; empty unless the code is SUCCESS.
    pub results: &'a [u8],
}

const NO_OP: u16 = u16::MAX;

impl<'a> TxnResult<'a> {
    /// Appends the packed form.
    pub fn pack(&self, out: &mut Vec<u8>) {
        out.push(self.code as u8);
        out.push(u8::from(self.succeeded));
        out.extend_from_slice(&self.failed_op.unwrap_or(NO_OP).to_le_bytes());
        out.extend_from_slice(&(self.results.len() as u32).to_le_bytes());
        out.extend_from_slice(self.results);
    }

    pub(super) fn read(code: Code, reader: &mut Reader<'a>) -> Option<TxnResult<'a>> {
        let succeeded = reader.u8()? != 0;
        let failed_op = Some(reader.u16()?).filter(|op| *op != NO_OP);
        let len = reader.u32()? as usize;
        Some(TxnResult { code, succeeded, failed_op, results: reader.take(len)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::{Kind, Op, PackedResult, results};

    #[test]
    fn transactions_round_trip_and_cut_ones_are_errors() {
        let mut ops = Vec::new();
        Op::new(Kind::Put, b"k", b"v").pack(&mut ops);
        let number = 7u64.to_le_bytes();
        let compares = vec![
            Compare { target: Target::Value, relation: Relation::NotEqual, key: b"a", operand: b"x" },
            Compare { target: Target::UpdateIndex, relation: Relation::Less, key: b"b", operand: &number },
        ];
        let txn = Txn { compares, then_ops: &ops, else_ops: b"" };
        let mut bytes = Vec::new();
        txn.pack(&mut bytes);
        assert_eq!(Txn::read(&bytes), Ok(txn.clone()));
        assert_eq!(txn.branch(true).count(), 1);
        assert_eq!(txn.branch(false).count(), 0);
        for cut in 0..bytes.len() {
            assert!(Txn::read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_compare_of_an_index_needs_a_number() {
        let compare =
            Compare { target: Target::CreateIndex, relation: Relation::Equal, key: b"a", operand: b"7" };
        let mut bytes = Vec::new();
        Txn { compares: vec![compare], then_ops: b"", else_ops: b"" }.pack(&mut bytes);
        assert!(Txn::read(&bytes).is_err());
    }

    #[test]
    fn results_round_trip() {
        let all = [
            TxnResult { code: Code::Success, succeeded: true, failed_op: None, results: &[0, 2] },
            TxnResult { code: Code::DirExists, succeeded: false, failed_op: Some(3), results: b"" },
        ];
        let mut bytes = Vec::new();
        all.iter().for_each(|result| result.pack(&mut bytes));
        let mut reader = results(&bytes);
        for result in all {
            assert_eq!(reader.next(Kind::Txn), Ok(PackedResult::Txn(result)));
        }
    }
}
