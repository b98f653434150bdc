//! Temporary values and locks of the scripted nodes, by real time.

use dtkv_client::packed::{Kind, Op, PackedNode, pack_count_result, pack_token_result};
use dtkv_client::v1::{Code, Node};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

type ClientId = [u8; 16];

struct Temp {
    value: Vec<u8>,
    index: u64,
    owner: ClientId,
    ttl: Duration,
    until: Instant,
}

#[derive(Clone)]
struct Place {
    client: ClientId,
    hold: Duration,
    /// 0 while it waits.
    token: u64,
    until: Instant,
}

#[derive(Default)]
pub struct Owners {
    temps: BTreeMap<(u32, Vec<u8>), Temp>,
    locks: BTreeMap<(u32, Vec<u8>), VecDeque<Place>>,
    last_token: u64,
    /// Group, key and value of entries that were granted their lock while they waited.
    granted: Vec<(u32, Vec<u8>, Vec<u8>)>,
}

fn hex(client: &ClientId) -> String {
    client.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The value of an entry: hold, ticket, token.
fn value(place: &Place, ticket: usize) -> Vec<u8> {
    let numbers = [place.hold.as_millis() as u64, ticket as u64, place.token];
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn wait_of(op: &Op<'_>) -> Duration {
    Duration::from_millis(u64::from_le_bytes(op.value.try_into().unwrap()))
}

impl Owners {
    /// Carries out what has to do with owners; false when it is something else.
    pub fn apply(
        &mut self,
        group: u32,
        index: u64,
        client: Option<ClientId>,
        op: &Op<'_>,
        results: &mut Vec<u8>,
    ) -> bool {
        self.expire();
        let key = (group, op.key.to_vec());
        let ttl = op.ttl_ms.map(Duration::from_millis);
        match op.kind {
            Kind::Put if ttl.is_some() => {
                let (value, ttl, owner) = (op.value.to_vec(), ttl.unwrap(), client.unwrap());
                let temp = Temp { value, index, owner, ttl, until: Instant::now() + ttl };
                let code = self.temps.insert(key, temp).map_or(Code::Success, |_| Code::SuccessOverwrite);
                results.push(code as u8);
            }
            Kind::Get if self.node(&key).is_some() => {
                let (value, until, owner) = self.node(&key).unwrap();
                let left = until.saturating_duration_since(Instant::now()).as_millis() as u64;
                PackedNode { value: &value, temp: true, lease: Some((left, owner)), ..Default::default() }
                    .pack(results);
            }
            Kind::UpdateTtl => results.push(self.update_ttl(&key, client.unwrap(), ttl.unwrap()) as u8),
            Kind::KeepAlive => pack_count_result(Code::Success, self.keep_alive(client.unwrap()), results),
            Kind::DropOwner => pack_count_result(Code::Success, self.drop_owner(client.unwrap()), results),
            Kind::TryLock => {
                let (code, token) = self.try_lock(key, client.unwrap(), ttl.unwrap(), wait_of(op), index);
                pack_token_result(code, token, results);
            }
            Kind::UpdateLease => {
                let (code, token) = self.update_lease(&key, client.unwrap(), ttl.unwrap());
                pack_token_result(code, token, results);
            }
            Kind::Unlock => results.push(self.unlock(&key, client.unwrap(), index) as u8),
            _ => return false,
        }
        true
    }

    /// Takes the lock away from its holder.
    pub fn steal(&mut self, group: u32, lock: &str) {
        let queue = self.locks.get_mut(&(group, lock.into())).unwrap();
        queue.pop_front();
        self.promote(100);
    }

    /// How many clients hold the lock or wait for it.
    pub fn places(&mut self, group: u32, lock: &str) -> usize {
        self.expire();
        self.locks.get(&(group, lock.into())).map_or(0, VecDeque::len)
    }

    /// The token of the holder; 0 when the lock is free.
    pub fn token(&mut self, group: u32, lock: &[u8]) -> u64 {
        self.expire();
        self.locks.get(&(group, lock.to_vec())).and_then(VecDeque::front).map_or(0, |place| place.token)
    }

    pub fn owned(&self, group: u32, client: &[u8]) -> Vec<Node> {
        let mine = self.temps.iter().filter(|((at, _), temp)| *at == group && temp.owner == client);
        let node = |((_, key), temp): (&(u32, Vec<u8>), &Temp)| Node {
            key: key.clone().into(),
            value: Some(temp.value.clone().into()),
            update_index: temp.index,
            temp: true,
            ttl_remaining_ms: Some(temp.until.saturating_duration_since(Instant::now()).as_millis() as u64),
            owner: Some(temp.owner.to_vec().into()),
            ..Node::default()
        };
        mine.map(node).collect()
    }

    fn node(&self, key: &(u32, Vec<u8>)) -> Option<(Vec<u8>, Instant, ClientId)> {
        if let Some(temp) = self.temps.get(key) {
            return Some((temp.value.clone(), temp.until, temp.owner));
        }
        let dot = key.1.iter().rposition(|byte| *byte == b'.')?;
        let queue = self.locks.get(&(key.0, key.1[..dot].to_vec()))?;
        let at = queue.iter().position(|place| hex(&place.client).as_bytes() == &key.1[dot + 1..])?;
        Some((value(&queue[at], at), queue[at].until, queue[at].client))
    }

    fn update_ttl(&mut self, key: &(u32, Vec<u8>), client: ClientId, ttl: Duration) -> Code {
        match self.temps.get_mut(key) {
            None => Code::NotFound,
            Some(temp) if temp.owner != client => Code::NotOwner,
            Some(temp) => {
                (temp.ttl, temp.until) = (ttl, Instant::now() + ttl);
                Code::Success
            }
        }
    }

    fn keep_alive(&mut self, client: ClientId) -> u32 {
        let mut count = 0;
        for temp in self.temps.values_mut().filter(|temp| temp.owner == client) {
            temp.until = Instant::now() + temp.ttl;
            count += 1;
        }
        count
    }

    fn drop_owner(&mut self, client: ClientId) -> u32 {
        let before = self.temps.len();
        self.temps.retain(|_, temp| temp.owner != client);
        (before - self.temps.len()) as u32
    }

    fn try_lock(
        &mut self,
        key: (u32, Vec<u8>),
        client: ClientId,
        hold: Duration,
        wait: Duration,
        index: u64,
    ) -> (Code, u64) {
        let queue = self.locks.entry(key).or_default();
        let now = Instant::now();
        match queue.iter().position(|place| place.client == client) {
            Some(0) => {
                (queue[0].hold, queue[0].until) = (hold, now + hold);
                (Code::LockBySelf, queue[0].token)
            }
            Some(at) => {
                (queue[at].hold, queue[at].until) = (hold, now + wait);
                (Code::LockByOther, 0)
            }
            None if queue.is_empty() => {
                self.last_token = index.max(self.last_token + 1);
                queue.push_back(Place { client, hold, token: self.last_token, until: now + hold });
                (Code::Success, self.last_token)
            }
            None => {
                if !wait.is_zero() {
                    queue.push_back(Place { client, hold, token: 0, until: now + wait });
                }
                (Code::LockByOther, 0)
            }
        }
    }

    fn update_lease(&mut self, key: &(u32, Vec<u8>), client: ClientId, hold: Duration) -> (Code, u64) {
        match self.locks.get_mut(key).and_then(|queue| queue.front_mut()) {
            None => (Code::NotFound, 0),
            Some(place) if place.client != client => (Code::LockByOther, 0),
            Some(place) => {
                (place.hold, place.until) = (hold, Instant::now() + hold);
                (Code::Success, place.token)
            }
        }
    }

    fn unlock(&mut self, key: &(u32, Vec<u8>), client: ClientId, index: u64) -> Code {
        let Some(queue) = self.locks.get_mut(key) else { return Code::NotFound };
        let at = queue.iter().position(|place| place.client == client);
        at.map(|at| queue.remove(at));
        self.promote(index);
        if at == Some(0) { Code::Success } else { Code::LockByOther }
    }

    /// Takes what was granted meanwhile, to be pushed.
    pub fn take_granted(&mut self) -> Vec<(u32, Vec<u8>, Vec<u8>)> {
        std::mem::take(&mut self.granted)
    }

    fn promote(&mut self, index: u64) {
        for ((group, lock), queue) in &mut self.locks {
            if let Some(place) = queue.front_mut().filter(|place| place.token == 0) {
                self.last_token = index.max(self.last_token + 1);
                (place.token, place.until) = (self.last_token, Instant::now() + place.hold);
                let key = [lock.as_slice(), b".", hex(&place.client).as_bytes()].concat();
                self.granted.push((*group, key, value(place, 0)));
            }
        }
        self.locks.retain(|_, queue| !queue.is_empty());
    }

    fn expire(&mut self) {
        let now = Instant::now();
        self.temps.retain(|_, temp| temp.until > now);
        self.locks.values_mut().for_each(|queue| queue.retain(|place| place.until > now));
        self.promote(0);
    }
}
