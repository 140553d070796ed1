//! Answers that leave piece by piece, as they are read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body as HttpBody, Bytes, Frame};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::HeaderMap;

/// Octets that are handed over at a time.
const PIECE: usize = 16 << 10;

/// An answer that keeps the place of its call until all of it is handed over. HTTP/2 takes the
/// next piece when the caller has room for it, so a caller that does not read keeps the place, and
/// has as many answers in our memory as it may have calls. It ends early when the caller is
/// dismissed.
pub(super) struct Paced {
    inner: Body,
    rest: Bytes,
    dismissed: Pin<Box<dyn Future<Output = Status> + Send>>,
    over: bool,
    _place: OwnedSemaphorePermit,
}

impl Paced {
    /// `dismissed` completes with the reason why the caller gets no more of it.
    pub(super) fn new(
        inner: Body,
        place: OwnedSemaphorePermit,
        dismissed: impl Future<Output = Status> + Send + 'static,
    ) -> Self {
        Self {
            inner,
            rest: Bytes::new(),
            dismissed: Box::pin(dismissed),
            over: false,
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
        if self.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(reason) = self.dismissed.as_mut().poll(context) {
            self.over = true;
            let mut trailers = HeaderMap::new();
            let added = reason.add_header(&mut trailers);
            return Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))));
        }
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
        self.over || (self.rest.is_empty() && self.inner.is_end_stream())
    }
}
