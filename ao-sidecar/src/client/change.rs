//! Changes to what is made by API: from what the command line says to what is asked.

use grpc_api::Client;
use grpc_api::v1::{
    ChangeResponse, CreateKeyChainRequest, CreateKeyRequest, CreatePeerRequest,
    DeleteKeyChainRequest, DeleteKeyRequest, DeletePeerRequest, GetConfigRequest, KeyChain,
    KeyChainSpec, KeySpec, Lifetime, ListKeyChainsRequest, PeerSpec, UpdateKeyChainRequest,
    UpdateKeyRequest, UpdatePeerRequest,
};
use jiff::Timestamp;
use tonic::Status;
use zeroize::Zeroizing;

use super::time::Moment;
use super::{ClientError, Sidecar, peer_settings};
use crate::cli::arguments::{ChainRules, KeySettings, PeerSettings, Span};

/// The octets of a secret.
pub type Secret = Zeroizing<Vec<u8>>;

/// A change to what is made by API.
pub enum Change {
    /// Make a peer.
    CreatePeer {
        /// Its name.
        name: String,
        /// What it is.
        settings: PeerSettings,
        /// Close unprotected sessions with it instead of refusing.
        replace_sessions: bool,
    },
    /// Change what is given of a peer.
    UpdatePeer {
        /// Its name.
        name: String,
        /// What it is to be.
        settings: PeerSettings,
        /// Close unprotected sessions with it instead of refusing.
        replace_sessions: bool,
    },
    /// Delete the peer of this name.
    DeletePeer(String),
    /// Make a key chain.
    CreateChain {
        /// Its name.
        name: String,
        /// Its rules.
        rules: ChainRules,
        /// Its first key.
        key: KeySettings,
        /// The secret of that.
        secret: Option<Secret>,
    },
    /// Change what is given of the rules of a key chain.
    UpdateChain {
        /// Its name.
        name: String,
        /// Its rules.
        rules: ChainRules,
    },
    /// Delete the key chain of this name.
    DeleteChain(String),
    /// Add a key.
    AddKey {
        /// Name of the key chain.
        chain: String,
        /// The key.
        key: KeySettings,
        /// Its secret.
        secret: Option<Secret>,
    },
    /// Change what is given of a key.
    ChangeKey {
        /// Name of the key chain.
        chain: String,
        /// The key.
        key: KeySettings,
        /// Its new secret.
        secret: Option<Secret>,
    },
    /// Delete a key.
    DeleteKey {
        /// Name of the key chain.
        chain: String,
        /// Its SendID.
        send_id: u8,
        /// Its RecvID.
        recv_id: u8,
    },
}

impl Change {
    /// Whether all that something new needs is there.
    fn check(&self) -> Result<(), ClientError> {
        let missing = match self {
            Self::CreatePeer { settings, .. } => [
                ("a peer", "--peer-address", settings.peer_address.is_none()),
                ("a peer", "--key-chain", settings.key_chain.is_none()),
            ],
            Self::CreateChain { key, secret, .. } | Self::AddKey { key, secret, .. } => [
                ("a key", "--algorithm", key.algorithm.is_none()),
                ("a key", "--secret-file", secret.is_none()),
            ],
            _ => return Ok(()),
        };
        let missing = missing.into_iter().find(|(_, _, missing)| *missing);
        missing.map_or(Ok(()), |(what, option, _)| {
            Err(ClientError::Usage(format!(
                "{what} needs {option}; see --help"
            )))
        })
    }

    /// Has the sidecar make it.
    pub(super) async fn make(
        self,
        client: &mut Client,
        sidecar: &Sidecar,
    ) -> Result<ChangeResponse, ClientError> {
        self.check()?;
        let failed = |status: Status| sidecar.failed(&status);
        let made = match self {
            Self::CreatePeer {
                name,
                settings,
                replace_sessions,
            } => {
                let request = CreatePeerRequest {
                    peer: Some(peer_spec(name, settings)),
                    replace_sessions,
                };
                client.create_peer(request).await
            }
            Self::UpdatePeer {
                name,
                settings,
                replace_sessions,
            } => {
                let config = client.get_config(GetConfigRequest {}).await;
                let toml = config.map_err(failed)?.into_inner().toml;
                let present = peer_settings::of(&toml, &name).map_err(ClientError::Unusable)?;
                let request = UpdatePeerRequest {
                    peer: Some(peer_spec(name, settings.or(present))),
                    replace_sessions,
                };
                client.update_peer(request).await
            }
            Self::DeletePeer(name) => client.delete_peer(DeletePeerRequest { name }).await,
            Self::CreateChain {
                name,
                rules,
                key,
                secret,
            } => {
                let request = CreateKeyChainRequest {
                    key_chain: Some(chain_spec(name, rules, KeyChainSpec::default())),
                    keys: vec![key_spec(key, secret, KeySpec::default())],
                };
                client.create_key_chain(request).await
            }
            Self::UpdateChain { name, rules } => {
                let present = present(client, &name).await.map_err(failed)?;
                let present = present.and_then(|chain| chain.spec).unwrap_or_default();
                let request = UpdateKeyChainRequest {
                    key_chain: Some(chain_spec(name, rules, present)),
                };
                client.update_key_chain(request).await
            }
            Self::DeleteChain(name) => {
                client
                    .delete_key_chain(DeleteKeyChainRequest { name })
                    .await
            }
            Self::AddKey { chain, key, secret } => {
                let request = CreateKeyRequest {
                    key_chain: chain,
                    key: Some(key_spec(key, secret, KeySpec::default())),
                };
                client.create_key(request).await
            }
            Self::ChangeKey { chain, key, secret } => {
                let present = present(client, &chain).await.map_err(failed)?;
                let present = present.and_then(|chain| key_of(chain, &key));
                let request = UpdateKeyRequest {
                    key_chain: chain,
                    key: Some(key_spec(key, secret, present.unwrap_or_default())),
                };
                client.update_key(request).await
            }
            Self::DeleteKey {
                chain,
                send_id,
                recv_id,
            } => {
                let request = DeleteKeyRequest {
                    key_chain: chain,
                    send_id: Some(send_id.into()),
                    recv_id: Some(recv_id.into()),
                };
                client.delete_key(request).await
            }
        };
        Ok(made.map_err(failed)?.into_inner())
    }
}

/// The chain as it is now. One that is not there is left to the change to be told of.
async fn present(client: &mut Client, name: &str) -> Result<Option<KeyChain>, Status> {
    let name = name.to_owned();
    match client.list_key_chains(ListKeyChainsRequest { name }).await {
        Ok(chains) => Ok(chains.into_inner().key_chains.into_iter().next()),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

fn key_of(chain: KeyChain, wanted: &KeySettings) -> Option<KeySpec> {
    let ids = (Some(wanted.send_id.into()), Some(wanted.recv_id.into()));
    let mut specs = chain.keys.into_iter().filter_map(|key| key.spec);
    specs.find(|spec| (spec.send_id, spec.recv_id) == ids)
}

fn peer_spec(name: String, settings: PeerSettings) -> PeerSpec {
    let single = settings.port.map(|port| (port, port));
    let (first, last) = settings.ports.or(single).unwrap_or((0, 0));
    PeerSpec {
        name,
        address: settings.peer_address.unwrap_or_default(),
        key_chain: settings.key_chain.unwrap_or_default(),
        first_port: first.into(),
        last_port: last.into(),
        local_address: settings.local_address.unwrap_or_default(),
        interface: settings.interface.unwrap_or_default(),
        vrf: settings.vrf.unwrap_or_default(),
        ttl_min: settings.ttl_min.unwrap_or_default().into(),
        datapath: settings.datapath.unwrap_or_default(),
    }
}

fn chain_spec(name: String, rules: ChainRules, present: KeyChainSpec) -> KeyChainSpec {
    let tolerance = rules.accept_tolerance.map(|tolerance| super::time::Span {
        seconds: i64::try_from(tolerance.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(tolerance.subsec_nanos()).unwrap_or_default(),
    });
    KeyChainSpec {
        name,
        tolerance: tolerance.or(present.tolerance),
        allow_gaps: rules.allow_gaps.unwrap_or(present.allow_gaps),
        on_expiry: rules.on_expiry.unwrap_or(present.on_expiry),
    }
}

fn key_spec(key: KeySettings, secret: Option<Secret>, present: KeySpec) -> KeySpec {
    let (send_lifetime, accept_lifetime) = match key.lifetime {
        Some(both) => (Some(lifetime(both)), None),
        None => (
            key.send_lifetime.map(lifetime).or(present.send_lifetime),
            key.accept_lifetime
                .map(lifetime)
                .or(present.accept_lifetime),
        ),
    };
    KeySpec {
        send_id: Some(key.send_id.into()),
        recv_id: Some(key.recv_id.into()),
        algorithm: key.algorithm.unwrap_or(present.algorithm),
        include_tcp_options: key.include_tcp_options.or(present.include_tcp_options),
        secret: secret.map_or_else(Vec::new, |mut secret| std::mem::take(&mut *secret)),
        send_lifetime,
        accept_lifetime,
    }
}

fn lifetime(Span { start, end }: Span) -> Lifetime {
    Lifetime {
        start: start.map(moment),
        end: end.map(moment),
    }
}

fn moment(instant: Timestamp) -> Moment {
    let nanos = instant.as_nanosecond();
    Moment {
        seconds: i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or_default(),
        nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_1970_have_positive_nanoseconds() {
        let of = |text: &str| moment(text.parse().unwrap());
        assert_eq!((of("1969-12-31T23:59:59.25Z").seconds, 0), (-1, 0));
        assert_eq!(of("1969-12-31T23:59:59.25Z").nanos, 250_000_000);
        assert_eq!(of("2026-12-25T00:00:00Z").seconds, 1_798_156_800);
    }
}
