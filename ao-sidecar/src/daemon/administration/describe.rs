//! Changes in words for the audit log, and key chains as they are reported.

use std::sync::Arc;
use std::time::SystemTime;

use grpc_api::operator::Lifetime;
use grpc_api::operator::administration::{
    ChainKeyReport, Change, ChangeKind, Changed, KeyChainReport, KeyChainSpec, KeySpec, PeerSpec,
};
use keymgr::chain::{Key, KeyChain, OnExpiry};
use keymgr::lifetime::Tolerance;

use crate::config::{Chain, FOREVER, Peer};
use crate::keys::key_state;

/// What a change is to do, without secrets.
pub(super) fn change_text(change: &Change) -> String {
    match change {
        Change::PutPeer {
            peer:
                PeerSpec {
                    name,
                    address,
                    key_chain,
                    ..
                },
            replace,
            replace_sessions,
        } => {
            let verb = if *replace { "change" } else { "create" };
            let closing = match replace_sessions {
                true => ", closing unprotected sessions",
                false => "",
            };
            format!("{verb} peer {name:?} (address {address:?}, key chain {key_chain:?}){closing}")
        }
        Change::DeletePeer { name } => format!("delete peer {name:?}"),
        Change::CreateKeyChain { chain, keys } => {
            let ids: Vec<String> = keys.iter().map(key_ids).collect();
            format!(
                "create key chain {:?} with keys [{}]",
                chain.name,
                ids.join(", ")
            )
        }
        Change::UpdateKeyChain { chain } => format!("change key chain {:?}", chain.name),
        Change::DeleteKeyChain { name } => format!("delete key chain {name:?}"),
        Change::PutKey {
            chain,
            key,
            replace,
        } => {
            let verb = if *replace { "change" } else { "add" };
            let secret = match (replace, &key.secret) {
                (true, Some(_)) => ", with another secret",
                _ => "",
            };
            format!("{verb} key {} of key chain {chain:?}{secret}", key_ids(key))
        }
        Change::DeleteKey {
            chain,
            send_id,
            recv_id,
        } => format!("delete key {send_id}/{recv_id} of key chain {chain:?}"),
    }
}

fn key_ids(key: &KeySpec) -> String {
    format!("{}/{}", key.send_id, key.recv_id)
}

/// What was changed.
pub(super) fn outcome(changed: &Changed) -> String {
    if changed.changes.is_empty() {
        return "nothing differs".to_owned();
    }
    let texts: Vec<String> = changed
        .changes
        .iter()
        .map(|change| {
            let kind = match change.kind {
                ChangeKind::Added => "added",
                ChangeKind::Removed => "removed",
                ChangeKind::Changed => "changed",
            };
            format!("{} {kind}", change.subject)
        })
        .collect();
    texts.join("; ")
}

/// A key chain in use.
pub(super) fn chain_report(chain: &Chain, peers: &[Peer], now: SystemTime) -> KeyChainReport {
    let keys = &*chain.keys;
    let origins = chain.key_origins.iter().copied();
    let origins = origins.chain(std::iter::repeat(chain.origin));
    let report = |(key, origin): (&Key, _)| ChainKeyReport {
        key: key_spec(key),
        origin,
        state: key_state(keys, key, now),
    };
    let has_it = |peer: &&Peer| peer.keys.chain().is_some_and(|of| of.name() == keys.name());
    KeyChainReport {
        chain: chain_spec(keys),
        origin: chain.origin,
        keys: keys.keys().iter().zip(origins).map(report).collect(),
        peers: peers
            .iter()
            .filter(has_it)
            .map(|peer| Arc::clone(&peer.spec.name))
            .collect(),
    }
}

fn chain_spec(chain: &KeyChain) -> KeyChainSpec {
    let rules = chain.rules();
    let tolerance = match rules.tolerance {
        Tolerance::Within(tolerance) => tolerance,
        Tolerance::Forever => FOREVER,
    };
    let on_expiry = match rules.on_expiry {
        OnExpiry::Keep => "keep",
        OnExpiry::Close => "close",
    };
    KeyChainSpec {
        name: chain.name().to_owned(),
        tolerance: Some(tolerance),
        allow_gaps: rules.allow_gaps,
        on_expiry: Some(on_expiry.to_owned()),
    }
}

fn key_spec(key: &Key) -> KeySpec {
    let lifetime = |of: keymgr::lifetime::Lifetime| Lifetime {
        start: of.start(),
        end: of.end(),
    };
    KeySpec {
        send_id: key.mkt.send_id,
        recv_id: key.mkt.recv_id,
        algorithm: key.mkt.algorithm.name().to_owned(),
        include_tcp_options: key.mkt.include_options,
        secret: None,
        send: lifetime(key.send),
        accept: Some(lifetime(key.accept)),
    }
}
