//! Messages of unary calls as packed operations, without session and guard.

use dtkv_client::packed::{Kind, Op};
use dtkv_client::v1;

pub(super) fn put_op(request: &v1::PutRequest) -> Op<'_> {
    Op {
        create_parents: request.create_parents,
        ttl_ms: request.ttl_ms,
        expect_index: request.expect_index,
        ..Op::new(Kind::Put, &request.key, &request.value)
    }
}

pub(super) fn remove_op(request: &v1::RemoveRequest) -> Op<'_> {
    Op {
        recursive: request.recursive,
        expect_index: request.expect_index,
        ..Op::new(Kind::Remove, &request.key, b"")
    }
}

pub(super) fn mkdir_op(request: &v1::MkdirRequest) -> Op<'_> {
    Op {
        create_parents: request.create_parents,
        ttl_ms: request.ttl_ms,
        ..Op::new(Kind::Mkdir, &request.key, b"")
    }
}

pub(super) fn compare_and_set_op(request: &v1::CompareAndSetRequest) -> Op<'_> {
    Op {
        expect: request.expect.as_deref(),
        expect_index: request.expect_index,
        has_new_value: request.new.is_some(),
        ..Op::new(Kind::CompareAndSet, &request.key, request.new.as_deref().unwrap_or_default())
    }
}

pub(super) fn update_ttl_op(request: &v1::UpdateTtlRequest) -> Op<'_> {
    Op { ttl_ms: Some(request.ttl_ms), ..Op::new(Kind::UpdateTtl, &request.key, b"") }
}
