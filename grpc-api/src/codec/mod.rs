//! How messages become octets and back: as prost has it, and besides without unknown fields in
//! requests that change something.

mod fields;

use std::marker::PhantomData;

use prost::{DecodeError, Message, Name};
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};

use self::fields::unknown_field;
use crate::service::methods;

/// The descriptors of all messages and services, for reflection.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/aosidecar.v1.bin"));

/// Encodes `E` and decodes `D`.
pub(crate) struct Codec<E, D> {
    messages: PhantomData<(E, D)>,
}

impl<E, D> Default for Codec<E, D> {
    fn default() -> Self {
        Self {
            messages: PhantomData,
        }
    }
}

impl<E, D> tonic::codec::Codec for Codec<E, D>
where
    E: Message + Send + 'static,
    D: Message + Name + Default + Send + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = One<E>;
    type Decoder = One<D>;

    fn encoder(&mut self) -> One<E> {
        One(PhantomData)
    }

    fn decoder(&mut self) -> One<D> {
        One(PhantomData)
    }
}

/// Encodes or decodes `M`.
pub(crate) struct One<M>(PhantomData<M>);

impl<M: Message> Encoder for One<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, item: M, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl<M: Message + Name + Default> Decoder for One<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        read(buffer).map(Some)
    }
}

/// `buffer` as a message.
#[allow(clippy::result_large_err, reason = "the error is tonic's")]
fn read<M: Message + Name + Default>(buffer: &mut impl prost::bytes::Buf) -> Result<M, Status> {
    if methods::changes(M::NAME) {
        // The whole of a message lies in one piece, so this copies nothing.
        let octets = buffer.copy_to_bytes(buffer.remaining());
        if let Some(unknown) = unknown_field(M::NAME, &octets) {
            return Err(Status::invalid_argument(format!(
                "{unknown} is not known here: the sidecar is older than its caller"
            )));
        }
        return M::decode(octets).map_err(|error| malformed(M::NAME, &error));
    }
    M::decode(buffer).map_err(|error| malformed(M::NAME, &error))
}

/// The sender of a request is told that it is wrong; an answer that is wrong is the server's fault.
fn malformed(message: &str, error: &DecodeError) -> Status {
    if message.ends_with("Request") {
        Status::invalid_argument(format!("the message does not decode: {error}"))
    } else {
        Status::internal(format!("the answer does not decode: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::v1;

    fn read_request<M: Message + Name + Default>(octets: &[u8]) -> Result<M, (Code, String)> {
        read(&mut &*octets).map_err(|status: Status| (status.code(), status.message().to_owned()))
    }

    #[test]
    fn unknown_fields_are_refused_where_something_changes() {
        // Field 9, a varint.
        let unknown = [9 << 3, 1];
        assert!(read_request::<v1::GetStatusRequest>(&unknown).is_ok());
        assert_eq!(
            read_request::<v1::DeletePeerRequest>(&unknown).unwrap_err(),
            (
                Code::InvalidArgument,
                "field 9 of DeletePeerRequest is not known here: the sidecar is older than its \
                 caller"
                    .to_owned()
            )
        );
    }

    #[test]
    fn invalid_text_is_the_callers_fault() {
        // Field 1, three octets that are no UTF-8.
        let octets = [0x0a, 3, 0xff, 0xfe, 0xfd];
        for refused in [
            read_request::<v1::DeletePeerRequest>(&octets).unwrap_err(),
            read_request::<v1::ListKeysRequest>(&octets).unwrap_err(),
        ] {
            assert_eq!(refused.0, Code::InvalidArgument, "{}", refused.1);
        }
        let octets = [0x0a, 2, 0xff, 0xfe];
        let refused = read_request::<v1::ChangeResponse>(&octets).unwrap_err();
        assert_eq!(refused.0, Code::Internal);
    }
}
