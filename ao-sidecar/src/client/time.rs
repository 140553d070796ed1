//! Moments and spans as they are shown.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

/// A moment of the API.
pub(super) type Moment = prost_types::Timestamp;
/// A span of the API.
pub(super) type Span = prost_types::Duration;

/// A moment that may not be there: null in JSON, a dash in tables.
#[derive(Clone, Copy)]
pub(super) struct At(pub(super) Option<Moment>);

impl Serialize for At {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().and_then(precise).serialize(serializer)
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_ref().and_then(short).as_deref().unwrap_or("-"))
    }
}

/// RFC 3339 in UTC with milliseconds, for programs and logs. A moment that no calendar has is
/// nothing.
pub(super) fn precise(moment: &Moment) -> Option<String> {
    timestamp(moment).map(|time| format!("{time:.3}"))
}

/// RFC 3339 in UTC with seconds, for tables.
pub(super) fn short(moment: &Moment) -> Option<String> {
    timestamp(moment).map(|time| format!("{time:.0}"))
}

fn timestamp(moment: &Moment) -> Option<Timestamp> {
    Timestamp::new(moment.seconds, moment.nanos).ok()
}

/// Milliseconds, rounded down; a negative span is none.
pub(super) fn milliseconds(span: &Span) -> u64 {
    microseconds(span) / 1000
}

/// The same in microseconds.
pub(super) fn microseconds(span: &Span) -> u64 {
    let seconds = u64::try_from(span.seconds).unwrap_or(0);
    let nanos = u64::try_from(span.nanos).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000)
        .saturating_add(nanos / 1000)
}

/// Days, hours, minutes and seconds, without leading zeros: `1d 2h 0m 5s`.
pub(super) fn duration(seconds: u64) -> String {
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let first = parts
        .iter()
        .position(|&(count, _)| count > 0)
        .unwrap_or(parts.len() - 1);
    let shown: Vec<String> = parts
        .iter()
        .skip(first)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    shown.join(" ")
}

/// The same, with milliseconds below ten seconds.
pub(super) fn short_duration(milliseconds: u64) -> String {
    match milliseconds {
        0..1000 => format!("{milliseconds}ms"),
        1000..10_000 => format!("{}.{:03}s", milliseconds / 1000, milliseconds % 1000),
        _ => duration(milliseconds / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_in_utc() {
        let moment = |seconds, nanos| Moment { seconds, nanos };
        let christmas = moment(1_798_156_800, 123_456_789);
        assert_eq!(precise(&christmas).unwrap(), "2026-12-25T00:00:00.123Z");
        assert_eq!(short(&christmas).unwrap(), "2026-12-25T00:00:00Z");
        assert_eq!(precise(&moment(i64::MAX, 0)), None);
        assert_eq!(precise(&moment(0, i32::MAX)), None);
    }

    #[test]
    fn spans_are_whole_milliseconds() {
        let span = |seconds, nanos| milliseconds(&Span { seconds, nanos });
        assert_eq!(span(2, 999_999_999), 2999);
        assert_eq!(span(-1, -5), 0);
        assert_eq!(span(i64::MAX, 0), u64::MAX / 1000);
    }

    #[test]
    fn durations_have_no_leading_zeros() {
        assert_eq!(duration(0), "0s");
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(3600), "1h 0m 0s");
        assert_eq!(duration(90_061), "1d 1h 1m 1s");
        assert_eq!(short_duration(7), "7ms");
        assert_eq!(short_duration(1070), "1.070s");
        assert_eq!(short_duration(61_999), "1m 1s");
    }
}
