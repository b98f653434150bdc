//! Temporary nodes: values and directories that their owner keeps alive, and that end without it.

use crate::answer::{ListOptions, Made, MkdirOptions, OpAnswer, Owned, Page, PutOptions, Renewed, Written};
use crate::error::Error;
use crate::group::Group;
use crate::limits::TTL_MS_MAX;
use crate::list;
use crate::packed::{Kind, Op};
use crate::v1::{self, Code};
use bytes::Bytes;
use std::time::Duration;

/// A time to live, in ms.
///
/// # Errors
/// INVALID_TTL below 1 ms and beyond 36,500 days.
pub(crate) fn ttl_ms(ttl: Duration) -> Result<u64, Error> {
    match u64::try_from(ttl.as_millis()) {
        Ok(ms @ 1..=TTL_MS_MAX) => Ok(ms),
        _ => Err(Error::refused(Code::InvalidTtl).context(format!("{ttl:?}"))),
    }
}

impl Group {
    /// Creates a temporary value, or overwrites it and begins its time to live anew. It belongs to
    /// this client ([`crate::Client::client_id`]), which keeps it alive with [`Group::update_ttl`]
    /// or [`Group::keep_alive`]; its end does not depend on any connection.
    ///
    /// # Errors
    /// NOT_TEMP_NODE, NOT_OWNER, UNDER_TEMP_DIR (no temporary nodes inside of temporary
    /// directories) and INVALID_TTL are refusals; as [`Group::put`] otherwise.
    pub async fn put_temp(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<Written, Error> {
        self.put_temp_with(key, value, ttl, PutOptions::default()).await
    }

    /// As [`Group::put_temp`], with options. Parents that are made are permanent.
    ///
    /// # Errors
    /// As [`Group::put_temp`].
    pub async fn put_temp_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
        options: PutOptions,
    ) -> Result<Written, Error> {
        let ttl = Some(ttl_ms(ttl)?);
        self.write_value(Op { ttl_ms: ttl, ..options.op(key.as_ref(), value.as_ref()) }).await
    }

    /// Makes a temporary directory, or begins its time to live anew. When it ends, everything below
    /// it goes with it, in one step.
    ///
    /// # Errors
    /// As [`Group::put_temp`].
    pub async fn make_temp_dir(&self, key: impl AsRef<[u8]>, ttl: Duration) -> Result<Made, Error> {
        self.make_temp_dir_with(key, ttl, MkdirOptions::default()).await
    }

    /// As [`Group::make_temp_dir`], with options. Parents that are made are permanent.
    ///
    /// # Errors
    /// As [`Group::put_temp`].
    pub async fn make_temp_dir_with(
        &self,
        key: impl AsRef<[u8]>,
        ttl: Duration,
        options: MkdirOptions,
    ) -> Result<Made, Error> {
        let ttl = Some(ttl_ms(ttl)?);
        let op = Op::new(Kind::Mkdir, key.as_ref(), b"");
        self.make_dir(Op { ttl_ms: ttl, create_parents: options.create_parents, ..op }).await
    }

    /// Gives a temporary node of this client a new time to live, from now on.
    ///
    /// # Errors
    /// NOT_FOUND, NOT_TEMP_NODE, NOT_OWNER and INVALID_TTL are refusals; as [`Group::put`]
    /// otherwise.
    pub async fn update_ttl(&self, key: impl AsRef<[u8]>, ttl: Duration) -> Result<Renewed, Error> {
        let ttl = Some(ttl_ms(ttl)?);
        let result = self.call(&Op { ttl_ms: ttl, ..Op::new(Kind::UpdateTtl, key.as_ref(), b"") }).await?;
        match result.code() {
            Code::Success => Ok(Renewed { index: result.index }),
            code => Err(Error::refused(code)),
        }
    }

    /// Begins the time to live of everything anew that this client owns in the group: temporary
    /// nodes, and locks that it holds. [`Group::keep_alive_every`] does it by itself.
    ///
    /// # Errors
    /// As [`Group::put`].
    pub async fn keep_alive(&self) -> Result<Owned, Error> {
        self.change_owned(Kind::KeepAlive).await
    }

    /// Removes everything that this client owns in the group, temporary directories with all that is
    /// below them, and gives up its locks and its places in their queues.
    ///
    /// # Errors
    /// As [`Group::put`].
    pub async fn drop_owner(&self) -> Result<Owned, Error> {
        self.change_owned(Kind::DropOwner).await
    }

    async fn change_owned(&self, kind: Kind) -> Result<Owned, Error> {
        let result = self.call(&Op::new(kind, b"", b"")).await?;
        match result.answer {
            OpAnswer::Count(Code::Success, count) => Ok(Owned { index: result.index, count }),
            answer => Err(Error::refused(answer.code())),
        }
    }

    /// Reads one page of what a client owns in the group, sorted by key; `recursive` has no meaning
    /// here. A client's own id is [`crate::Client::client_id`].
    ///
    /// # Errors
    /// As [`Group::get`].
    pub async fn owned(&self, client_id: [u8; 16], options: ListOptions) -> Result<Page, Error> {
        let request = v1::ListOwnedRequest {
            group_id: self.id,
            client_id: Bytes::copy_from_slice(&client_id),
            consistency: self.consistency.into(),
            limit: options.limit,
            continuation: options.continuation.unwrap_or_default(),
            keys_only: options.keys_only,
        };
        let response = self
            .unary_read(move |mut kv, attempt| {
                let request = attempt.wrap(request.clone());
                async move { kv.list_owned(request).await }
            })
            .await?;
        list::to_page(response)
    }
}
