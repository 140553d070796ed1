//! What peers, key chains and keys are described with, named as in the configuration file.

use std::path::PathBuf;
use std::time::Duration;

use ao_engine::crypto::Algorithm;
use clap::Args;
use clap::builder::PossibleValuesParser;
use jiff::Timestamp;

/// What a peer is. What is not given has its default, or stays as it is.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSettings {
    /// Address or prefix, such as 192.0.2.2 or 2001:db8::/64
    #[arg(long, value_name = "ADDRESS")]
    pub peer_address: Option<String>,
    /// Name of its key chain
    #[arg(long, value_name = "CHAIN")]
    pub key_chain: Option<String>,
    /// Protected TCP port [default: 179]
    #[arg(long, value_name = "PORT", conflicts_with = "ports")]
    pub port: Option<u16>,
    /// Protected TCP ports, such as 179-180
    #[arg(long, value_name = "FIRST-LAST", value_parser = ports)]
    pub ports: Option<(u16, u16)>,
    /// Address of this end; empty for any
    #[arg(long, value_name = "ADDRESS")]
    pub local_address: Option<String>,
    /// Interface of a link-local peer
    #[arg(long, value_name = "DEVICE")]
    pub interface: Option<String>,
    /// VRF device; empty for any
    #[arg(long, value_name = "DEVICE")]
    pub vrf: Option<String>,
    /// Lowest TTL or hop limit accepted (RFC 5082); 0 accepts all
    #[arg(long, value_name = "TTL")]
    pub ttl_min: Option<u8>,
    /// Who signs and verifies its segments; without it what the file says for all
    #[arg(long, value_name = "BACKEND", value_parser = ["auto", "kernel", "userspace"])]
    pub datapath: Option<String>,
}

/// The rules of a key chain (RFC 8177).
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainRules {
    /// How far clocks may be apart, such as 5m
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub accept_tolerance: Option<Duration>,
    /// Allow times at which no key is sent with
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub allow_gaps: Option<bool>,
    /// What happens when the last key has ended
    #[arg(long, value_name = "WHAT", value_parser = ["keep", "close"])]
    pub on_expiry: Option<String>,
}

/// A key of a key chain.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct KeySettings {
    /// KeyID it is sent with
    #[arg(long, value_name = "ID")]
    pub send_id: u8,
    /// KeyID it is received with
    #[arg(long, value_name = "ID")]
    pub recv_id: u8,
    /// Algorithm of its MACs
    #[arg(long, value_name = "NAME", value_parser = algorithms())]
    pub algorithm: Option<String>,
    /// The file its secret is in, which only its owner may access; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Whether MACs cover the other TCP options [default: true]
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub include_tcp_options: Option<bool>,
    /// When it is sent with and accepted [default: always]
    #[arg(
        long,
        value_name = "SPAN",
        value_parser = lifetime,
        conflicts_with_all = ["send_lifetime", "accept_lifetime"]
    )]
    pub lifetime: Option<Span>,
    /// When it may be sent with
    #[arg(long, value_name = "SPAN", value_parser = lifetime)]
    pub send_lifetime: Option<Span>,
    /// When it is accepted; without it as long as it is sent with
    #[arg(long, value_name = "SPAN", value_parser = lifetime)]
    pub accept_lifetime: Option<Span>,
}

/// A lifetime; what is absent is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Its first moment.
    pub start: Option<Timestamp>,
    /// The first moment after it.
    pub end: Option<Timestamp>,
}

const MAX_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

fn algorithms() -> PossibleValuesParser {
    PossibleValuesParser::new(Algorithm::ALL.map(Algorithm::name))
}

/// A time with its unit; without one it is in seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let refused = || format!("{text:?} is no time; write one like 30, 90s or 5m");
    if !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit()) {
        return text.parse().map(Duration::from_secs).map_err(|_| refused());
    }
    humantime::parse_duration(text).map_err(|_| refused())
}

/// How long to wait for an answer: some time, and at most a day.
///
/// # Errors
/// When it is no time, or out of range.
pub fn patience(text: &str) -> Result<Duration, String> {
    let time = seconds(text)?;
    match time.is_zero() || time > MAX_PATIENCE {
        true => Err(format!("{text:?} is out of range; write 1ms to 1day")),
        false => Ok(time),
    }
}

pub(crate) fn ports(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| text.trim().parse().ok().filter(|&port: &u16| port > 0);
    text.split_once('-')
        .and_then(|(first, last)| Some((port(first)?, port(last)?)))
        .filter(|(first, last)| first <= last)
        .ok_or_else(|| "write FIRST-LAST, each 1 to 65535".to_owned())
}

/// `always`, or `START/END` as tables show it, where END may be a duration.
fn lifetime(text: &str) -> Result<Span, String> {
    if text == "always" {
        return Ok(Span::default());
    }
    let (start, end) = text
        .split_once('/')
        .ok_or("write always or START/END, with .. for an open end")?;
    let start = moment(start)?;
    let end = match (start, humantime::parse_duration(end)) {
        (Some(start), Ok(length)) => {
            let end = start.checked_add(length);
            Some(end.map_err(|_| format!("{end:?} has no date", end = text))?)
        }
        (None, Ok(_)) => return Err("a duration needs a start".to_owned()),
        (_, Err(_)) => moment(end)?,
    };
    match (start, end) {
        (Some(start), Some(end)) if end <= start => Err("it ends before it starts".to_owned()),
        (None, None) => Err("write always for a lifetime without start and end".to_owned()),
        _ => Ok(Span { start, end }),
    }
}

/// A moment with its time zone; `..` for none.
fn moment(text: &str) -> Result<Option<Timestamp>, String> {
    if text == ".." {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| match text.parse::<jiff::civil::DateTime>() {
            Ok(_) => format!("{text:?} has no time zone; write one like 2026-12-01T00:00:00Z"),
            Err(_) => format!("{text:?} is no date-time; write one like 2026-12-01T00:00:00Z"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_read_as_they_are_shown() {
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        let span = |start, end| Ok(Span { start, end });
        let (december, january) = (at("2026-12-01T00:00:00Z"), at("2027-01-01T00:00:00Z"));
        assert_eq!(lifetime("always"), span(None, None));
        assert_eq!(lifetime("2026-12-01T00:00:00Z/.."), span(december, None));
        assert_eq!(
            lifetime("../2027-01-01T01:00:00+01:00"),
            span(None, january)
        );
        assert_eq!(
            lifetime("2026-12-01T00:00:00Z/2027-01-01T00:00:00Z"),
            span(december, january)
        );
        assert_eq!(
            lifetime("2026-12-01T00:00:00Z/31d"),
            span(december, january)
        );
    }

    #[test]
    fn wrong_lifetimes_are_refused_with_what_to_write() {
        let refusal = |text| lifetime(text).unwrap_err();
        assert_eq!(
            refusal("2026"),
            "write always or START/END, with .. for an open end"
        );
        assert_eq!(refusal("../31d"), "a duration needs a start");
        assert_eq!(
            refusal("../.."),
            "write always for a lifetime without start and end"
        );
        assert_eq!(
            refusal("2026-12-01T00:00:00/.."),
            "\"2026-12-01T00:00:00\" has no time zone; write one like 2026-12-01T00:00:00Z"
        );
        assert_eq!(
            refusal("../soon"),
            "\"soon\" is no date-time; write one like 2026-12-01T00:00:00Z"
        );
        assert_eq!(
            refusal("2026-12-01T00:00:00Z/2026-12-01T00:00:00Z"),
            "it ends before it starts"
        );
        assert!(refusal("9999-12-01T00:00:00Z/99years").ends_with("has no date"));
    }

    #[test]
    fn times_have_a_unit_or_are_in_seconds() {
        assert_eq!(seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        assert_eq!(seconds("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(seconds("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "-1", "soon", "99999999999999999999", "1.5"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_are_a_range_in_order() {
        assert_eq!(ports("179-180"), Ok((179, 180)));
        assert_eq!(ports("179 - 179"), Ok((179, 179)));
        for wrong in ["179", "0-1", "2-1", "1-65536", "-", ""] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
