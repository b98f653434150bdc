//! The gRPC codec between nodes: protobuf, with the output buffer reserved in one piece. tonic's
//! own grows it by doubling, which copies a batch of a megabyte once more on its way.

use prost::Message;
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Encodes `T`, decodes `U`.
#[derive(Clone, Debug)]
pub struct PeerCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for PeerCodec<T, U> {
    fn default() -> Self {
        PeerCodec(PhantomData)
    }
}

impl<T, U> Codec for PeerCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = PeerCodec<T, U>;
    type Decoder = PeerCodec<T, U>;

    fn encoder(&mut self) -> Self::Encoder {
        PeerCodec::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        PeerCodec::default()
    }
}

impl<T: Message, U> Encoder for PeerCodec<T, U> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        item.encode_raw(buffer);
        Ok(())
    }
}

impl<T, U: Message + Default> Decoder for PeerCodec<T, U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        U::decode(buffer).map(Some).map_err(|e| Status::internal(format!("not a peer message: {e}")))
    }
}
