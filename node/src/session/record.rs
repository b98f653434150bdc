//! How a session stands on disk and in snapshots. All integers are little endian:
//!
//! | field | bytes | |
//! |---|---|---|
//! | version | 1 | 1 |
//! | acknowledged below, lost below, began at | 3 x 8 | |
//! | index and clock of the last use | 2 x 8 | |
//! | answers, to the end: sequence, index | 2 x 8 | sorted by sequence |
//! | length of the results | 4 | 0xFFFFFFFF: too large to keep |
//! | results | | |

use super::client::{Answer, Client};
use super::{ClientId, Moment};

const VERSION: u8 = 1;
const NOT_KEPT: u32 = u32::MAX;

/// A record that cannot be loaded. The store's data are damaged, or newer than this program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session of client {} cannot be loaded: {what}", client.escape_ascii())]
pub struct BadSession {
    /// Whose session.
    pub client: ClientId,
    /// What is wrong with it.
    pub what: &'static str,
}

pub(super) fn encode(client: &Client) -> Vec<u8> {
    let mut out = Vec::with_capacity(client.bytes());
    out.push(VERSION);
    let Moment { index, clock_ms } = client.used;
    for number in [client.acknowledged_below, client.lost_below, client.began_at, index, clock_ms] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for answer in &client.answers {
        out.extend_from_slice(&answer.sequence.to_le_bytes());
        out.extend_from_slice(&answer.index.to_le_bytes());
        let len = answer.results.as_ref().map_or(NOT_KEPT, |results| results.len() as u32);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(answer.results.as_deref().unwrap_or_default());
    }
    out
}

pub(super) fn decode(bytes: &[u8]) -> Result<Client, &'static str> {
    const CUT: &str = "it is too short";
    let (&version, mut rest) = bytes.split_first().ok_or(CUT)?;
    if version != VERSION {
        return Err("its format version is unknown; it was written by a newer release or is damaged");
    }
    let mut number = || take_u64(&mut rest).ok_or(CUT);
    let (acknowledged_below, lost_below, began_at) = (number()?, number()?, number()?);
    let used = Moment { index: number()?, clock_ms: number()? };
    let mut client = Client::new(used, began_at);
    client.acknowledged_below = acknowledged_below;
    client.lost_below = lost_below;
    while !rest.is_empty() {
        let answer = take_answer(&mut rest).ok_or(CUT)?;
        if client.answers.back().is_some_and(|last| last.sequence >= answer.sequence) {
            return Err("its answers are not sorted");
        }
        client.push(answer);
    }
    Ok(client)
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(n)?;
    *rest = left;
    Some(taken)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take(rest, 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn take_answer(rest: &mut &[u8]) -> Option<Answer> {
    let (sequence, index) = (take_u64(rest)?, take_u64(rest)?);
    let results = match u32::from_le_bytes(take(rest, 4)?.try_into().ok()?) {
        NOT_KEPT => None,
        len => Some(Box::from(take(rest, len as usize)?)),
    };
    Some(Answer { sequence, index, results })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Client {
        let mut client = Client::new(Moment { index: 4, clock_ms: 5 }, 3);
        client.acknowledged_below = 1;
        client.lost_below = 2;
        client.push(Answer { sequence: 7, index: 9, results: None });
        client.push(Answer { sequence: 6, index: 8, results: Some(Box::from(&b"ab"[..])) });
        client
    }

    #[test]
    fn the_layout_of_version_1_stays_as_it_is() {
        let n = |number: u8| [number, 0, 0, 0, 0, 0, 0, 0];
        let mut golden = vec![1];
        [1, 2, 3, 4, 5, 6, 8].iter().for_each(|number| golden.extend(n(*number)));
        golden.extend([2, 0, 0, 0, b'a', b'b']);
        [7, 9].iter().for_each(|number| golden.extend(n(*number)));
        golden.extend([255; 4]);
        assert_eq!(encode(&sample()), golden);
        assert_eq!(decode(&golden), Ok(sample()));
    }

    #[test]
    fn damaged_records_are_refused_with_a_reason() {
        let good = encode(&sample());
        // Cut between two answers it is a shorter session; the engine's checksums find that.
        let whole = [41, 41 + 22];
        for cut in (0..good.len()).filter(|cut| !whole.contains(cut)) {
            assert_eq!(decode(&good[..cut]), Err("it is too short"), "cut at {cut}");
        }
        let newer = [&[2], &good[1..]].concat();
        assert!(decode(&newer).unwrap_err().contains("version"));
        let twice = [&good[..], &good[41..]].concat();
        assert!(decode(&twice).unwrap_err().contains("sorted"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>) {
            if let Ok(client) = decode(&[&[1], &bytes[..]].concat()) {
                prop_assert_eq!(&encode(&client)[1..], &bytes[..]);
            }
        }
    }
}
