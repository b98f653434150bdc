//! Records: one version byte, then protobuf.

use bytes::{Buf, Bytes};
use prost::Message;
use std::io;

/// The version that is written, of every kind of record.
pub const RECORD_VERSION: u8 = 1;

/// A record of [`super::Family::Meta`].
pub fn encode_record(message: &impl Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + message.encoded_len());
    out.push(RECORD_VERSION);
    message.encode_raw(&mut out);
    out
}

/// A record of [`super::Family::Log`]: the version byte and the encoded entry.
pub fn log_record(entry: &impl Message) -> Bytes {
    encode_record(entry).into()
}

/// What stands behind the version byte.
///
/// # Errors
/// When the record is empty, or of a version that this build does not know.
pub fn record_body(record: &[u8]) -> io::Result<&[u8]> {
    match record.split_first() {
        Some((&RECORD_VERSION, body)) => Ok(body),
        Some((version, _)) => Err(broken(format!(
            "a record has version {version}, this build knows {RECORD_VERSION}: run a newer build on this directory"
        ))),
        None => Err(broken("a record is empty".to_owned())),
    }
}

/// Decodes a record of [`super::Family::Meta`].
///
/// # Errors
/// As [`record_body`], and when the bytes are not such a message.
pub fn decode_record<M: Message + Default>(record: &[u8]) -> io::Result<M> {
    M::decode(record_body(record)?).map_err(|e| broken(format!("a record cannot be decoded: {e}")))
}

/// The same without copying: byte fields of the message stay slices of the record.
///
/// # Errors
/// As [`decode_record`].
pub fn decode_shared_record<M: Message + Default>(mut record: Bytes) -> io::Result<M> {
    record_body(&record)?;
    record.advance(1);
    M::decode(record).map_err(|e| broken(format!("a record cannot be decoded: {e}")))
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer_v1 as pb;
    use crate::storage_v1 as storage;
    use std::fmt::Debug;

    fn log_id() -> Option<pb::LogId> {
        Some(pb::LogId { term: 3, index: 300 })
    }

    fn check<M: Message + Default + PartialEq + Debug>(message: M, golden: &str) {
        let bytes = encode_record(&message);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden, "{message:?}");
        assert_eq!(decode_record::<M>(&bytes).unwrap(), message);
        assert_eq!(decode_shared_record::<M>(bytes.into()).unwrap(), message);
    }

    #[test]
    fn group_records_have_golden_bytes_and_come_back() {
        check(pb::Vote { term: 3, node_id: 2, committed: true }, "01080310021801");
        check(storage::LogMeta { purged: log_id() }, "010a05080310ac02");
        check(storage::Committed { log_id: log_id() }, "010a05080310ac02");
        let membership =
            pb::Membership { configs: vec![pb::NodeSet { nodes: vec![1, 2, 3] }], learners: vec![4] };
        let membership = pb::StoredMembership { log_id: log_id(), membership: Some(membership) };
        check(
            storage::Applied { epoch: 1, log_id: log_id(), membership: Some(membership) },
            "0108011205080310ac021a130a05080310ac02120a0a050a03010203120104",
        );
        check(
            storage::Descriptor {
                group_id: 9,
                members: vec![1, 2, 3],
                layout_hash: "ab".into(),
                generation: 5,
            },
            "01080912030102031a0261622005",
        );
    }

    #[test]
    fn node_records_have_golden_bytes_and_come_back() {
        let (cluster_id, incarnation) = ("c".to_owned(), "i".to_owned());
        check(
            storage::Identity { cluster_id, node_id: 1, incarnation, operator_epoch: 300, draining: true },
            "010a016310011a016920ac022801",
        );
        let (peer_address, client_address, incarnation) = ("p".to_owned(), "c".to_owned(), "i".to_owned());
        check(
            storage::NodeAddress { node_id: 1, peer_address, client_address, incarnation, tombstone: true },
            "0108011201701a01632201692801",
        );
        let destroyed_generations = vec![3, 4];
        check(
            storage::ReplicaTombstone { group_id: 1, generation: 2, config_index: 8, destroyed_generations },
            "0108011002180822020304",
        );
    }

    #[test]
    fn unknown_versions_and_broken_bytes_are_refused() {
        let newer = decode_record::<storage::LogMeta>(&[2, 10, 0]).unwrap_err().to_string();
        assert!(newer.contains("version 2") && newer.contains("newer build"), "{newer}");
        assert!(decode_record::<storage::LogMeta>(&[]).is_err());
        assert!(decode_record::<storage::LogMeta>(&[1, 10]).is_err());
    }
}
