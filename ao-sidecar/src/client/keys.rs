//! Keys, key changes and the identity as they are shown. The JSON of each is stable: fields are
//! added, never renamed; moments are RFC 3339 in UTC, and what is not there is null.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use grpc_api::v1;
use serde::Serialize;

use super::output::{Answer, Paint, Tone};
use super::table::{Column, Table, printable};
use super::time::{At, duration, milliseconds, short, short_duration};

#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct Keys(Vec<Key>);

#[derive(Serialize)]
struct Key {
    peer: String,
    generation: Option<u64>,
    send_id: Option<u32>,
    recv_id: Option<u32>,
    algorithm: Option<String>,
    key_chain: Option<String>,
    state: &'static str,
    there: Option<&'static str>,
    send: Lifetime,
    accept: Lifetime,
    agreed_at: At,
    last_use: At,
    segments_verified: u64,
    segments_verified_there: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct Lifetime {
    start: At,
    end: At,
}

#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct Rollovers(Vec<Rollover>);

/// One of them, asked for by name.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct OneRollover(Vec<Rollover>);

#[derive(Serialize)]
struct Rollover {
    peer: String,
    endpoint: String,
    trust: String,
    interval_seconds: u64,
    overlap_seconds: u64,
    active: Option<Generation>,
    target: Option<Generation>,
    runway_ready: u32,
    runway_wanted: u32,
    next: At,
    last: Option<Completed>,
    last_heard: At,
    unreachable_since: At,
    unreachable_reason: Option<String>,
    waiting: Option<String>,
    alarms: Vec<String>,
    event_counts: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Generation {
    number: u64,
    key_id: Option<u32>,
    state: &'static str,
    there: Option<&'static str>,
}

#[derive(Serialize)]
struct Completed {
    at: At,
    took_ms: u64,
    trigger: String,
}

#[derive(Serialize)]
pub(super) struct Identity {
    fingerprint: String,
    certificate_file: String,
    expires: At,
    listen: Vec<String>,
}

/// What was done, in a sentence.
#[derive(Serialize)]
pub(super) struct Done {
    message: String,
}

impl Answer for Keys {
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&[
            Column::Text("PEER"),
            Column::Number("GEN"),
            Column::Number("SEND-ID"),
            Column::Number("RECV-ID"),
            Column::Text("ALGORITHM"),
            Column::Text("ORIGIN"),
            Column::State("STATE"),
            Column::Text("THERE"),
            Column::Text("SEND"),
            Column::Text("ACCEPT"),
            Column::Text("LAST-USE"),
            Column::Number("VERIFIED"),
            Column::Number("VERIFIED-THERE"),
        ]);
        for key in &self.0 {
            // An agreed key has no lifetime: rollover ends it.
            let lifetime = |lifetime: &Lifetime| match key.generation {
                Some(_) => "-".to_owned(),
                None => lifetime.to_string(),
            };
            table.row([
                &key.peer,
                &or_dash(key.generation),
                &or_dash(key.send_id),
                &or_dash(key.recv_id),
                &or_dash(key.algorithm.as_ref()),
                &key.key_chain.as_deref().unwrap_or("(rollover)"),
                &key.state,
                &or_dash(key.there),
                &lifetime(&key.send),
                &lifetime(&key.accept),
                &key.last_use,
                &key.segments_verified,
                &or_dash(key.segments_verified_there),
            ]);
        }
        table.write("no keys", paint, out)
    }
}

impl Answer for Rollovers {
    /// A line for each, then the alarms.
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&[
            Column::Text("PEER"),
            Column::Number("ACTIVE"),
            Column::Number("KEY"),
            Column::State("STATE"),
            Column::Text("TARGET"),
            Column::Text("RUNWAY"),
            Column::Text("NEXT"),
            Column::State("CHANNEL"),
            Column::Number("ALARMS"),
        ]);
        for rollover in &self.0 {
            let active = rollover.active.as_ref();
            let target = rollover.target.as_ref();
            table.row([
                &rollover.peer,
                &or_dash(active.map(|active| active.number)),
                &or_dash(active.and_then(|active| active.key_id)),
                &active.map_or("blocked", |active| active.state),
                &or_dash(target.map(|target| format!("{} {}", target.number, target.state))),
                &format!("{}/{}", rollover.runway_ready, rollover.runway_wanted),
                &rollover.next,
                &rollover.channel().0,
                &rollover.alarms.len(),
            ]);
        }
        table.write("no automatic peers", paint, out)?;
        let troubled: Vec<&Rollover> = self.0.iter().filter(|one| !one.alarms.is_empty()).collect();
        if !troubled.is_empty() {
            writeln!(out)?;
        }
        for rollover in troubled {
            for alarm in &rollover.alarms {
                let word = paint.paint(Tone::Bad, "ALARM");
                writeln!(out, "{word} {}: {}", rollover.peer, printable(alarm))?;
            }
        }
        Ok(())
    }
}

impl Answer for OneRollover {
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        for rollover in &self.0 {
            for (name, value) in rollover.lines() {
                let tone = match name {
                    "ALARM" => Tone::Bad,
                    _ => Tone::Plain,
                };
                let name = format!("{name:<10}");
                writeln!(out, "{}  {}", paint.paint(tone, &name), printable(&value))?;
            }
        }
        Ok(())
    }
}

impl Rollover {
    /// Everything about it, the alarms first.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("peer", self.peer.clone())];
        lines.extend(self.alarms.iter().map(|alarm| ("ALARM", alarm.clone())));
        let generation = |generation: Option<&Generation>, none: &str| {
            generation.map_or_else(|| none.to_owned(), Generation::sentence)
        };
        lines.extend([
            (
                "active",
                generation(self.active.as_ref(), "none: the peer is blocked"),
            ),
            (
                "target",
                generation(self.target.as_ref(), "none: no change is under way"),
            ),
        ]);
        lines.extend(self.waiting.iter().map(|cause| ("waiting", cause.clone())));
        let last = self.last.as_ref().map(|last| {
            let took = short_duration(last.took_ms);
            format!("{}, took {took}, trigger {}", last.at, last.trigger)
        });
        let (channel, reason) = self.channel();
        let since = match reason {
            Some(reason) => format!(" since {}: {reason}", self.unreachable_since),
            None => String::new(),
        };
        let events: Vec<String> = self
            .event_counts
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        lines.extend([
            (
                "runway",
                format!("{} of {} ready", self.runway_ready, self.runway_wanted),
            ),
            ("next", self.next.to_string()),
            ("last", or_dash(last)),
            ("interval", duration(self.interval_seconds)),
            ("overlap", duration(self.overlap_seconds)),
            ("channel", format!("{channel}{since}")),
            ("last heard", self.last_heard.to_string()),
            ("endpoint", self.endpoint.clone()),
            ("trust", self.trust.clone()),
            (
                "events",
                or_dash(Some(events.join(", ")).filter(|all| !all.is_empty())),
            ),
        ]);
        lines
    }

    /// The state of the channel in a word, and what ails it.
    fn channel(&self) -> (&'static str, Option<&str>) {
        match (self.unreachable_since.0, self.last_heard.0) {
            (Some(_), _) => {
                let reason = self.unreachable_reason.as_deref();
                (
                    "unreachable",
                    Some(reason.unwrap_or("the reason is unknown")),
                )
            }
            (None, Some(_)) => ("ok", None),
            (None, None) => ("untried", None),
        }
    }
}

impl Generation {
    fn sentence(&self) -> String {
        let key = match self.key_id {
            Some(id) => format!("key {id}"),
            None => "no key yet".to_owned(),
        };
        let there = self.there.unwrap_or("unknown");
        format!(
            "generation {}, {key}: {} here, {there} there",
            self.number, self.state
        )
    }
}

impl Answer for Identity {
    fn text(&self, _: Paint, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "fingerprint  {}", self.fingerprint)?;
        writeln!(out, "certificate  {}", self.certificate_file)?;
        writeln!(out, "expires      {}", self.expires)?;
        let listen = Some(self.listen.join(", ")).filter(|all| !all.is_empty());
        writeln!(out, "listens on   {}", or_dash(listen))
    }
}

impl Answer for Done {
    fn text(&self, _: Paint, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", printable(&self.message))
    }
}

impl fmt::Display for Lifetime {
    /// As an interval of ISO 8601, with two dots for an open end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = |moment: At| moment.0.as_ref().and_then(short);
        match (moment(self.start), moment(self.end)) {
            (None, None) => f.write_str("always"),
            (start, end) => {
                let start = start.as_deref().unwrap_or("..");
                write!(f, "{start}/{}", end.as_deref().unwrap_or(".."))
            }
        }
    }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Text that is there; empty is none.
pub(super) fn filled(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// The name of a state; nothing when none is told.
fn state(state: v1::KeyState) -> Option<&'static str> {
    Some(match state {
        v1::KeyState::Unspecified => return None,
        v1::KeyState::Offered => "offered",
        v1::KeyState::Agreed => "agreed",
        v1::KeyState::Installed => "installed",
        v1::KeyState::Ready => "ready",
        v1::KeyState::Selected => "selected",
        v1::KeyState::Proven => "proven",
        v1::KeyState::Retiring => "retiring",
        v1::KeyState::Deleted => "deleted",
        v1::KeyState::Revoking => "revoking",
        v1::KeyState::Revoked => "revoked",
        v1::KeyState::Pending => "pending",
        v1::KeyState::Active => "active",
        v1::KeyState::AcceptOnly => "accept-only",
        v1::KeyState::Expired => "expired",
    })
}

/// The same where a state is always told: by a later sidecar it may be one without a name here.
pub(super) fn own_state(told: v1::KeyState) -> &'static str {
    state(told).unwrap_or("unknown")
}

impl From<v1::ListKeysResponse> for Keys {
    fn from(answer: v1::ListKeysResponse) -> Self {
        Self(answer.keys.into_iter().map(Key::from).collect())
    }
}

impl From<v1::Key> for Key {
    fn from(key: v1::Key) -> Self {
        Self {
            state: own_state(key.state()),
            there: state(key.there()),
            generation: Some(key.generation).filter(|&number| number > 0),
            send_id: key.send_id,
            recv_id: key.recv_id,
            algorithm: filled(key.algorithm),
            key_chain: filled(key.key_chain),
            send: key.send.unwrap_or_default().into(),
            accept: key.accept.unwrap_or_default().into(),
            agreed_at: At(key.agreed_at),
            last_use: At(key.last_use),
            segments_verified: key.segments_verified,
            segments_verified_there: key.segments_verified_there,
            peer: key.peer,
        }
    }
}

impl From<v1::Lifetime> for Lifetime {
    fn from(v1::Lifetime { start, end }: v1::Lifetime) -> Self {
        Self {
            start: At(start),
            end: At(end),
        }
    }
}

impl From<v1::GetRolloverResponse> for Rollovers {
    fn from(answer: v1::GetRolloverResponse) -> Self {
        Self(answer.rollovers.into_iter().map(Rollover::from).collect())
    }
}

impl From<v1::GetRolloverResponse> for OneRollover {
    fn from(answer: v1::GetRolloverResponse) -> Self {
        Self(Rollovers::from(answer).0)
    }
}

impl From<v1::Rollover> for Rollover {
    fn from(rollover: v1::Rollover) -> Self {
        let seconds =
            |span: Option<prost_types::Duration>| span.map_or(0, |span| milliseconds(&span) / 1000);
        Self {
            peer: rollover.peer,
            endpoint: rollover.endpoint,
            trust: rollover.trust,
            interval_seconds: seconds(rollover.interval),
            overlap_seconds: seconds(rollover.overlap),
            active: rollover.active.map(Generation::from),
            target: rollover.target.map(Generation::from),
            runway_ready: rollover.runway_ready,
            runway_wanted: rollover.runway_wanted,
            next: At(rollover.next),
            last: rollover.last.map(Completed::from),
            last_heard: At(rollover.last_heard),
            unreachable_since: At(rollover.unreachable_since),
            unreachable_reason: filled(rollover.unreachable_reason),
            waiting: filled(rollover.waiting),
            alarms: rollover.alarms,
            event_counts: rollover.event_counts,
        }
    }
}

impl From<v1::Generation> for Generation {
    fn from(generation: v1::Generation) -> Self {
        Self {
            state: own_state(generation.state()),
            there: state(generation.there()),
            number: generation.number,
            key_id: generation.key_id,
        }
    }
}

impl From<v1::CompletedRollover> for Completed {
    fn from(v1::CompletedRollover { at, took, trigger }: v1::CompletedRollover) -> Self {
        Self {
            at: At(at),
            took_ms: took.as_ref().map_or(0, milliseconds),
            trigger,
        }
    }
}

impl From<v1::StartRolloverResponse> for Done {
    fn from(v1::StartRolloverResponse { message }: v1::StartRolloverResponse) -> Self {
        Self { message }
    }
}

impl From<v1::AbortRolloverResponse> for Done {
    fn from(v1::AbortRolloverResponse { message }: v1::AbortRolloverResponse) -> Self {
        Self { message }
    }
}

impl From<v1::ForceRolloverResponse> for Done {
    fn from(v1::ForceRolloverResponse { message }: v1::ForceRolloverResponse) -> Self {
        Self { message }
    }
}

impl From<v1::GetIdentityResponse> for Identity {
    fn from(
        v1::GetIdentityResponse {
            fingerprint,
            certificate_file,
            expires,
            listen,
        }: v1::GetIdentityResponse,
    ) -> Self {
        Self {
            fingerprint,
            certificate_file,
            expires: At(expires),
            listen,
        }
    }
}
