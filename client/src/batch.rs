//! Batches: small ones travel in frames like single operations, large ones as unary calls.

use crate::answer::{BatchRead, BatchWritten, Node, OpAnswer};
use crate::error::Error;
use crate::frame::ManyResults;
use crate::group::Group;
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_ITEMS_MAX, FRAME_BYTES_TARGET, check_key, check_key_or_root, check_value,
};
use crate::packed::{self, Kind, Op};
use crate::unary::{Attempt, Kv};
use crate::v1::{self, Code};
use bytes::Bytes;

/// Checks and packs the items of a batch of writes.
#[derive(Default)]
pub(crate) struct Packer {
    ops: Vec<u8>,
    items: usize,
    bytes: usize,
}

impl Packer {
    pub fn push(&mut self, op: &Op<'_>) -> Result<(), Error> {
        self.check(op)?;
        op.pack(&mut self.ops);
        Ok(())
    }

    /// Checks an item, and the batch with it.
    pub fn check(&mut self, op: &Op<'_>) -> Result<(), Error> {
        check_key(op.key).map_err(|code| self.refused(code))?;
        if op.kind == Kind::Put {
            check_value(op.value).map_err(|code| self.refused(code))?;
        }
        if op.expect_index.is_some() || op.ttl_ms.is_some() {
            return Err(Error::invalid("items of a batch have no expected index and no time to live"));
        }
        self.items += 1;
        self.bytes += op.key.len() + op.value.len();
        check_size(self.items, self.bytes)
    }

    pub fn check_not_empty(&self) -> Result<(), Error> {
        check_not_empty(self.items)
    }

    fn refused(&self, code: Code) -> Error {
        Error::refused(code).context(format!("item {} of the batch", self.items))
    }
}

fn check_size(items: usize, bytes: usize) -> Result<(), Error> {
    if items > BATCH_ITEMS_MAX {
        return Err(Error::invalid(format!(
            "a batch has at most {BATCH_ITEMS_MAX} items; split it into several"
        )));
    }
    if bytes > BATCH_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a batch has at most {BATCH_BYTES_MAX} bytes of keys and values; split it into several"
        )));
    }
    Ok(())
}

fn check_not_empty(items: usize) -> Result<(), Error> {
    if items == 0 { Err(Error::invalid("a batch needs at least 1 item")) } else { Ok(()) }
}

/// Sends a packed batch of puts or of removes.
pub(crate) async fn write(group: &Group, batch: Packer) -> Result<BatchWritten, Error> {
    batch.check_not_empty()?;
    if batch.ops.len() > FRAME_BYTES_TARGET {
        return write_unary(group, &batch.ops.into()).await;
    }
    let result = group.call(&Op::new(Kind::Batch, b"", &batch.ops)).await?;
    match result.answer {
        OpAnswer::Batch(Code::Success, codes) => {
            written(result.index, codes.iter().map(|&code| i32::from(code)))
        }
        _ => Err(Error::refused(result.code())),
    }
}

fn written(index: u64, codes: impl Iterator<Item = i32>) -> Result<BatchWritten, Error> {
    let codes: Result<Vec<Code>, _> = codes.map(Code::try_from).collect();
    let codes = codes.map_err(|error| {
        let message = format!("the store answered with a code that this client does not know: {error}");
        Error::outcome_unknown(v1::failure::Reason::Internal, message)
    })?;
    Ok(BatchWritten { index, codes })
}

async fn write_unary(group: &Group, ops: &Bytes) -> Result<BatchWritten, Error> {
    let first = packed::ops(ops).next().and_then(Result::ok);
    let response = if first.is_some_and(|op| op.kind == Kind::Remove) {
        let request = v1::BatchRemoveRequest { guard: guard(group), ..remove_request(group.id, ops) };
        let call = move |mut kv: Kv, attempt: Attempt| {
            let request = v1::BatchRemoveRequest { session: attempt.session.clone(), ..request.clone() };
            async move { kv.batch_remove(attempt.wrap(request)).await }
        };
        group.unary_write(call).await?
    } else {
        let request = v1::BatchPutRequest { guard: guard(group), ..put_request(group.id, ops) };
        let call = move |mut kv: Kv, attempt: Attempt| {
            let request = v1::BatchPutRequest { session: attempt.session.clone(), ..request.clone() };
            async move { kv.batch_put(attempt.wrap(request)).await }
        };
        group.unary_write(call).await?
    };
    match response.code() {
        Code::Success => written(response.index, response.codes.into_iter()),
        code => Err(Error::refused(code)),
    }
}

fn guard(group: &Group) -> Option<v1::Guard> {
    let token = group.guard.as_ref()?;
    Some(v1::Guard { lock: token.lock().clone(), fencing_token: token.fencing_token() })
}

fn put_request(group_id: u32, ops: &Bytes) -> v1::BatchPutRequest {
    let mut request = v1::BatchPutRequest { group_id, ..Default::default() };
    for op in packed::ops(ops).flatten() {
        request.create_parents |= op.create_parents;
        request.items.push(v1::KeyValue { key: ops.slice_ref(op.key), value: ops.slice_ref(op.value) });
    }
    request
}

fn remove_request(group_id: u32, ops: &Bytes) -> v1::BatchRemoveRequest {
    let keys = packed::ops(ops).flatten().map(|op| ops.slice_ref(op.key)).collect();
    v1::BatchRemoveRequest { group_id, keys, ..Default::default() }
}

/// Reads many keys at one point.
pub(crate) async fn read(group: &Group, keys: Vec<Bytes>) -> Result<BatchRead, Error> {
    check_not_empty(keys.len())?;
    let mut bytes = 0;
    for (item, key) in keys.iter().enumerate() {
        check_key_or_root(key)
            .map_err(|code| Error::refused(code).context(format!("item {item} of the batch")))?;
        bytes += key.len();
    }
    check_size(keys.len(), bytes)?;
    match group.handle.shared().call_gets(group, &keys).await {
        Some(results) => from_frame(keys, results?),
        None => read_unary(group, keys).await,
    }
}

fn from_frame(keys: Vec<Bytes>, results: ManyResults) -> Result<BatchRead, Error> {
    let nodes: Result<Vec<_>, Error> = keys
        .into_iter()
        .zip(results.answers)
        .map(|(key, answer)| match answer {
            OpAnswer::Node(node) => Ok(Some(Node { key, ..node })),
            OpAnswer::Code(Code::NotFound) => Ok(None),
            other => Err(Error::refused(other.code())),
        })
        .collect();
    Ok(BatchRead { index: results.index, lag_ms: results.lag_ms, nodes: nodes? })
}

async fn read_unary(group: &Group, keys: Vec<Bytes>) -> Result<BatchRead, Error> {
    let request =
        v1::BatchGetRequest { group_id: group.id, keys: keys.clone(), consistency: group.consistency.into() };
    let response = group
        .unary_read(move |mut kv, attempt| {
            let request = attempt.wrap(request.clone());
            async move { kv.batch_get(request).await }
        })
        .await?;
    let (index, lag_ms) = (response.index, response.lag_ms);
    let nodes: Result<Vec<_>, Error> = response.items.into_iter().map(item_node).collect();
    Ok(BatchRead { index, lag_ms, nodes: nodes? })
}

fn item_node(item: v1::BatchGetItem) -> Result<Option<Node>, Error> {
    match item.code() {
        Code::Success => Ok(item.node.map(Node::from)),
        Code::NotFound => Ok(None),
        code => Err(Error::refused(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_beyond_a_limit_is_refused_naming_it() {
        let mut packer = Packer::default();
        for _ in 0..BATCH_ITEMS_MAX {
            packer.push(&Op::new(Kind::Remove, b"a", b"")).unwrap();
        }
        let error = packer.push(&Op::new(Kind::Remove, b"a", b"")).unwrap_err();
        assert!(error.message().contains("1024 items"), "{error}");
        let mut packer = Packer::default();
        let value = vec![1; 1 << 20];
        let refused = (0..5).find_map(|_| packer.push(&Op::new(Kind::Put, b"a", &value)).err()).unwrap();
        assert!(refused.message().contains("4194304 bytes"), "{refused}");
    }

    #[test]
    fn bad_item_is_named_by_its_position() {
        let mut packer = Packer::default();
        packer.push(&Op::new(Kind::Put, b"a", b"1")).unwrap();
        let error = packer.push(&Op::new(Kind::Put, b"a..b", b"1")).unwrap_err();
        assert_eq!(error.code(), Some(Code::InvalidKey));
        assert!(error.message().starts_with("item 1"), "{error}");
    }

    #[test]
    fn large_batch_turns_into_the_same_unary_request() {
        let mut packer = Packer::default();
        packer.push(&Op { create_parents: true, ..Op::new(Kind::Put, b"a.b", b"1") }).unwrap();
        packer.push(&Op { create_parents: true, ..Op::new(Kind::Put, b"c", b"22") }).unwrap();
        let request = put_request(3, &packer.ops.into());
        assert!(request.create_parents);
        assert_eq!(request.items.len(), 2);
        assert_eq!(request.items[1].key, "c");
        assert_eq!(request.items[1].value, "22");
    }
}
