//! Key chains as they are shown.

use std::io::{self, Write};

use grpc_api::v1;
use serde::Serialize;

use super::keys::{Lifetime, own_state};
use super::output::{Answer, Paint, Tone};
use super::table::{Column, Table, printable};
use super::time::{milliseconds, short_duration};

#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct KeyChains(Vec<KeyChain>);

#[derive(Serialize)]
struct KeyChain {
    name: String,
    origin: &'static str,
    line: Option<u32>,
    accept_tolerance_ms: Option<u64>,
    allow_gaps: bool,
    on_expiry: String,
    peers: Vec<String>,
    keys: Vec<ChainKey>,
}

#[derive(Serialize)]
struct ChainKey {
    send_id: Option<u32>,
    recv_id: Option<u32>,
    algorithm: String,
    include_tcp_options: bool,
    state: &'static str,
    send: Lifetime,
    accept: Lifetime,
    origin: &'static str,
    line: Option<u32>,
}

impl Answer for KeyChains {
    /// The rules of each, then its keys.
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        if self.0.is_empty() {
            writeln!(out, "no key chains")?;
        }
        for (number, chain) in self.0.iter().enumerate() {
            if number > 0 {
                writeln!(out)?;
            }
            chain.write(paint, out)?;
        }
        Ok(())
    }
}

impl KeyChain {
    fn write(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        let head = format!("key chain {}", printable(&self.name));
        let origin = origin_text(self.origin, self.line);
        writeln!(out, "{} ({origin})", paint.paint(Tone::Heading, &head))?;
        let peers = match self.peers.is_empty() {
            true => "none".to_owned(),
            false => self.peers.join(", "),
        };
        writeln!(out, "peers      {}", printable(&peers))?;
        let tolerance = self
            .accept_tolerance_ms
            .map_or("none".to_owned(), short_duration);
        let gaps = if self.allow_gaps {
            "allowed"
        } else {
            "not allowed"
        };
        let on_expiry = printable(&self.on_expiry);
        writeln!(
            out,
            "rules      tolerance {tolerance}, gaps {gaps}, on expiry {on_expiry}"
        )?;
        let mut table = Table::new(&[
            Column::Number("SEND-ID"),
            Column::Number("RECV-ID"),
            Column::Text("ALGORITHM"),
            Column::Text("OPTIONS"),
            Column::State("STATE"),
            Column::Text("SEND"),
            Column::Text("ACCEPT"),
            Column::Text("ORIGIN"),
        ]);
        for key in &self.keys {
            let id = |id: Option<u32>| id.map_or("-".to_owned(), |id| id.to_string());
            let options = if key.include_tcp_options {
                "covered"
            } else {
                "left out"
            };
            table.row([
                &id(key.send_id),
                &id(key.recv_id),
                &key.algorithm,
                &options,
                &key.state,
                &key.send,
                &key.accept,
                &origin_text(key.origin, key.line),
            ]);
        }
        table.write("no keys", paint, out)
    }
}

/// Where something was made, with its line in the file.
fn origin_text(origin: &str, line: Option<u32>) -> String {
    match line {
        Some(line) => format!("{origin}, line {line}"),
        None => origin.to_owned(),
    }
}

/// Where something was made.
pub(super) fn origin(origin: v1::Origin) -> &'static str {
    match origin {
        v1::Origin::Unspecified => "unknown",
        v1::Origin::File => "file",
        v1::Origin::Api => "api",
    }
}

fn line(number: u32) -> Option<u32> {
    Some(number).filter(|&number| number > 0)
}

impl From<v1::ListKeyChainsResponse> for KeyChains {
    fn from(answer: v1::ListKeyChainsResponse) -> Self {
        Self(answer.key_chains.into_iter().map(KeyChain::from).collect())
    }
}

impl From<v1::KeyChain> for KeyChain {
    fn from(chain: v1::KeyChain) -> Self {
        let origin = origin(chain.origin());
        let spec = chain.spec.unwrap_or_default();
        Self {
            origin,
            line: line(chain.line),
            name: spec.name,
            accept_tolerance_ms: spec.tolerance.as_ref().map(milliseconds),
            allow_gaps: spec.allow_gaps,
            on_expiry: match spec.on_expiry.is_empty() {
                true => "keep".to_owned(),
                false => spec.on_expiry,
            },
            peers: chain.peers,
            keys: chain.keys.into_iter().map(ChainKey::from).collect(),
        }
    }
}

impl From<v1::ChainKey> for ChainKey {
    fn from(key: v1::ChainKey) -> Self {
        let (origin, state) = (origin(key.origin()), own_state(key.state()));
        let spec = key.spec.unwrap_or_default();
        let send = spec.send_lifetime.unwrap_or_default();
        Self {
            origin,
            state,
            line: line(key.line),
            send_id: spec.send_id,
            recv_id: spec.recv_id,
            algorithm: spec.algorithm,
            include_tcp_options: spec.include_tcp_options.unwrap_or(true),
            send: send.into(),
            accept: spec.accept_lifetime.unwrap_or(send).into(),
        }
    }
}
