//! Answers that leave piece by piece, as they are read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body as HttpBody, Bytes, Frame};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use tonic::body::Body;

/// Octets that are handed over at a time.
const PIECE: usize = 16 << 10;

/// An answer that keeps the place of its call until all of it is handed over. HTTP/2 takes the
/// next piece when the caller has room for it, so a caller that does not read keeps the place, and
/// has as many answers in our memory as it may have calls.
pub(super) struct Paced {
    inner: Body,
    rest: Bytes,
    _place: OwnedSemaphorePermit,
}

impl Paced {
    pub(super) fn new(inner: Body, place: OwnedSemaphorePermit) -> Self {
        Self {
            inner,
            rest: Bytes::new(),
            _place: place,
        }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let length = self.rest.len().min(PIECE);
        Frame::data(self.rest.split_to(length))
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(self.piece())));
        }
        let next = ready!(Pin::new(&mut self.inner).poll_frame(context));
        Poll::Ready(next.map(|frame| {
            Ok(match frame?.into_data() {
                Ok(data) => {
                    self.rest = data;
                    self.piece()
                }
                Err(trailers) => trailers,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }
}
