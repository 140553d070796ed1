//! Where the sidecar of a peer listens.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Host and port: `10.0.0.2:7179`, `[2001:db8::1]:7179`, `[fe80::1%eth0]:7179` or
/// `router.example:7179`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// What is not an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not HOST:PORT, such as 10.0.0.2:7179 or [2001:db8::1]:7179")]
pub struct EndpointError;

impl Endpoint {
    /// Name, or address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port, 1 to 65535.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, where the host is one and not a name. The zone of a link-local address is
    /// left out.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        let without_zone = self.host.split('%').next()?;
        without_zone.parse().ok()
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (host, port) = text.rsplit_once(':').ok_or(EndpointError)?;
        let port = port
            .parse()
            .ok()
            .filter(|&port| port != 0)
            .ok_or(EndpointError)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => ipv6_host(inner.strip_suffix(']').ok_or(EndpointError)?)?,
            None => plain_host(host)?,
        };
        let host = host.to_owned();
        Ok(Self { host, port })
    }
}

fn ipv6_host(host: &str) -> Result<&str, EndpointError> {
    let (address, zone) = host.split_once('%').unwrap_or((host, "-"));
    let good = matches!(address.parse(), Ok(IpAddr::V6(_))) && !zone.is_empty();
    good.then_some(host).ok_or(EndpointError)
}

/// An IPv4 address or a DNS name.
fn plain_host(host: &str) -> Result<&str, EndpointError> {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let good = !host.is_empty() && host.len() <= 253 && host.chars().all(letter);
    good.then_some(host).ok_or(EndpointError)
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            _ => address.ip().to_string(),
        };
        let port = address.port();
        Self { host, port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_shown() {
        for text in [
            "10.0.0.2:7179",
            "[2001:db8::1]:7179",
            "[fe80::1%eth0]:1",
            "a.example:65535",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        let scoped: Endpoint = "[fe80::1%eth0]:7179".parse().unwrap();
        assert_eq!(scoped.address(), "fe80::1".parse().ok());
        assert_eq!("a.example:1".parse::<Endpoint>().unwrap().address(), None);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "10.0.0.2",
            ":7179",
            "10.0.0.2:",
            "10.0.0.2:0",
            "10.0.0.2:65536",
            "2001:db8::1:7179",
            "[10.0.0.2]:7179",
            "[::1:7179",
            "[fe80::1%]:7179",
            "a b:1",
            "http://a:1",
            "[::1]x:1",
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError), "{text}");
        }
    }
}
