//! The settings of a peer, as the configuration in use has them.

use toml::de::{DeTable, DeValue};

use crate::cli::arguments::{PeerSettings, ports};

/// What the configuration `toml` says about the peer `name`; nothing when it has none.
///
/// # Errors
/// When the text cannot be read, or the peer has a setting that is not known here and would get
/// lost.
pub(super) fn of(toml: &str, name: &str) -> Result<PeerSettings, String> {
    let document = DeTable::parse(toml)
        .map_err(|_| "the sidecar's configuration cannot be read: is it another version?")?;
    let peers = document.get_ref().get("peer").map(|peers| peers.get_ref());
    let tables = peers.and_then(DeValue::as_array).into_iter().flatten();
    let mut tables = tables.filter_map(|peer| peer.get_ref().as_table());
    let named =
        |peer: &&DeTable<'_>| peer.get("name").and_then(|it| it.get_ref().as_str()) == Some(name);
    let mut settings = PeerSettings::default();
    for (key, value) in tables.find(named).into_iter().flatten() {
        let text = value.get_ref().as_str().map(str::to_owned);
        let number = || {
            let written = value.get_ref().as_integer()?;
            u16::from_str_radix(written.as_str(), written.radix()).ok()
        };
        match key.get_ref().as_ref() {
            "name" | "rollover" => {}
            "address" => settings.peer_address = text,
            "key_chain" => settings.key_chain = text,
            "port" => settings.port = number(),
            "ports" => {
                settings.ports = text.and_then(|text| ports(&text).ok());
            }
            "local_address" => settings.local_address = text,
            "interface" => settings.interface = text,
            "vrf" => settings.vrf = text,
            "ttl_min" => settings.ttl_min = number().and_then(|ttl| u8::try_from(ttl).ok()),
            "datapath" => settings.datapath = text,
            unknown => {
                return Err(format!(
                    "peer {name:?} has `{unknown}`, which this aoctl does not know and would take \
                     away; run the aoctl of the sidecar"
                ));
            }
        }
    }
    Ok(settings)
}

impl PeerSettings {
    /// These settings; where they say nothing, the others.
    pub(super) fn or(self, present: Self) -> Self {
        let ports_given = self.port.or(self.ports.map(|(first, _)| first)).is_some();
        let (port, ports) = match ports_given {
            true => (self.port, self.ports),
            false => (present.port, present.ports),
        };
        Self {
            peer_address: self.peer_address.or(present.peer_address),
            key_chain: self.key_chain.or(present.key_chain),
            port,
            ports,
            local_address: self.local_address.or(present.local_address),
            interface: self.interface.or(present.interface),
            vrf: self.vrf.or(present.vrf),
            ttl_min: self.ttl_min.or(present.ttl_min),
            datapath: self.datapath.or(present.datapath),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
        [[key_chain]]
        name = "transit"
        [[peer]]
        name = "a"
        address = "10.0.0.2"
        key_chain = "transit"
        ports = "179-180"
        vrf = "blue"
        ttl_min = 254
        [[peer]]
        name = "b"
        address = "10.0.0.3"
        port = 1790
        [[peer]]
        name = "c"
        colour = "red"
    "#;

    #[test]
    fn what_is_not_given_stays() {
        let given = PeerSettings {
            ttl_min: Some(0),
            vrf: Some(String::new()),
            ..PeerSettings::default()
        };
        let merged = given.or(of(TOML, "a").unwrap());
        assert_eq!(
            merged,
            PeerSettings {
                peer_address: Some("10.0.0.2".into()),
                key_chain: Some("transit".into()),
                ports: Some((179, 180)),
                vrf: Some(String::new()),
                ttl_min: Some(0),
                ..PeerSettings::default()
            }
        );
    }

    #[test]
    fn one_port_replaces_several() {
        let given = PeerSettings {
            port: Some(179),
            ..PeerSettings::default()
        };
        let merged = given.or(of(TOML, "a").unwrap());
        assert_eq!((merged.port, merged.ports), (Some(179), None));
        assert_eq!(of(TOML, "b").unwrap().port, Some(1790));
    }

    #[test]
    fn nothing_is_lost_unseen() {
        assert_eq!(of(TOML, "d"), Ok(PeerSettings::default()));
        let refused = of(TOML, "c").unwrap_err();
        assert!(
            refused.starts_with("peer \"c\" has `colour`, which"),
            "{refused}"
        );
        assert!(of("[[", "a").is_err());
    }
}
