//! Brings news from the sidecar, and goes on trying while it does not answer.

use std::io;
use std::time::{Duration, Instant};

use grpc_api::Client;
use grpc_api::v1::{GetStatusRequest, ListSessionsRequest, WatchEventsRequest};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::super::events::Event;
use super::super::{ClientError, PATIENCE, Sidecar, runtime};
use super::view::{Key, Message, Sample};

/// News that may wait to be shown; then the sidecar is asked no more until some are.
const WAITING: usize = 64;

/// Looks at the sidecar each `every`, from a thread of its own that ends with the receiver.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn start(sidecar: Sidecar, every: Duration) -> io::Result<Receiver<Message>> {
    let (news, received) = channel(WAITING);
    let runtime = runtime()?;
    std::thread::Builder::new().spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = interrupted() => {
                    // Whoever does not listen any more has ended already.
                    let _ = news.send(Message::Key(Key::Quit)).await;
                }
                () = look(&sidecar, every, &news) => {}
                () = follow(&sidecar, every, &news) => {}
            }
        });
    })?;
    Ok(received)
}

/// Completes when the process is told to end: the terminal is to be put back first.
async fn interrupted() {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let [mut interrupt, mut terminate, mut hangup] = match kinds.map(signal) {
        [Ok(interrupt), Ok(terminate), Ok(hangup)] => [interrupt, terminate, hangup],
        // Then a signal ends the process as it ends any other.
        _ => return std::future::pending().await,
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}

/// Looks again and again, until nobody listens any more.
async fn look(sidecar: &Sidecar, every: Duration, news: &Sender<Message>) {
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connected = None;
    loop {
        tick.tick().await;
        let message = match sample(sidecar, &mut connected).await {
            Ok(sample) => Message::Sample(Box::new(sample)),
            Err(error) => {
                connected = None;
                Message::Lost(error.to_string())
            }
        };
        if news.send(message).await.is_err() {
            return;
        }
    }
}

async fn sample(sidecar: &Sidecar, connected: &mut Option<Client>) -> Result<Sample, ClientError> {
    let client = match connected {
        Some(client) => client,
        None => connected.insert(sidecar.connect(PATIENCE).await?),
    };
    let status = client.get_status(GetStatusRequest {}).await;
    let status = status.map_err(|status| sidecar.failed(&status))?;
    let at = Instant::now();
    let sessions = client.list_sessions(ListSessionsRequest {}).await;
    let sessions = sessions.map_err(|status| sidecar.failed(&status))?;
    Ok(Sample {
        at,
        status: status.into_inner(),
        sessions: sessions.into_inner().sessions,
    })
}

/// Follows the events; after the sidecar was away it goes on where it was.
async fn follow(sidecar: &Sidecar, every: Duration, news: &Sender<Message>) {
    let mut request = WatchEventsRequest {
        follow: true,
        ..WatchEventsRequest::default()
    };
    while !news.is_closed() {
        // What is wrong with the sidecar is told by looking at it.
        let _ = follow_once(sidecar, &mut request, news).await;
        sleep(every).await;
    }
}

async fn follow_once(
    sidecar: &Sidecar,
    request: &mut WatchEventsRequest,
    news: &Sender<Message>,
) -> Result<(), ClientError> {
    let failed = |status: tonic::Status| sidecar.failed(&status);
    let mut client = sidecar.connect(PATIENCE).await?;
    let events = client.watch_events(request.clone()).await.map_err(failed)?;
    let mut events = events.into_inner();
    while let Some(event) = events.message().await.map_err(failed)? {
        (request.after, request.log) = (event.sequence, event.log);
        if news.send(Message::Event(Event::from(event))).await.is_err() {
            break;
        }
    }
    Ok(())
}
