//! Streams of events: resumed, left unread, ended.

use tonic::Code;

use super::support::{PATIENCE, Served};
use crate::{Client, v1};

async fn watch(client: &mut Client, after: u64, log: u64) -> tonic::Streaming<v1::Event> {
    let wanted = v1::WatchEventsRequest {
        after,
        log,
        follow: true,
        ..v1::WatchEventsRequest::default()
    };
    client.watch_events(wanted).await.unwrap().into_inner()
}

async fn next(stream: &mut tonic::Streaming<v1::Event>) -> Result<v1::Event, tonic::Status> {
    let next = tokio::time::timeout(PATIENCE, stream.message()).await;
    Ok(next.unwrap()?.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_it_was_cut() {
    let served = Served::start();
    for over in 0..2 {
        let (mut after, mut log) = (served.events.last(), served.events.id());
        let first = after + 1;
        let mut seen = Vec::new();
        for _ in 0..10 {
            // Another connection each time; the one before goes away in the middle of its stream.
            let [unix, tcp] = served.both("viewer").await;
            let mut client = [unix, tcp].into_iter().nth(over).unwrap();
            let mut stream = watch(&mut client, after, log).await;
            served.push(30);
            for _ in 0..20 {
                let event = next(&mut stream).await.unwrap();
                assert_eq!(event.kind, "proven");
                (after, log) = (event.sequence, event.log);
                seen.push(event.sequence);
            }
        }
        let expected: Vec<u64> = (first..first + 200).collect();
        assert_eq!(seen, expected);
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_is_cut_off_and_harms_nobody() {
    let served = Served::start();
    for mut client in served.both("viewer").await {
        let before = served.events.last();
        let mut stopped = watch(&mut client, before, served.events.id()).await;
        served.push(1);
        assert_eq!(next(&mut stopped).await.unwrap().sequence, before + 1);
        // More than are kept, while it does not read.
        served.push(3 * 4096);
        for mut other in served.both("operator").await {
            let mut reads = watch(&mut other, served.events.last(), 0).await;
            served.push(1);
            assert_eq!(
                next(&mut reads).await.unwrap().sequence,
                served.events.last()
            );
        }
        served.still_serves().await;
        // What was on its way arrives in order; then it is told.
        let mut last = before + 1;
        let end = loop {
            match next(&mut stopped).await {
                Ok(event) => {
                    assert_eq!(event.sequence, last + 1);
                    last = event.sequence;
                }
                Err(end) => break end,
            }
        };
        assert_eq!(end.code(), Code::DataLoss, "{end}");
        assert!(
            end.message().contains(&format!("after event {last}")),
            "{end}"
        );
        let under_way = last - before;
        assert!(under_way < 2048, "{under_way} events were held for it");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_when_the_server_stops() {
    let served = Served::start();
    let clients = served.both("viewer").await;
    let mut streams = Vec::new();
    for mut client in clients {
        streams.push(watch(&mut client, 0, 0).await);
    }
    served.push(1);
    served.stop().await;
    for mut stream in streams {
        assert_eq!(next(&mut stream).await.unwrap().sequence, 1);
        assert_eq!(
            next(&mut stream).await.unwrap_err().code(),
            Code::Unavailable
        );
    }
}
