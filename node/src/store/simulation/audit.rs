//! What must hold at every moment, whatever the network does: looked at in every message between
//! the replicas, and in samples of their states.

use crate::group::Group;
use crate::peer_v1 as pb;
use crate::peer_v1::message::Body;
use dtkv_client::v1::Role;
use parking_lot::Mutex;
use prost::Message as _;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;

/// Generation, term.
type Term = (u64, u64);

/// Collects what was seen, and what contradicts it.
#[derive(Default)]
pub struct Audit {
    seen: Mutex<Seen>,
    violations: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Seen {
    /// Who led in a term.
    leaders: HashMap<Term, u64>,
    /// For whom a node voted in a term.
    votes: HashMap<(Term, u64), u64>,
    /// What an entry holds, by term and index.
    entries: HashMap<(Term, u64), u64>,
    /// Generation and index to the term of the entry that was committed there.
    committed: BTreeMap<(u64, u64), u64>,
    /// Digest of the tree at a generation and index.
    trees: HashMap<(u64, u64), String>,
    /// Replicas that were destroyed after a configuration left them out, by generation and node.
    destroyed: HashSet<(u64, u64)>,
}

impl Audit {
    /// Something happened that must not.
    pub fn violation(&self, what: String) {
        let mut violations = self.violations.lock();
        if violations.len() < 20 {
            violations.push(what);
        }
    }

    /// Everything that happened and must not.
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().clone()
    }

    fn once<K: Eq + Hash + Debug, V: PartialEq + Debug + Clone>(
        &self,
        what: &str,
        known: &mut HashMap<K, V>,
        key: K,
        value: V,
    ) {
        match known.get(&key) {
            Some(before) if *before != value => {
                self.violation(format!("{what} at {key:?}: first {before:?}, then {value:?}"));
            }
            Some(_) => {}
            None => drop(known.insert(key, value)),
        }
    }

    /// A question on its way. True when it is the first word of a new leader.
    pub fn question(&self, from: u64, message: &pb::Message) -> bool {
        let generation = message.generation;
        let mut seen = self.seen.lock();
        match &message.body {
            Some(Body::Append(append)) => {
                let Some(vote) = &append.vote else { return false };
                let is_new = !seen.leaders.contains_key(&(generation, vote.term));
                self.once("two leaders in a term", &mut seen.leaders, (generation, vote.term), from);
                self.entries(&mut seen, generation, append);
                is_new
            }
            Some(Body::Vote(request)) => {
                let term = (generation, request.vote.as_ref().map_or(0, |vote| vote.term));
                self.once("two votes in a term", &mut seen.votes, (term, from), from);
                false
            }
            _ => false,
        }
    }

    fn entries(&self, seen: &mut Seen, generation: u64, append: &pb::AppendRequest) {
        let commit = append.leader_commit.unwrap_or_default();
        for entry in &append.entries {
            let Some(id) = entry.log_id else { continue };
            let content = xxhash_rust::xxh3::xxh3_64(&entry.encode_to_vec());
            let key = ((generation, id.term), id.index);
            self.once("an entry changed", &mut seen.entries, key, content);
            if id.index <= commit.index {
                self.commit(seen, generation, id);
            }
        }
        if commit.index > 0 {
            self.commit(seen, generation, commit);
        }
    }

    fn commit(&self, seen: &mut Seen, generation: u64, id: pb::LogId) {
        let before = *seen.committed.entry((generation, id.index)).or_insert(id.term);
        if before != id.term {
            let text = format!("a committed entry changed at {}: term {before}, then {}", id.index, id.term);
            self.violation(text);
        }
    }

    /// The answer of `from` to a question of `to`.
    pub fn answer(&self, from: u64, to: u64, question: &Question, answer: &pb::Message) {
        let refused = matches!(answer.body, Some(Body::Refused(_)));
        if question.generation != answer.generation && !refused {
            self.violation(format!("n{from} took a message of n{to} for a group that was destroyed"));
        }
        let Some(term) = question.vote_in_term else { return };
        if matches!(&answer.body, Some(Body::VoteReply(reply)) if reply.granted) {
            let mut seen = self.seen.lock();
            let generation = question.generation;
            self.once("two votes in a term", &mut seen.votes, ((generation, term), from), to);
            if seen.destroyed.contains(&(generation, from)) {
                self.violation(format!("n{from} was removed and voted for n{to}"));
            }
        }
    }

    /// Looks at the state of a replica.
    pub fn sample(&self, group: &Group) {
        let (generation, node) = (group.generation(), group.node_id().0);
        let status = group.status_now();
        let (index, digest, _) = group.digest();
        let mut seen = self.seen.lock();
        if status.role() == Role::Leader {
            self.once("two leaders in a term", &mut seen.leaders, (generation, status.term), node);
        }
        let key = (generation, index);
        self.once("replicas differ at an index", &mut seen.trees, key, digest.to_string());
    }

    /// A replica was removed from the group and destroyed, or may come back.
    pub fn destroyed(&self, generation: u64, node: u64, is_gone: bool) {
        let mut seen = self.seen.lock();
        if is_gone {
            seen.destroyed.insert((generation, node));
        } else {
            seen.destroyed.remove(&(generation, node));
        }
    }

    /// Whether the node has voted in this term of any generation.
    pub fn has_voted(&self, node: u64, term: u64) -> bool {
        self.seen.lock().votes.keys().any(|((_, at), voter)| (*at, *voter) == (term, node))
    }

    /// Terms in which somebody led.
    pub fn terms(&self) -> usize {
        self.seen.lock().leaders.len()
    }
}

/// What the judgement of an answer needs of its question.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    generation: u64,
    vote_in_term: Option<u64>,
}

impl Question {
    /// Of this message.
    pub fn of(message: &pb::Message) -> Question {
        let vote_in_term = match &message.body {
            Some(Body::Vote(request)) => request.vote.as_ref().map(|vote| vote.term),
            _ => None,
        };
        Question { generation: message.generation, vote_in_term }
    }
}
