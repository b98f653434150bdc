//! Operations on one group.

use crate::answer::{
    BatchRead, BatchWritten, CasOutcome, Expect, ListOptions, Made, MkdirOptions, New, Node, OpAnswer,
    OpResult, Page, PutOptions, ReadAnswer, RemoveOptions, Removed, Written,
};
use crate::client::Handle;
use crate::dispatch::Lanes;
use crate::error::Error;
use crate::lock::LockToken;
use crate::packed::{Kind, Op};
use crate::v1::{Code, Consistency};
use crate::{batch, list};
use bytes::Bytes;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::time::Duration;

/// One group of the cluster: a tree of keys behind one Raft log. Cheap to clone; every call may run
/// at the same time as any other, and a dropped call disturbs no other.
///
/// A call that is dropped while it waits may still be carried out by the store.
#[derive(Clone)]
pub struct Group {
    pub(crate) handle: Arc<Handle>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) id: u32,
    pub(crate) consistency: Consistency,
    pub(crate) timeout: Duration,
    pub(crate) guard: Option<LockToken>,
}

impl Group {
    /// The id of the group.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The same group with another freshness of reads.
    #[must_use]
    pub fn with_consistency(mut self, consistency: Consistency) -> Group {
        self.consistency = consistency;
        self
    }

    /// The same group with another deadline of calls.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Group {
        self.timeout = timeout;
        self
    }

    /// The same group, with writes that go through only while this grant of a lock is the latest:
    /// puts, removes, mkdirs, compare-and-sets, updates of a TTL, batches and transactions. Else they
    /// are refused with FENCED, as a whole.
    ///
    /// ```no_run
    /// # async fn example(group: dtkv_client::Group) -> Result<(), dtkv_client::Error> {
    /// # use std::time::Duration;
    /// let lock = group.lock("app.lock")?;
    /// if let Some(token) = lock.try_lock(Duration::from_secs(30), Duration::from_secs(10)).await? {
    ///     // Never overwrites what a later holder of the lock has written.
    ///     group.guarded(&token).put("app.state", "mine").await?;
    ///     lock.unlock().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn guarded(&self, token: &LockToken) -> Group {
        Group { guard: Some(token.clone()), ..self.clone() }
    }

    /// Creates or overwrites a permanent value. Its parent directory must exist.
    ///
    /// # Errors
    /// [`Error::code`] when the store refused; otherwise [`Error::kind`] says whether it happened.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<Written, Error> {
        self.put_with(key, value, PutOptions::default()).await
    }

    /// As [`Group::put`], with options.
    ///
    /// # Errors
    /// As [`Group::put`].
    pub async fn put_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: PutOptions,
    ) -> Result<Written, Error> {
        self.write_value(options.op(key.as_ref(), value.as_ref())).await
    }

    pub(crate) async fn write_value(&self, op: Op<'_>) -> Result<Written, Error> {
        let result = self.call(&op).await?;
        match result.code() {
            Code::Success => Ok(Written { index: result.index, created: true }),
            Code::SuccessOverwrite => Ok(Written { index: result.index, created: false }),
            code => Err(Error::refused(code)),
        }
    }

    /// Reads a node; None when it does not exist. The empty key names the root.
    ///
    /// # Errors
    /// [`Error::code`] when the store refused; a read changes nothing, so it never has an unknown
    /// outcome.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Node>, Error> {
        Ok(self.read(key).await?.node)
    }

    /// As [`Group::get`], with the index that the read saw and, for STALE reads, the lag.
    ///
    /// # Errors
    /// As [`Group::get`].
    pub async fn read(&self, key: impl AsRef<[u8]>) -> Result<ReadAnswer, Error> {
        let key = key.as_ref();
        let result = self.call(&Op::new(Kind::Get, key, b"")).await?;
        let node = match result.answer {
            OpAnswer::Node(node) => Some(Node { key: Bytes::copy_from_slice(key), ..node }),
            OpAnswer::Code(Code::NotFound) => None,
            other => return Err(Error::refused(other.code())),
        };
        Ok(ReadAnswer { index: result.index, lag_ms: result.lag_ms, node })
    }

    /// Removes a value or an empty directory. Nothing to remove is fine.
    ///
    /// # Errors
    /// As [`Group::put`].
    pub async fn remove(&self, key: impl AsRef<[u8]>) -> Result<Removed, Error> {
        self.remove_with(key, RemoveOptions::default()).await
    }

    /// As [`Group::remove`], with options.
    ///
    /// # Errors
    /// As [`Group::put`].
    pub async fn remove_with(&self, key: impl AsRef<[u8]>, options: RemoveOptions) -> Result<Removed, Error> {
        let RemoveOptions { recursive, expect_index } = options;
        let op = Op { recursive, expect_index, ..Op::new(Kind::Remove, key.as_ref(), b"") };
        let result = self.call(&op).await?;
        match result.code() {
            Code::Success | Code::SuccessOverwrite => Ok(Removed { index: result.index, existed: true }),
            Code::NotFound => Ok(Removed { index: result.index, existed: false }),
            code => Err(Error::refused(code)),
        }
    }

    /// Makes a permanent directory. That it is there already is fine.
    ///
    /// # Errors
    /// As [`Group::put`].
    pub async fn mkdir(&self, key: impl AsRef<[u8]>) -> Result<Made, Error> {
        self.mkdir_with(key, MkdirOptions::default()).await
    }

    /// As [`Group::mkdir`], with options.
    ///
    /// # Errors
    /// As [`Group::put`].
    pub async fn mkdir_with(&self, key: impl AsRef<[u8]>, options: MkdirOptions) -> Result<Made, Error> {
        let op = Op::new(Kind::Mkdir, key.as_ref(), b"");
        self.make_dir(Op { create_parents: options.create_parents, ..op }).await
    }

    pub(crate) async fn make_dir(&self, op: Op<'_>) -> Result<Made, Error> {
        let result = self.call(&op).await?;
        match result.code() {
            Code::Success => Ok(Made { index: result.index, created: true }),
            Code::DirExists => Ok(Made { index: result.index, created: false }),
            code => Err(Error::refused(code)),
        }
    }

    /// Replaces, creates or deletes a value if it is what the caller expects. A mismatch is an
    /// outcome, not an error.
    ///
    /// # Errors
    /// As [`Group::put`].
    pub async fn compare_and_set(
        &self,
        key: impl AsRef<[u8]>,
        expect: Expect<'_>,
        new: New<'_>,
    ) -> Result<CasOutcome, Error> {
        let mut op = Op::new(Kind::CompareAndSet, key.as_ref(), b"");
        match expect {
            Expect::Absent => {}
            Expect::Value(value) => op.expect = Some(value),
            Expect::Index(index) => op.expect_index = Some(index),
        }
        if let New::Value(value) = new {
            op.value = value;
            op.has_new_value = true;
        }
        let result = self.call(&op).await?;
        match result.code() {
            Code::Success | Code::SuccessOverwrite => Ok(CasOutcome::Swapped { index: result.index }),
            Code::CasMismatch => Ok(CasOutcome::Mismatch { index: result.index }),
            code => Err(Error::refused(code)),
        }
    }

    /// Puts many values in one step and in order, with a code for each; there is no rollback.
    ///
    /// # Errors
    /// When the batch as a whole was refused; as [`Group::put`] otherwise.
    pub async fn batch_put<K, V>(
        &self,
        items: impl IntoIterator<Item = (K, V)>,
    ) -> Result<BatchWritten, Error>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        self.batch_put_with(items, PutOptions::default()).await
    }

    /// As [`Group::batch_put`], with options for all items.
    ///
    /// # Errors
    /// As [`Group::batch_put`].
    pub async fn batch_put_with<K, V>(
        &self,
        items: impl IntoIterator<Item = (K, V)>,
        options: PutOptions,
    ) -> Result<BatchWritten, Error>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let mut packer = batch::Packer::default();
        for (key, value) in items {
            packer.push(&options.op(key.as_ref(), value.as_ref()))?;
        }
        batch::write(self, packer).await
    }

    /// Removes many keys in one step and in order, with a code for each; there is no rollback.
    ///
    /// # Errors
    /// As [`Group::batch_put`].
    pub async fn batch_remove<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<BatchWritten, Error> {
        let mut packer = batch::Packer::default();
        for key in keys {
            packer.push(&Op::new(Kind::Remove, key.as_ref(), b""))?;
        }
        batch::write(self, packer).await
    }

    /// Reads many nodes at one point of the apply order.
    ///
    /// # Errors
    /// As [`Group::get`].
    pub async fn batch_get<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<BatchRead, Error> {
        let keys = keys.into_iter().map(|key| Bytes::copy_from_slice(key.as_ref())).collect();
        batch::read(self, keys).await
    }

    /// Reads one page of a directory, sorted by segment. The empty key names the root.
    ///
    /// # Errors
    /// NOT_FOUND and PARENT_NOT_DIR (the key names a value) are refusals; as [`Group::get`]
    /// otherwise.
    pub async fn list(&self, key: impl AsRef<[u8]>, options: ListOptions) -> Result<Page, Error> {
        list::page(self, Bytes::copy_from_slice(key.as_ref()), options).await
    }

    /// Reads a whole directory, page after page. Each page is read at its own index, so changes made
    /// meanwhile may be seen in part.
    pub fn list_all(
        &self,
        key: impl AsRef<[u8]>,
        options: ListOptions,
    ) -> BoxStream<'static, Result<Node, Error>> {
        list::all(self.clone(), Bytes::copy_from_slice(key.as_ref()), options)
    }

    /// The low-level call: packs the operation into the frame that goes out next, never waits, and
    /// calls `done` exactly once, from a task of the client's runtime or, for refusals that need no
    /// node, from here. `done` must be quick and must not block.
    ///
    /// When too much is in flight the operation is refused with the reason `Overloaded`; wait with
    /// [`Group::ready`] before submitting more.
    pub fn submit(&self, op: &Op<'_>, done: impl FnOnce(Result<OpResult, Error>) + Send + 'static) {
        self.handle.shared().submit(self, op, Box::new(done));
    }

    /// Waits until there is room for another operation in flight.
    pub async fn ready(&self) {
        self.handle.shared().limiter.ready().await;
    }

    /// One operation of any kind and its plain answer; the other calls are made of this one.
    ///
    /// # Errors
    /// Business codes are answers here, not errors, unless the client itself refused the operation.
    pub async fn call(&self, op: &Op<'_>) -> Result<OpResult, Error> {
        self.handle.shared().call(self, op).await
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({}, {:?})", self.id, self.consistency)
    }
}
