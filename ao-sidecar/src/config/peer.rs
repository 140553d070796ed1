//! `[[peer]]`: who is protected, and where the keys come from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::SystemTime;

use ao_engine::crypto::Algorithm;
use ao_engine::policy::{Prefix, PrefixError};
use datapath::settings::{Choice, PeerSpec};
use grpc_api::operator::administration::Origin;
use keymgr::chain::KeyChain;

use super::files::Files;
use super::key_chain::{Named, checked_name, exists_twice};
use super::problem::Place;
use super::rollover::{ROLLOVER, RolloverConfig, rollover};
use super::section::{Schema, Section, suggest};

pub(super) const PEER: Schema = Schema {
    title: "[[peer]]",
    required: &["name", "address"],
    optional: &[
        "key_chain",
        "rollover",
        "port",
        "ports",
        "local_address",
        "interface",
        "vrf",
        "ttl_min",
        "datapath",
    ],
};

/// The port of BGP.
const DEFAULT_PORT: u16 = 179;

/// A peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where its keys come from.
    pub keys: KeySource,
    /// What the datapath is told about it. Its `keys` are those its chain wanted when the
    /// configuration was read; there are none when they are agreed.
    pub spec: PeerSpec,
    /// Where it was made.
    pub origin: Origin,
}

/// Where the keys of a peer come from.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// A key chain, which several peers may share.
    Static(Arc<KeyChain>),
    /// They are agreed with the sidecar at the far end.
    Rollover(RolloverConfig),
}

impl KeySource {
    /// The key chain; absent when keys are agreed.
    #[must_use]
    pub fn chain(&self) -> Option<&Arc<KeyChain>> {
        match self {
            Self::Static(chain) => Some(chain),
            Self::Rollover(_) => None,
        }
    }

    /// How keys are agreed; absent when there is a key chain.
    #[must_use]
    pub fn rollover(&self) -> Option<&RolloverConfig> {
        match self {
            Self::Static(_) => None,
            Self::Rollover(rollover) => Some(rollover),
        }
    }
}

/// Most names that a mistyped one is compared with, which takes long.
const MAX_COMPARED: usize = 64;

/// What reading peers needs to know.
pub(super) struct Reader<'r> {
    pub(super) chains: &'r [Named],
    /// The backend of peers that do not say.
    pub(super) datapath: Choice,
    /// Folder that files are relative to.
    pub(super) files: &'r Files,
    pub(super) now: SystemTime,
}

/// A peer as far as it was read.
struct Draft<'p> {
    spec: PeerSpec,
    /// Nothing when a problem was noted.
    keys: Option<KeySource>,
    place: Place<'p>,
}

impl Reader<'_> {
    /// Reads all peers, noting those that nothing tells apart.
    pub(super) fn peers(&self, sections: Vec<Section<'_, '_>>) -> Vec<Peer> {
        let mut drafts: Vec<Draft<'_>> = Vec::new();
        for mut section in sections {
            let agreed = section.has("rollover");
            let rollover = section.table("rollover", &ROLLOVER);
            if agreed && rollover.is_none() {
                // No table, which was noted.
                continue;
            }
            if let Some(draft) = self.draft(&section, rollover.as_ref()) {
                self.check_distinct(&draft, &drafts, &section, rollover.as_ref());
                drafts.push(draft);
            }
        }
        let peer = |Draft { spec, keys, place }: Draft<'_>| {
            Some(Peer {
                keys: keys?,
                spec,
                origin: place.origin(),
            })
        };
        drafts.into_iter().filter_map(peer).collect()
    }

    fn draft<'p>(
        &self,
        section: &Section<'p, '_>,
        rollover: Option<&Section<'p, '_>>,
    ) -> Option<Draft<'p>> {
        let name = section.parsed("name", checked_name);
        let address = section.parsed("address", parse_address);
        let keys = self.keys(
            section,
            rollover,
            address.as_ref().map(|(remote, _)| remote),
        );
        let ports = ports(section);
        let vrf = section.parsed("vrf", interface_name);
        let ttl_min = section.integer("ttl_min", 0..=u8::MAX).unwrap_or(0);
        let datapath = super::datapath(section).unwrap_or(self.datapath);
        let (remote, zone) = address?;
        let interface = interface(section, &remote, zone);
        let local = section.parsed("local_address", |local| parse_local(local, &remote));
        if rollover.is_some() && !remote.is_host() {
            let text = format!(
                "\"{remote}\" is for many far ends, and keys are agreed with one; write the \
                 address of one, or a `key_chain` instead of [peer.rollover]"
            );
            section.problem("address", text);
        }
        let (mkts, algorithms) = match &keys {
            Some(KeySource::Static(chain)) => (chain.at(self.now).keys, algorithms(chain)),
            Some(KeySource::Rollover(rollover)) => (Vec::new(), rollover.algorithms.clone()),
            None => (Vec::new(), Vec::new()),
        };
        Some(Draft {
            keys,
            spec: PeerSpec {
                name: Arc::from(name?),
                remote,
                local,
                ports,
                interface,
                vrf,
                keys: mkts,
                algorithms,
                ttl_min,
                datapath,
            },
            place: section.place(),
        })
    }

    fn keys(
        &self,
        section: &Section<'_, '_>,
        agreed: Option<&Section<'_, '_>>,
        remote: Option<&Prefix>,
    ) -> Option<KeySource> {
        let chain = section.parsed("key_chain", |name| find_chain(name, self.chains));
        let agreed_as = agreed.and_then(|agreed| rollover(agreed, self.files, remote));
        match (section.has("key_chain"), agreed) {
            (true, None) => {
                let chain = chain?.chain.as_ref()?;
                Some(KeySource::Static(Arc::clone(&chain.keys)))
            }
            (false, Some(_)) => agreed_as.map(KeySource::Rollover),
            (true, Some(_)) => {
                let text = "the peer has `key_chain` and [peer.rollover]; write one of them";
                section.problem("key_chain", text);
                None
            }
            (false, None) => {
                let text = "the peer has neither `key_chain` nor [peer.rollover]; write one of \
                            them";
                section.problem("key_chain", text);
                None
            }
        }
    }

    fn check_distinct(
        &self,
        draft: &Draft<'_>,
        earlier: &[Draft<'_>],
        section: &Section<'_, '_>,
        rollover: Option<&Section<'_, '_>>,
    ) {
        let find = |same: &dyn Fn(&Draft<'_>) -> bool| earlier.iter().find(|other| same(other));
        let name = &draft.spec.name;
        if let Some(other) = find(&|other| other.spec.name == *name) {
            let text = exists_twice("peer", "peers", name, &other.place, &draft.place);
            section.problem("name", text);
        } else if let Some(other) = find(&|other| other.spec.overlaps(&draft.spec)) {
            let text = format!(
                "peer {name:?} has the same address and ports as peer {:?} {}; remove one, or tell \
                 them apart by `ports`, `local_address` or `vrf`",
                other.spec.name,
                other.place.seen_from(&draft.place)
            );
            section.problem("address", text);
        }
        if let (Some(section), Some(KeySource::Rollover(agreed))) = (rollover, &draft.keys)
            && let Some(other) = find(&|other| {
                let other = other.keys.as_ref().and_then(KeySource::rollover);
                other.is_some_and(|other| {
                    other.label == agreed.label && other.trust.confusable(&agreed.trust)
                })
            })
        {
            let key = if section.has("fingerprint") {
                "fingerprint"
            } else {
                "name"
            };
            let text = format!(
                "peer {name:?} has the same {key} and label as peer {:?} {}, so their calls could \
                 not be told apart; write label = \"…\" for one of them, the same at the far end",
                other.spec.name,
                other.place.seen_from(&draft.place)
            );
            section.problem(key, text);
        }
    }
}

/// Algorithms of all keys that a chain will ever want.
fn algorithms(chain: &KeyChain) -> Vec<Algorithm> {
    let used = |algorithm: &Algorithm| {
        chain
            .keys()
            .iter()
            .any(|key| key.mkt.algorithm == *algorithm)
    };
    Algorithm::ALL.into_iter().filter(used).collect()
}

/// What a peer covers, as far as that can be read: without an address nothing, and without keys,
/// which are not looked for. Whatever else cannot be read is noted, and taken for absent.
pub(super) fn covered(section: &Section<'_, '_>, datapath: Choice) -> Option<PeerSpec> {
    let (remote, zone) = section.parsed("address", parse_address)?;
    let name = section.parsed("name", checked_name);
    Some(PeerSpec {
        name: name.unwrap_or_default().into(),
        remote,
        local: section.parsed("local_address", |local| parse_local(local, &remote)),
        ports: ports(section),
        interface: interface(section, &remote, zone),
        vrf: section.parsed("vrf", interface_name),
        keys: Vec::new(),
        algorithms: Vec::new(),
        ttl_min: 0,
        datapath: super::datapath(section).unwrap_or(datapath),
    })
}

fn find_chain<'c>(name: &str, chains: &'c [Named]) -> Result<&'c Named, String> {
    chains
        .iter()
        .find(|chain| chain.name == name)
        .ok_or_else(|| {
            let hint = match chains {
                [] => "add a [[key_chain]] of that name".to_owned(),
                _ => {
                    let known = chains.iter().map(|chain| chain.name.as_str());
                    suggest(name, known.take(MAX_COMPARED))
                }
            };
            format!("there is no key chain {name:?}; {hint}")
        })
}

fn ports(section: &Section<'_, '_>) -> RangeInclusive<u16> {
    if section.has("port") && section.has("ports") {
        section.problem(
            "ports",
            "the peer has `port` and `ports`; write one of them",
        );
    }
    let one = section
        .integer("port", 1..=u16::MAX)
        .map(|port| port..=port);
    let range = section.parsed("ports", |ports| {
        parse_ports(ports).ok_or_else(|| {
            format!("{ports:?} is no range of ports; write \"FIRST-LAST\", each 1 to 65535")
        })
    });
    range.or(one).unwrap_or(DEFAULT_PORT..=DEFAULT_PORT)
}

fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first != 0 && first <= last).then_some(first..=last)
}

/// The link of a link-local peer, from `address` (`%eth0`) or `interface`.
fn interface(section: &Section<'_, '_>, remote: &Prefix, zone: Option<String>) -> Option<String> {
    let given = section.parsed("interface", interface_name);
    let link_local = is_link_local(remote.address());
    match (zone, given) {
        (Some(zone), Some(given)) if zone != given => {
            let text = format!("the address says %{zone}, `interface` says {given:?}; write one");
            section.problem("interface", text);
            None
        }
        (_, Some(given)) if !link_local => {
            // It would match no connection, and so protect none.
            let text = format!(
                "`interface` is for link-local addresses only; remove it, or write vrf = {given:?} \
                 if that is what it is"
            );
            section.problem("interface", text);
            None
        }
        (None, None) if link_local && !section.has("interface") => {
            let text = format!(
                "link-local address without an interface; write address = \"{}%eth0\" with the \
                 name of the interface",
                remote.address()
            );
            section.problem("address", text);
            None
        }
        (zone, given) => zone.or(given),
    }
}

/// An address or prefix and the zone after `%` (RFC 4007 §11).
fn parse_address(text: &str) -> Result<(Prefix, Option<String>), String> {
    let (host, length) = match text.split_once('/') {
        Some((host, length)) => (host, Some(length)),
        None => (text, None),
    };
    let (host, zone) = match host.split_once('%') {
        Some((host, zone)) => (host, Some(interface_name(zone)?)),
        None => (host, None),
    };
    let address: IpAddr = host.parse().map_err(|_| {
        format!(
            "{text:?} is no IP address; write one like \"10.0.0.2\", \"2001:db8::2\", \
             \"10.0.0.0/24\" or \"fe80::1%eth0\""
        )
    })?;
    check_unicast(address, length.is_some())?;
    if zone.is_some() && !is_link_local(address) {
        return Err(format!(
            "%interface is for link-local addresses only; write \"{address}\""
        ));
    }
    let prefix = match length {
        Some(length) => parse_prefix(address, length)?,
        None => Prefix::host(address),
    };
    Ok((prefix, zone))
}

fn parse_prefix(address: IpAddr, length: &str) -> Result<Prefix, String> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let refused = || format!("{length:?} is no prefix length; write 0 to {bits}");
    let length: u8 = length.parse().map_err(|_| refused())?;
    Prefix::new(address, length).map_err(|error| match error {
        PrefixError::TooLong(..) => refused(),
        PrefixError::HostBits => {
            let network = network_of(address, length);
            format!(
                "\"{address}/{length}\" has address bits beyond the prefix; write \
                 \"{network}/{length}\" for the network or \"{address}\" for the one address"
            )
        }
    })
}

fn network_of(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX
                .checked_shl(32_u32.saturating_sub(length))
                .unwrap_or(0);
            Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX
                .checked_shl(128_u32.saturating_sub(length))
                .unwrap_or(0);
            Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    }
}

fn parse_local(text: &str, remote: &Prefix) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| {
        format!("{text:?} is no IP address; write one of this host, without %interface or /length")
    })?;
    check_unicast(address, false)?;
    if address.is_ipv4() != remote.address().is_ipv4() {
        return Err(
            "`local_address` and `address` are of different families; write both as IPv4 \
                    or both as IPv6"
                .to_owned(),
        );
    }
    Ok(address)
}

/// Refuses addresses that no TCP session can have. The unspecified address may begin a prefix.
fn check_unicast(address: IpAddr, prefix: bool) -> Result<(), String> {
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(format!(
            "sessions with \"{address}\" are IPv4 on the wire; write \"{v4}\""
        ));
    }
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_multicast() || broadcast || (address.is_unspecified() && !prefix) {
        return Err(format!(
            "\"{address}\" is no address of a host; write a unicast address"
        ));
    }
    Ok(())
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// A name the kernel would accept for a network device.
pub(super) fn interface_name(name: &str) -> Result<String, String> {
    let fits = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|octet| octet.is_ascii_graphic() && octet != b'/' && octet != b':');
    if fits {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "{name:?} is no interface name; write one as `ip link` shows it"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_prefixes_and_zones_are_read() {
        let read = |text| parse_address(text).map(|(prefix, zone)| (prefix.to_string(), zone));
        assert_eq!(read("10.0.0.2"), Ok(("10.0.0.2".into(), None)));
        assert_eq!(read("10.0.0.0/24"), Ok(("10.0.0.0/24".into(), None)));
        assert_eq!(read("0.0.0.0/0"), Ok(("0.0.0.0/0".into(), None)));
        assert_eq!(read("2001:db8::/32"), Ok(("2001:db8::/32".into(), None)));
        assert_eq!(
            read("fe80::1%eth0"),
            Ok(("fe80::1".into(), Some("eth0".into())))
        );
        assert_eq!(
            read("fe80::%eth0/64"),
            Ok(("fe80::/64".into(), Some("eth0".into())))
        );
        for wrong in [
            "",
            "10.0.0",
            "10.0.0.2/33",
            "10.0.0.2/",
            "::/129",
            "fe80::1%",
            "host",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_right_network_is_told() {
        let error = |text| parse_address(text).unwrap_err();
        assert!(error("10.0.0.2/24").contains("write \"10.0.0.0/24\""));
        assert!(error("10.0.0.2/0").contains("write \"0.0.0.0/0\""));
        assert!(error("2001:db8::1/32").contains("write \"2001:db8::/32\""));
        assert!(error("::ffff:10.0.0.2").contains("write \"10.0.0.2\""));
    }

    #[test]
    fn port_ranges_are_read() {
        assert_eq!(parse_ports("179-180"), Some(179..=180));
        assert_eq!(parse_ports("179 - 179"), Some(179..=179));
        for wrong in ["179", "0-9", "180-179", "1-65536", "-", "a-b"] {
            assert_eq!(parse_ports(wrong), None, "{wrong}");
        }
    }
}
