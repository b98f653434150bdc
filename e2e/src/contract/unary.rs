//! Unary gRPC calls with the plain generated stub.

use super::{Call, Told};
use dtkv_client::v1::kv_client::KvClient;
use dtkv_client::v1::{self, Code};
use tonic::Status;
use tonic::transport::Channel;

fn code(number: i32) -> Code {
    Code::try_from(number).unwrap_or_else(|_| panic!("{number} is no code"))
}

fn written(answer: v1::WriteResponse) -> Told {
    Told { codes: vec![code(answer.code)], index: answer.index, values: vec![] }
}

fn batch_written(answer: v1::BatchWriteResponse) -> Told {
    assert_eq!(code(answer.code), Code::Success);
    Told { codes: answer.codes.into_iter().map(code).collect(), index: answer.index, values: vec![] }
}

fn value(node: Option<v1::Node>) -> Option<Vec<u8>> {
    node.and_then(|node| node.value).map(Vec::from)
}

fn guard() -> v1::Guard {
    v1::Guard { lock: "lock".into(), fencing_token: 1 }
}

/// Makes the call.
///
/// # Errors
/// The gRPC status, when there was no business answer.
pub async fn unary(kv: &mut KvClient<Channel>, group_id: u32, call: &Call) -> Result<Told, Status> {
    match call.clone() {
        Call::Get { key } => get(kv, group_id, key).await,
        Call::List { key } => list(kv, group_id, key).await,
        Call::BatchGet { keys } => batch_get(kv, group_id, keys).await,
        Call::BatchPut { .. } | Call::BatchRemove { .. } => batch_write(kv, group_id, call.clone()).await,
        _ => write(kv, group_id, call.clone()).await,
    }
}

async fn write(kv: &mut KvClient<Channel>, group_id: u32, call: Call) -> Result<Told, Status> {
    let answer = match call {
        Call::Put { key, value, create_parents } => {
            let key = key.into();
            kv.put(v1::PutRequest {
                group_id,
                key,
                value: value.into(),
                create_parents,
                ..Default::default()
            })
            .await
        }
        Call::Guarded { key } => {
            let (key, guard) = (key.into(), Some(guard()));
            kv.put(v1::PutRequest { group_id, key, value: "v".into(), guard, ..Default::default() }).await
        }
        Call::Remove { key, recursive } => {
            kv.remove(v1::RemoveRequest { group_id, key: key.into(), recursive, ..Default::default() }).await
        }
        Call::Mkdir { key, create_parents } => {
            kv.mkdir(v1::MkdirRequest { group_id, key: key.into(), create_parents, ..Default::default() })
                .await
        }
        Call::CompareAndSet { key, expect, expect_index, new } => {
            let (key, expect, new) = (key.into(), expect.map(Into::into), new.map(Into::into));
            let more = v1::CompareAndSetRequest::default();
            kv.compare_and_set(v1::CompareAndSetRequest { group_id, key, expect, new, expect_index, ..more })
                .await
        }
        other => unreachable!("{other:?} is no single write"),
    };
    Ok(written(answer?.into_inner()))
}

async fn batch_write(kv: &mut KvClient<Channel>, group_id: u32, call: Call) -> Result<Told, Status> {
    let answer = match call {
        Call::BatchPut { items } => {
            let pair = |(key, value): (String, String)| v1::KeyValue { key: key.into(), value: value.into() };
            let items = items.into_iter().map(pair).collect();
            kv.batch_put(v1::BatchPutRequest { group_id, items, ..Default::default() }).await
        }
        Call::BatchRemove { keys } => {
            let keys = keys.into_iter().map(Into::into).collect();
            kv.batch_remove(v1::BatchRemoveRequest { group_id, keys, ..Default::default() }).await
        }
        other => unreachable!("{other:?} is no batch of writes"),
    };
    Ok(batch_written(answer?.into_inner()))
}

async fn get(kv: &mut KvClient<Channel>, group_id: u32, key: String) -> Result<Told, Status> {
    let answer = kv.get(v1::GetRequest { group_id, key: key.into(), consistency: 0 }).await?.into_inner();
    Ok(Told { codes: vec![code(answer.code)], index: answer.index, values: vec![value(answer.node)] })
}

async fn list(kv: &mut KvClient<Channel>, group_id: u32, key: String) -> Result<Told, Status> {
    let request = v1::ListRequest { group_id, key: key.into(), ..Default::default() };
    let answer = kv.list(request).await?.into_inner();
    let values = answer.nodes.into_iter().map(|node| value(Some(node))).collect();
    Ok(Told { codes: vec![code(answer.code)], index: answer.index, values })
}

async fn batch_get(kv: &mut KvClient<Channel>, group_id: u32, keys: Vec<String>) -> Result<Told, Status> {
    let keys = keys.into_iter().map(Into::into).collect();
    let answer = kv.batch_get(v1::BatchGetRequest { group_id, keys, consistency: 0 }).await?.into_inner();
    let codes = answer.items.iter().map(|item| code(item.code)).collect();
    let values = answer.items.into_iter().map(|item| value(item.node)).collect();
    Ok(Told { codes, index: answer.index, values })
}
