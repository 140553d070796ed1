//! Lifetimes of keys, and the times and durations they are written in.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use keymgr::lifetime::{Lifetime, Tolerance};
use toml::de::DeValue;

use super::section::{Schema, Section};

const LIFETIME: Schema = Schema {
    title: "a lifetime",
    required: &[],
    optional: &["start", "end", "duration"],
};

/// How a lifetime is written.
const FORMS: &str = "\"always\" or { start = …, end = … }";

/// The keys that a key's lifetimes are written with.
pub(super) const LIFETIMES: [&str; 3] = ["lifetime", "send_lifetime", "accept_lifetime"];

/// When a key is sent, and when it is accepted. Nothing if a problem was noted.
pub(super) fn lifetimes(key: &mut Section<'_, '_>) -> Option<(Lifetime, Lifetime)> {
    let [both, send, accept] = LIFETIMES;
    if key.has(both) {
        if let Some(other) = [send, accept].into_iter().find(|other| key.has(other)) {
            let text = format!("the key has `lifetime` and `{other}`; write one of them");
            key.problem(other, text);
        }
        let lifetime = lifetime(key, both)?;
        return Some((lifetime, lifetime));
    }
    if key.has(accept) && !key.has(send) {
        let text = "the key has no `send_lifetime`, so it is sent for ever; add it, or write \
                    `lifetime` for both";
        key.problem(accept, text);
        return None;
    }
    if !key.has(send) {
        return Some((Lifetime::ALWAYS, Lifetime::ALWAYS));
    }
    let given_accept = key.has(accept).then(|| lifetime(key, accept));
    let send = lifetime(key, send)?;
    Some((send, given_accept.unwrap_or(Some(send))?))
}

fn lifetime(key: &mut Section<'_, '_>, name: &'static str) -> Option<Lifetime> {
    match key.value(name)? {
        DeValue::String(_) => {
            return key.parsed(name, |text| match text {
                "always" => Ok(Lifetime::ALWAYS),
                _ => Err(format!("{text:?} is no lifetime; write {FORMS}")),
            });
        }
        DeValue::Table(_) => {}
        other => return key.wrong_type(name, FORMS, other),
    }
    let span = key.table(name, &LIFETIME)?;
    let start = span.has("start").then(|| instant(&span, "start"));
    let end = match (span.has("end"), span.has("duration")) {
        (true, true) => {
            let text = "the lifetime has `end` and `duration`; write one of them";
            span.problem("duration", text);
            return None;
        }
        (true, false) => Some(instant(&span, "end")),
        (false, true) => Some(end_after(&span, start)),
        (false, false) => None,
    };
    if start.is_none() && end.is_none() {
        let text = "the lifetime has neither `start` nor `end`; add one, or write \"always\"";
        span.problem("start", text);
        return None;
    }
    let (start, end) = (
        start.map_or(Some(None), to_some)?,
        end.map_or(Some(None), to_some)?,
    );
    Lifetime::new(start, end)
        .map_err(|error| span.problem("end", format!("{error}; write a later `end`")))
        .ok()
}

/// A given value that was read, as one that may be absent.
fn to_some<T>(read: Option<T>) -> Option<Option<T>> {
    read.map(Some)
}

/// The end of a lifetime that is written by its start and duration.
fn end_after(span: &Section<'_, '_>, start: Option<Option<SystemTime>>) -> Option<SystemTime> {
    let Some(start) = start else {
        let text = "the lifetime has a `duration` and no `start`; add it";
        span.problem("duration", text);
        return None;
    };
    let (start, length) = (start?, duration(span, "duration")?);
    let end = start.checked_add(length);
    // What has no date could not be shown either.
    let end = end.filter(|&end| Timestamp::try_from(end).is_ok());
    if end.is_none() {
        let text = "`duration` is too long; leave it away for a lifetime without end";
        span.problem("duration", text);
    }
    end
}

/// An instant, as a TOML date-time or a string, with its zone.
fn instant(section: &Section<'_, '_>, key: &str) -> Option<SystemTime> {
    let written = match section.value(key)? {
        DeValue::Datetime(written) => written.to_string(),
        DeValue::String(written) => written.to_string(),
        other => return section.wrong_type(key, "a date-time like 2026-12-01T00:00:00Z", other),
    };
    match written.parse::<Timestamp>() {
        Ok(instant) => Some(instant.into()),
        Err(_) if lacks_zone(&written) => {
            let text = format!(
                "{written:?} has no time zone, and could be read differently at either end; write \
                 it with one, like 2026-12-01T00:00:00Z or 2026-12-01T01:00:00+01:00"
            );
            section.problem(key, text);
            None
        }
        Err(_) => {
            let text = format!("{written:?} is no date-time; write one like 2026-12-01T00:00:00Z");
            section.problem(key, text);
            None
        }
    }
}

fn lacks_zone(written: &str) -> bool {
    written.parse::<jiff::civil::DateTime>().is_ok()
}

/// A duration above zero.
pub(super) fn duration(section: &Section<'_, '_>, key: &str) -> Option<Duration> {
    match section.value(key)? {
        DeValue::String(_) => section.parsed(key, parse_duration),
        other => section.wrong_type(key, "a duration in quotes, like \"24h\"", other),
    }
}

/// How far clocks may be apart.
pub(super) fn tolerance(chain: &Section<'_, '_>) -> Option<Tolerance> {
    chain.parsed("accept_tolerance", |text| match text {
        "forever" => Ok(Tolerance::Forever),
        // The one duration that may be nothing.
        "0s" => Ok(Tolerance::Within(Duration::ZERO)),
        _ => parse_duration(text).map(Tolerance::Within),
    })
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let refused =
        || format!("{text:?} is no duration; write one like \"90s\", \"5m\", \"24h\" or \"31d\"");
    let duration = humantime::parse_duration(text).map_err(|_| refused())?;
    if duration.is_zero() {
        return Err(refused());
    }
    Ok(duration)
}

/// An instant as people write it, in UTC.
pub(super) fn shown(instant: SystemTime) -> String {
    let instant = Timestamp::try_from(instant);
    instant.map_or_else(
        |_| "beyond all dates".to_owned(),
        |instant| instant.to_string(),
    )
}
