//! The contract as calls and the codes that they must be answered with, and the plain ways to make
//! such a call: a unary gRPC call, and a frame.

mod frame;
mod table;
mod unary;

pub use frame::{Pipe, check_shape};
pub use table::{Row, table};
pub use unary::unary;

/// One call on a group.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Call {
    Put {
        key: String,
        value: Vec<u8>,
        create_parents: bool,
    },
    Get {
        key: String,
    },
    List {
        key: String,
    },
    Remove {
        key: String,
        recursive: bool,
    },
    Mkdir {
        key: String,
        create_parents: bool,
    },
    BatchPut {
        items: Vec<(String, String)>,
    },
    BatchGet {
        keys: Vec<String>,
    },
    BatchRemove {
        keys: Vec<String>,
    },
    CompareAndSet {
        key: String,
        expect: Option<String>,
        expect_index: Option<u64>,
        new: Option<Vec<u8>>,
    },
    /// A put that names a guard, which is not served.
    Guarded {
        key: String,
    },
}

/// What a call was answered with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// One code, or for batches one for each item.
    pub codes: Vec<dtkv_client::v1::Code>,
    /// The index of the answer.
    pub index: u64,
    /// Values of a get, of a batch of gets, or of a listing, as far as there are any.
    pub values: Vec<Option<Vec<u8>>>,
}
