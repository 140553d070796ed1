//! A caller's stream of events.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, Sender, error::SendTimeoutError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{EventLog, convert};
use crate::v1;

/// Most streams that follow at the same time.
const FOLLOWERS: usize = 32;
/// Events on their way to a caller.
const UNDER_WAY: usize = 64;
/// How long a caller may leave events unread before it is cut off.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a caller gets.
pub(crate) type EventStream = ReceiverStream<Result<v1::Event, Status>>;

/// Hands out streams of one log.
pub(crate) struct Streams {
    events: EventLog,
    followers: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

/// What a caller wants to see.
pub(crate) struct Wanted {
    pub(crate) after: u64,
    /// 0 when the caller does not know.
    pub(crate) log: u64,
    pub(crate) peer: Option<String>,
    pub(crate) follow: bool,
}

impl Streams {
    /// Streams end when `stop` becomes true.
    pub(crate) fn new(events: EventLog, stop: watch::Receiver<bool>) -> Self {
        Self {
            events,
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
            stop,
        }
    }

    pub(crate) fn log(&self) -> &EventLog {
        &self.events
    }

    /// Begins a stream.
    #[allow(clippy::result_large_err, reason = "callers answer with it")]
    pub(crate) fn open(&self, wanted: Wanted) -> Result<EventStream, Status> {
        let permit = match wanted.follow {
            true => Some(self.permit()?),
            false => None,
        };
        // One place more, so that the last word never has to wait.
        let (sender, receiver) = mpsc::channel(UNDER_WAY + 1);
        let follower = Follower {
            events: self.events.clone(),
            stop: self.stop.clone(),
            sender,
            wanted,
        };
        tokio::spawn(async move {
            follower.run().await;
            drop(permit);
        });
        Ok(ReceiverStream::new(receiver))
    }

    #[allow(clippy::result_large_err, reason = "callers answer with it")]
    fn permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.followers)
            .try_acquire_owned()
            .map_err(|_| {
                Status::resource_exhausted(format!("{FOLLOWERS} callers follow events already"))
            })
    }
}

struct Follower {
    events: EventLog,
    stop: watch::Receiver<bool>,
    sender: Sender<Result<v1::Event, Status>>,
    wanted: Wanted,
}

/// Why a stream ends.
enum End {
    /// All that was wanted has been sent.
    Done,
    /// The caller has gone.
    Left,
    /// The caller is told why.
    Because(Status),
}

impl Follower {
    async fn run(mut self) {
        let Ok(last_word) = self.sender.clone().reserve_owned().await else {
            return;
        };
        if let Err(End::Because(status)) = self.send_all().await {
            last_word.send(Err(status));
        }
    }

    async fn send_all(&mut self) -> Result<(), End> {
        let (mut cursor, gap) = opening(&self.events, self.wanted.after, self.wanted.log);
        if let Some(gap) = gap {
            self.send(gap).await?;
        }
        loop {
            let page = self.events.after(cursor);
            if let Some((from, to)) = page.lost {
                return Err(End::Because(Status::data_loss(format!(
                    "read too slowly: {} overwritten; go on with a new call after event {cursor}",
                    were(from, to)
                ))));
            }
            if page.events.is_empty() {
                self.wait(cursor).await?;
            }
            for event in page.events {
                cursor = event.sequence;
                if self.concerns(event.what.peer.as_deref()) {
                    self.send(convert::event(&event, self.events.id())).await?;
                }
            }
        }
    }

    fn concerns(&self, peer: Option<&str>) -> bool {
        // What concerns all peers concerns each.
        match (self.wanted.peer.as_deref(), peer) {
            (Some(wanted), Some(peer)) => wanted == peer,
            _ => true,
        }
    }

    async fn send(&self, event: v1::Event) -> Result<(), End> {
        match self.sender.send_timeout(Ok(event), PATIENCE).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Closed(_)) => Err(End::Left),
            Err(SendTimeoutError::Timeout(_)) => Err(End::Because(Status::resource_exhausted(
                format!("nothing was read for {} s", PATIENCE.as_secs()),
            ))),
        }
    }

    /// Until there is an event after number `cursor`.
    async fn wait(&mut self, cursor: u64) -> Result<(), End> {
        if !self.wanted.follow {
            return Err(End::Done);
        }
        tokio::select! {
            // First what is there, so that the last events before a stop arrive.
            biased;
            () = self.events.arrived(cursor) => Ok(()),
            () = self.sender.closed() => Err(End::Left),
            // A sender that is gone stops as well.
            _ = self.stop.wait_for(|&stop| stop) => {
                Err(End::Because(Status::unavailable("the sidecar is stopping")))
            }
        }
    }
}

/// After which number a stream begins, and what it says first when events are lost before that.
fn opening(events: &EventLog, after: u64, log: u64) -> (u64, Option<v1::Event>) {
    let id = events.id();
    let foreign = after > events.last() || (after > 0 && log != 0 && log != id);
    let lost = events.after(if foreign { 0 } else { after }).lost;
    let cursor = match (foreign, lost) {
        (_, Some((_, to))) => to,
        (true, None) => 0,
        (false, None) => return (after, None),
    };
    let message = match lost {
        Some((from, to)) if !foreign => format!("{} no longer kept", were(from, to)),
        _ => format!(
            "the sidecar was started again: what followed event {after} of its earlier log is lost"
        ),
    };
    (cursor, Some(convert::gap(cursor, id, message)))
}

fn were(from: u64, to: u64) -> String {
    if from == to {
        format!("event {from} is")
    } else {
        format!("events {from} to {to} are")
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::super::{NewEvent, Severity};
    use super::*;

    fn push(events: &EventLog, peer: &str, count: usize) {
        for _ in 0..count {
            events.push(NewEvent {
                peer: Some(peer.into()),
                kind: "proven",
                severity: Severity::Info,
                generation: None,
                key_id: None,
                trigger: None,
                proof: None,
                took: None,
                message: String::new(),
            });
        }
    }

    fn all(follow: bool) -> Wanted {
        Wanted {
            after: 0,
            log: 0,
            peer: None,
            follow,
        }
    }

    fn streams() -> (Streams, EventLog, watch::Sender<bool>) {
        let events = EventLog::new();
        let (stop, stopped) = watch::channel(false);
        (Streams::new(events.clone(), stopped), events, stop)
    }

    /// The next event's number and kind.
    async fn next(stream: &mut EventStream) -> (u64, String) {
        let event = soon(stream).await.unwrap().unwrap();
        (event.sequence, event.kind)
    }

    async fn soon(stream: &mut EventStream) -> Option<Result<v1::Event, Status>> {
        tokio::time::timeout(Duration::from_secs(10), stream.next())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_stream_ends_after_what_is_kept() {
        let (streams, events, _stop) = streams();
        push(&events, "x", 2);
        push(&events, "y", 1);
        push(&events, "x", 1);
        let mut stream = streams.open(all(false)).unwrap();
        for sequence in 1..=4 {
            assert_eq!(next(&mut stream).await, (sequence, "proven".into()));
        }
        assert!(soon(&mut stream).await.is_none());

        let wanted = Wanted {
            after: 1,
            peer: Some("x".into()),
            ..all(false)
        };
        let mut stream = streams.open(wanted).unwrap();
        assert_eq!(next(&mut stream).await.0, 2);
        assert_eq!(next(&mut stream).await.0, 4);
        assert!(soon(&mut stream).await.is_none());
    }

    #[tokio::test]
    async fn a_follower_gets_what_happens_until_the_stop() {
        let (streams, events, stop) = streams();
        let mut stream = streams.open(all(true)).unwrap();
        push(&events, "x", 1);
        assert_eq!(next(&mut stream).await.0, 1);
        push(&events, "x", 1);
        assert_eq!(next(&mut stream).await.0, 2);
        push(&events, "x", 1);
        stop.send(true).unwrap();
        assert_eq!(next(&mut stream).await.0, 3);
        let end = soon(&mut stream).await.unwrap().unwrap_err();
        assert_eq!(end.code(), tonic::Code::Unavailable);
        assert!(soon(&mut stream).await.is_none());
    }

    #[test]
    fn events_that_are_lost_are_told() {
        let events = EventLog::new();
        let gap = |after, log| {
            let (cursor, gap) = opening(&events, after, log);
            (cursor, gap.map(|gap| gap.message))
        };
        let restarted = |after| {
            Some(format!(
                "the sidecar was started again: what followed event {after} of its earlier log is \
                 lost"
            ))
        };
        assert_eq!(gap(0, 0), (0, None));
        assert_eq!(gap(5, 0), (0, restarted(5)));
        push(&events, "x", 5);
        assert_eq!(gap(5, 0), (5, None));
        assert_eq!(gap(5, events.id()), (5, None));
        assert_eq!(gap(5, events.id() + 1), (0, restarted(5)));
        assert_eq!(gap(0, events.id() + 1), (0, None));
        push(&events, "x", 4096 - 4);
        let lost = |text: &str| Some(text.to_owned());
        assert_eq!(gap(0, 0), (1, lost("event 1 is no longer kept")));
        push(&events, "x", 1);
        assert_eq!(gap(0, 0), (2, lost("events 1 to 2 are no longer kept")));
        assert_eq!(gap(2, 0), (2, None));
        assert_eq!(gap(u64::MAX, 0), (2, restarted(u64::MAX)));
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_is_told_and_cut_off() {
        let (streams, events, _stop) = streams();
        push(&events, "x", 4096);
        let mut stream = streams.open(all(true)).unwrap();
        assert_eq!(next(&mut stream).await.0, 1);
        push(&events, "x", 4096);
        let mut last = 1;
        let end = loop {
            match soon(&mut stream).await.unwrap() {
                Ok(event) => {
                    assert_eq!(event.sequence, last + 1);
                    last = event.sequence;
                }
                Err(end) => break end,
            }
        };
        assert_eq!(end.code(), tonic::Code::DataLoss);
        assert!(
            end.message()
                .ends_with(&format!("go on with a new call after event {last}")),
            "{end}"
        );
        assert!(soon(&mut stream).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_does_not_read_is_cut_off() {
        let (streams, events, _stop) = streams();
        push(&events, "x", UNDER_WAY + 1);
        let mut stream = streams.open(all(true)).unwrap();
        tokio::time::sleep(PATIENCE * 2).await;
        assert_eq!(streams.followers.available_permits(), FOLLOWERS);
        for sequence in 1..=UNDER_WAY {
            assert_eq!(next(&mut stream).await.0, sequence as u64);
        }
        let end = soon(&mut stream).await.unwrap().unwrap_err();
        assert_eq!(end.message(), "nothing was read for 30 s");
    }

    #[tokio::test]
    async fn followers_are_limited_and_make_room_when_they_leave() {
        let (streams, _events, _stop) = streams();
        let followers: Vec<_> = (0..FOLLOWERS)
            .map(|_| streams.open(all(true)).unwrap())
            .collect();
        let refused = streams.open(all(true)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(streams.open(all(false)).is_ok());
        drop(followers);
        let all = u32::try_from(FOLLOWERS).unwrap();
        let permits =
            tokio::time::timeout(Duration::from_secs(10), streams.followers.acquire_many(all));
        assert!(permits.await.is_ok(), "each has left");
    }
}
