//! From the plain types to the messages of the API, and back.

pub(crate) mod administration;
pub(crate) mod requests;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::{Duration as Span, Timestamp};

use crate::operator::{
    CompletedRollover, Event, EventLog, GenerationReport, IdentityReport, KeyOrigin, KeyReport,
    KeyState, Lifetime, RolloverReport, Severity,
};
use crate::v1;

pub(crate) fn key(key: KeyReport) -> v1::Key {
    let mut message = v1::Key {
        peer: key.peer.to_string(),
        send_id: key.ids.map(|(send, _)| send.into()),
        recv_id: key.ids.map(|(_, recv)| recv.into()),
        algorithm: key.algorithm.to_owned(),
        state: state(key.state).into(),
        send: lifetime(key.send),
        accept: lifetime(key.accept),
        last_use: key.last_use.map(timestamp),
        segments_verified: key.segments_verified,
        ..v1::Key::default()
    };
    match key.origin {
        KeyOrigin::Chain { name } => message.key_chain = name.to_string(),
        KeyOrigin::Rollover {
            generation,
            there,
            agreed_at,
            segments_verified_there,
        } => {
            message.generation = generation;
            message.there = there.map_or(v1::KeyState::Unspecified, state).into();
            message.agreed_at = agreed_at.map(timestamp);
            message.segments_verified_there = Some(segments_verified_there);
        }
    }
    message
}

pub(crate) fn rollover(report: RolloverReport, events: &EventLog) -> v1::Rollover {
    let (unreachable_since, unreachable_reason) = report.unreachable.unzip();
    let counts = events.counts(&report.peer);
    v1::Rollover {
        peer: report.peer.to_string(),
        endpoint: report.endpoint,
        trust: report.trust,
        interval: Some(span(report.interval)),
        overlap: Some(span(report.overlap)),
        active: report.active.map(generation),
        target: report.target.map(generation),
        runway_ready: report.runway_ready,
        runway_wanted: report.runway_wanted,
        next: report.next.map(timestamp),
        last: report.last.map(completed),
        last_heard: report.last_heard.map(timestamp),
        unreachable_since: unreachable_since.map(timestamp),
        unreachable_reason: unreachable_reason.unwrap_or_default(),
        waiting: report.waiting.unwrap_or_default(),
        alarms: report.alarms,
        event_counts: counts
            .into_iter()
            .map(|(kind, count)| (kind.to_owned(), count))
            .collect(),
    }
}

pub(crate) fn identity(report: IdentityReport) -> v1::GetIdentityResponse {
    v1::GetIdentityResponse {
        fingerprint: report.fingerprint,
        certificate_file: report.certificate_file,
        expires: report.expires.map(timestamp),
        listen: report.listen,
    }
}

pub(crate) fn event(event: &Event, log: u64) -> v1::Event {
    let what = &event.what;
    v1::Event {
        sequence: event.sequence,
        log,
        time: Some(timestamp(event.time)),
        peer: what.peer.as_deref().unwrap_or_default().to_owned(),
        kind: what.kind.to_owned(),
        severity: severity(what.severity).into(),
        generation: what.generation.unwrap_or_default(),
        key_id: what.key_id.map(u32::from),
        trigger: what.trigger.unwrap_or_default().to_owned(),
        proof: what.proof.clone().unwrap_or_default(),
        took: what.took.map(span),
        message: what.message.clone(),
    }
}

/// Stands for events that are no longer there. `sequence`: the last one that is lost.
pub(crate) fn gap(sequence: u64, log: u64, message: String) -> v1::Event {
    v1::Event {
        sequence,
        log,
        time: Some(timestamp(SystemTime::now())),
        kind: "gap".to_owned(),
        severity: v1::Severity::Warning.into(),
        message,
        ..v1::Event::default()
    }
}

fn completed(last: CompletedRollover) -> v1::CompletedRollover {
    v1::CompletedRollover {
        at: Some(timestamp(last.at)),
        took: Some(span(last.took)),
        trigger: last.trigger.to_owned(),
    }
}

fn generation(generation: GenerationReport) -> v1::Generation {
    v1::Generation {
        number: generation.number,
        key_id: generation.key_id.map(u32::from),
        state: state(generation.state).into(),
        there: generation
            .there
            .map_or(v1::KeyState::Unspecified, state)
            .into(),
    }
}

fn state(state: KeyState) -> v1::KeyState {
    match state {
        KeyState::Offered => v1::KeyState::Offered,
        KeyState::Agreed => v1::KeyState::Agreed,
        KeyState::Installed => v1::KeyState::Installed,
        KeyState::Ready => v1::KeyState::Ready,
        KeyState::Selected => v1::KeyState::Selected,
        KeyState::Proven => v1::KeyState::Proven,
        KeyState::Retiring => v1::KeyState::Retiring,
        KeyState::Deleted => v1::KeyState::Deleted,
        KeyState::Revoking => v1::KeyState::Revoking,
        KeyState::Revoked => v1::KeyState::Revoked,
        KeyState::Pending => v1::KeyState::Pending,
        KeyState::Active => v1::KeyState::Active,
        KeyState::AcceptOnly => v1::KeyState::AcceptOnly,
        KeyState::Expired => v1::KeyState::Expired,
    }
}

fn severity(severity: Severity) -> v1::Severity {
    match severity {
        Severity::Info => v1::Severity::Info,
        Severity::Warning => v1::Severity::Warning,
        Severity::Alarm => v1::Severity::Alarm,
    }
}

fn lifetime(lifetime: Lifetime) -> Option<v1::Lifetime> {
    Some(v1::Lifetime {
        start: lifetime.start.map(timestamp),
        end: lifetime.end.map(timestamp),
    })
}

/// Nanoseconds count upwards also before 1970, as the format demands.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let (seconds, nanos) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (seconds(after), after.subsec_nanos()),
        Err(error) => match (error.duration(), error.duration().subsec_nanos()) {
            (before, 0) => (-seconds(before), 0),
            (before, nanos) => (-seconds(before) - 1, 1_000_000_000 - nanos),
        },
    };
    Timestamp {
        seconds,
        nanos: nanoseconds(nanos),
    }
}

fn span(duration: Duration) -> Span {
    Span {
        seconds: seconds(duration),
        nanos: nanoseconds(duration.subsec_nanos()),
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Below 1,000,000,000, so it always fits.
fn nanoseconds(nanos: u32) -> i32 {
    i32::try_from(nanos).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_and_nanoseconds_upwards() {
        let told = |time| {
            let Timestamp { seconds, nanos } = timestamp(time);
            (seconds, nanos)
        };
        let offset = Duration::new(5, 250_000_000);
        assert_eq!(told(UNIX_EPOCH + offset), (5, 250_000_000));
        assert_eq!(told(UNIX_EPOCH - offset), (-6, 750_000_000));
        assert_eq!(told(UNIX_EPOCH - Duration::from_secs(5)), (-5, 0));
    }

    #[test]
    fn keys_of_chains_and_generations_are_told_apart() {
        let chain = KeyReport {
            peer: "ix".into(),
            origin: KeyOrigin::Chain {
                name: "transit".into(),
            },
            ids: Some((1, 2)),
            algorithm: "hmac-sha-1-96",
            state: KeyState::AcceptOnly,
            send: Lifetime::default(),
            accept: Lifetime::default(),
            last_use: None,
            segments_verified: 3,
        };
        let message = key(chain.clone());
        assert_eq!((message.generation, &*message.key_chain), (0, "transit"));
        assert_eq!((message.send_id, message.recv_id), (Some(1), Some(2)));
        assert_eq!(message.state(), v1::KeyState::AcceptOnly);
        assert_eq!(message.segments_verified_there, None);

        let message = key(KeyReport {
            origin: KeyOrigin::Rollover {
                generation: 4,
                there: Some(KeyState::Installed),
                agreed_at: Some(UNIX_EPOCH),
                segments_verified_there: 9,
            },
            ids: None,
            ..chain
        });
        assert_eq!((message.generation, &*message.key_chain), (4, ""));
        assert_eq!((message.send_id, message.recv_id), (None, None));
        assert_eq!(message.there(), v1::KeyState::Installed);
        assert_eq!(message.segments_verified_there, Some(9));
        assert_eq!(message.agreed_at.unwrap().seconds, 0);
    }
}
