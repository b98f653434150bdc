//! What an expire operation names: temporary nodes whose time is over, each with the index of the
//! operation that set the time. A node that was renewed since has another index and stays.

use super::{Malformed, Reader};

/// One node whose time is over, as its leader saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired<'a> {
    /// Index of the operation that set or renewed the TTL.
    pub ttl_index: u64,
    /// The node.
    pub key: &'a [u8],
}

impl Expired<'_> {
    /// Appends the packed form.
    pub fn pack(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.ttl_index.to_le_bytes());
        out.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(self.key);
    }
}

/// Reads the value of an expire operation.
///
/// # Errors
/// When the bytes do not follow the layout.
pub fn expired(value: &[u8]) -> Result<Vec<Expired<'_>>, Malformed> {
    let mut reader = Reader { bytes: value, at: 0 };
    let mut all = Vec::new();
    while !reader.is_done() {
        let offset = reader.at;
        let mut read = || {
            let ttl_index = reader.u64()?;
            let key_len = reader.u16()? as usize;
            Some(Expired { ttl_index, key: reader.take(key_len)? })
        };
        all.push(read().ok_or(Malformed { offset, what: "an expired node" })?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expired_nodes_round_trip_and_cut_ones_are_errors() {
        let nodes = [Expired { ttl_index: 7, key: b"a.b" }, Expired { ttl_index: 8, key: b"" }];
        let mut bytes = Vec::new();
        nodes.iter().for_each(|node| node.pack(&mut bytes));
        assert_eq!(expired(&bytes).as_deref(), Ok(&nodes[..]));
        assert!(expired(&bytes[..bytes.len() - 1]).is_err());
        assert_eq!(expired(b""), Ok(Vec::new()));
    }
}
