//! Listings: pages by unary calls, and a stream over all pages.

use crate::answer::{ListOptions, Node, Page};
use crate::error::Error;
use crate::group::Group;
use crate::limits::check_key_or_root;
use crate::v1::{self, Code};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

/// Reads one page.
pub(crate) async fn page(group: &Group, key: Bytes, options: ListOptions) -> Result<Page, Error> {
    check_key_or_root(&key).map_err(Error::refused)?;
    let request = v1::ListRequest {
        group_id: group.id,
        key,
        consistency: group.consistency.into(),
        limit: options.limit,
        continuation: options.continuation.unwrap_or_default(),
        keys_only: options.keys_only,
        recursive: options.recursive,
    };
    let response = group
        .unary_read(move |mut kv, attempt| {
            let request = attempt.wrap(request.clone());
            async move { kv.list(request).await }
        })
        .await?;
    to_page(response)
}

pub(crate) fn to_page(response: v1::ListResponse) -> Result<Page, Error> {
    match response.code() {
        Code::Success => Ok(Page {
            index: response.index,
            lag_ms: response.lag_ms,
            nodes: response.nodes.into_iter().map(Node::from).collect(),
            continuation: (!response.continuation.is_empty()).then_some(response.continuation),
        }),
        code => Err(Error::refused(code)),
    }
}

/// Reads page after page.
pub(crate) fn all(group: Group, key: Bytes, options: ListOptions) -> BoxStream<'static, Result<Node, Error>> {
    let pages = stream::try_unfold(Some(options), move |next| {
        let (group, key) = (group.clone(), key.clone());
        async move {
            let Some(options) = next else { return Ok(None) };
            let page = page(&group, key, options.clone()).await?;
            let next = page.continuation.map(|token| ListOptions { continuation: Some(token), ..options });
            Ok::<_, Error>(Some((stream::iter(page.nodes.into_iter().map(Ok)), next)))
        }
    });
    pages.try_flatten().boxed()
}
