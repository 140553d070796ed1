//! What is to be done so that a socket has the keys it should have: pure, from what is wanted and
//! what is there.
//!
//! Three questions, asked one after the other, because a key must be everywhere before it is
//! advertised and in use before its predecessor goes: [`additions`], [`selection`], [`deletions`].

use std::collections::HashMap;
use std::sync::Arc;

use ao_engine::crypto::Algorithm;
use ao_engine::policy::Mkt;
use ao_sys::tcp_ao::{InstalledKey, NewKey, Scope};
use zeroize::Zeroizing;

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It accepts connections. Its keys are for many peers.
    Listener,
    /// It is about to connect.
    Opening,
    /// It has sent a SYN, which nobody has answered yet.
    Connecting,
    /// It is connected, or has been.
    Connection,
}

impl Role {
    /// Whether there is a session whose current_key and rnext_key must not be lost.
    pub(super) fn has_session(self) -> bool {
        matches!(self, Self::Connecting | Self::Connection)
    }
}

/// A key that a socket should have.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Name of the peer.
    pub(super) peer: Arc<str>,
    /// Whom it is for.
    pub(super) scope: Scope,
    pub(super) mkt: Arc<Mkt>,
    /// Whether nothing is to be signed with it any more.
    pub(super) accept_only: bool,
}

/// A key, as it is named towards the kernel and in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyName {
    pub(super) scope: Scope,
    pub(super) send_id: u8,
    pub(super) recv_id: u8,
}

/// How Linux calls an algorithm.
pub(crate) fn kernel_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::HmacSha1_96 => "hmac(sha1)",
        // Not cmac(aes), which takes 16 octets of master key only.
        Algorithm::Aes128Cmac96 => "cmac(aes128)",
        Algorithm::HmacSha256_96 | Algorithm::HmacSha256_128 => "hmac(sha256)",
    }
}

/// Octets of the MAC, as the kernel wants them.
pub(crate) fn mac_length(algorithm: Algorithm) -> u8 {
    u8::try_from(algorithm.mac_len()).unwrap_or(u8::MAX)
}

impl Wanted {
    /// What the kernel is told; `select` makes it current_key and rnext_key.
    pub(super) fn new_key(&self, select: bool) -> NewKey<'_> {
        NewKey {
            scope: self.scope,
            send_id: self.mkt.send_id,
            recv_id: self.mkt.recv_id,
            algorithm: kernel_name(self.mkt.algorithm),
            mac_length: mac_length(self.mkt.algorithm),
            exclude_options: !self.mkt.include_options,
            secret: self.mkt.master_key.expose(),
            set_current: select,
            set_rnext: select,
        }
    }

    /// Whether an installed key, which is for the same peer, has its name.
    fn is_named(&self, installed: &InstalledKey) -> bool {
        self.mkt.send_id == installed.send_id && self.mkt.recv_id == installed.recv_id
    }

    /// Whether it cannot stand beside an installed key for the same peer: one of its IDs is taken
    /// (RFC 5925 §3.1).
    fn collides(&self, installed: &InstalledKey) -> bool {
        self.mkt.send_id == installed.send_id || self.mkt.recv_id == installed.recv_id
    }

    /// Whether it makes the same MACs as an installed key of its name.
    fn is_same(&self, installed: &InstalledKey) -> bool {
        // Of a CMAC key Linux keeps and shows what it derives from the secret.
        let secret = match self.mkt.algorithm {
            Algorithm::Aes128Cmac96 => Zeroizing::new(self.mkt.master_key.aes128_key().to_vec()),
            _ => Zeroizing::new(self.mkt.master_key.expose().to_vec()),
        };
        installed.algorithm == kernel_name(self.mkt.algorithm)
            && installed.mac_length == mac_length(self.mkt.algorithm)
            && installed.exclude_options != self.mkt.include_options
            && *installed.secret == *secret
    }
}

/// What is to be added.
#[derive(Debug, Default)]
pub(super) struct Additions<'w> {
    /// Keys to be added, in the order of preference.
    pub(super) keys: Vec<&'w Wanted>,
    /// Keys to be added once those that are in their way are gone.
    pub(super) replacing: Vec<&'w Wanted>,
    /// Keys that are in the way of those, and may be deleted.
    pub(super) displaced: Vec<KeyName>,
    /// Keys that cannot be added because the session uses another one with the same ID.
    pub(super) blocked: Vec<&'w Wanted>,
}

/// The keys that are missing.
pub(super) fn additions<'w>(
    role: Role,
    wanted: &'w [Wanted],
    installed: &[InstalledKey],
) -> Additions<'w> {
    let there = group(role, installed, |key| key.scope);
    let mut additions = Additions::default();
    for want in wanted {
        let near = || of_group(&there, role, &want.scope);
        if near().any(|key| want.is_named(key) && want.is_same(key)) {
            continue;
        }
        let rivals = || near().filter(|key| want.collides(key));
        if role.has_session() && rivals().any(|key| key.is_current || key.is_rnext) {
            additions.blocked.push(want);
        } else if rivals().next().is_none() {
            additions.keys.push(want);
        } else {
            additions.replacing.push(want);
            for name in rivals().map(name_of) {
                if !additions.displaced.contains(&name) {
                    additions.displaced.push(name);
                }
            }
        }
    }
    additions
}

/// Which keys a connection is to use instead of those it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// SendID of the key to become current_key.
    pub(super) current: Option<u8>,
    /// RecvID of the key to become rnext_key.
    pub(super) rnext: Option<u8>,
}

impl Selection {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The preferred key becomes rnext_key, where it is installed. current_key of a session follows
/// the far end (RFC 5925 §7.5.2.e), unless it has gone back to a key that nothing is to be signed
/// with. A connection that begins does so with the preferred key, and so does each further SYN of
/// it: the key is looked up for each (RFC 5925 §7.4), its traffic key depends on no earlier
/// segment, and the far end answers by the key that it is asked for.
pub(super) fn selection(role: Role, wanted: &[Wanted], installed: &[InstalledKey]) -> Selection {
    let mut selection = Selection::default();
    let Some(preferred) = wanted.first().filter(|_| role != Role::Listener) else {
        return selection;
    };
    let is_it = |key: &&InstalledKey| preferred.is_named(key) && preferred.is_same(key);
    let Some(key) = installed.iter().find(is_it) else {
        return selection;
    };
    let retired = |key: &InstalledKey| {
        let mut retired = wanted.iter().filter(|want| want.accept_only);
        key.is_current && retired.any(|want| want.is_named(key))
    };
    let takes_current = role != Role::Connection || installed.iter().any(retired);
    if takes_current && !key.is_current {
        selection.current = Some(key.send_id);
    }
    if !key.is_rnext {
        selection.rnext = Some(key.recv_id);
    }
    selection
}

/// What is to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Deletions {
    pub(super) keys: Vec<KeyName>,
    /// Keys that should go and are in use: the far end has not moved away from them yet.
    pub(super) waiting: Vec<KeyName>,
}

/// The keys that nobody wants any more. A listener may have others besides: keys that the daemon
/// itself has set for peers that are not ours, as `is_ours` tells, stay.
pub(super) fn deletions(
    role: Role,
    wanted: &[Wanted],
    installed: &[InstalledKey],
    is_ours: impl Fn(&Scope) -> bool,
) -> Deletions {
    let wanted = group(role, wanted, |want| want.scope);
    let mut deletions = Deletions::default();
    for key in installed {
        let stays = of_group(&wanted, role, &key.scope).any(|want| want.is_named(key))
            || (role == Role::Listener && !is_ours(&key.scope));
        if stays {
            continue;
        }
        let in_use = role.has_session() && (key.is_current || key.is_rnext);
        if in_use {
            deletions.waiting.push(name_of(key));
        } else {
            deletions.keys.push(name_of(key));
        }
    }
    deletions
}

/// By whom they are for, of which a listener has thousands. Whatever a connection has is for its
/// only peer.
type Groups<'a, T> = HashMap<Option<Scope>, Vec<&'a T>>;

fn group<T>(role: Role, all: &[T], scope: impl Fn(&T) -> Scope) -> Groups<'_, T> {
    let mut groups = Groups::new();
    for one in all {
        let key = (role == Role::Listener).then(|| scope(one));
        groups.entry(key).or_default().push(one);
    }
    groups
}

fn of_group<'a, T>(
    groups: &Groups<'a, T>,
    role: Role,
    scope: &Scope,
) -> impl Iterator<Item = &'a T> {
    let key = (role == Role::Listener).then_some(*scope);
    groups.get(&key).into_iter().flatten().copied()
}

fn name_of(key: &InstalledKey) -> KeyName {
    KeyName {
        scope: key.scope,
        send_id: key.send_id,
        recv_id: key.recv_id,
    }
}

#[cfg(test)]
mod tests {
    use ao_engine::crypto::MasterKey;
    use proptest::prelude::*;

    use super::*;

    fn scope(address: &str) -> Scope {
        let address: std::net::IpAddr = address.parse().unwrap();
        Scope {
            address,
            prefix: if address.is_ipv4() { 32 } else { 128 },
            vrf: None,
        }
    }

    fn want(remote: &str, id: u8, algorithm: Algorithm, secret: &str) -> Wanted {
        Wanted {
            peer: remote.into(),
            scope: scope(remote),
            mkt: Arc::new(Mkt {
                send_id: id,
                recv_id: id + 100,
                algorithm,
                master_key: MasterKey::new(secret.as_bytes()).unwrap(),
                include_options: true,
            }),
            accept_only: false,
        }
    }

    fn name(want: &Wanted) -> KeyName {
        name_of(&installed(want))
    }

    fn simple(id: u8) -> Wanted {
        want(
            "10.0.0.2",
            id,
            Algorithm::HmacSha1_96,
            &format!("secret {id}"),
        )
    }

    /// The key as the kernel would show it.
    fn installed(want: &Wanted) -> InstalledKey {
        let secret = want.mkt.master_key.expose().to_vec();
        let secret = match want.mkt.algorithm {
            Algorithm::Aes128Cmac96 => want.mkt.master_key.aes128_key().to_vec(),
            _ => secret,
        };
        InstalledKey {
            scope: want.scope,
            send_id: want.mkt.send_id,
            recv_id: want.mkt.recv_id,
            algorithm: kernel_name(want.mkt.algorithm).to_owned(),
            mac_length: mac_length(want.mkt.algorithm),
            exclude_options: !want.mkt.include_options,
            secret: Zeroizing::new(secret),
            is_current: false,
            is_rnext: false,
            good: 0,
            bad: 0,
        }
    }

    fn ids(keys: &[&Wanted]) -> Vec<u8> {
        keys.iter().map(|want| want.mkt.send_id).collect()
    }

    #[test]
    fn missing_keys_are_added_in_order_of_preference() {
        let wanted = [simple(3), simple(1), simple(2)];
        let there = [installed(&wanted[1])];
        let additions = additions(Role::Connection, &wanted, &there);
        assert_eq!(ids(&additions.keys), [3, 2]);
        assert!(additions.displaced.is_empty() && additions.blocked.is_empty());
    }

    #[test]
    fn every_algorithm_is_recognised_as_the_kernel_shows_it() {
        for algorithm in Algorithm::ALL {
            for secret in ["short", "sixteen octets!!", "rather longer than sixteen"] {
                let wanted = [want("10.0.0.2", 1, algorithm, secret)];
                let there = [installed(&wanted[0])];
                let additions = additions(Role::Listener, &wanted, &there);
                assert!(
                    additions.keys.is_empty(),
                    "{algorithm} {secret}: {additions:?}"
                );
            }
        }
    }

    #[test]
    fn another_secret_algorithm_or_option_flag_is_another_key() {
        let wanted = [simple(1)];
        let mut secret = installed(&wanted[0]);
        secret.secret = Zeroizing::new(b"other".to_vec());
        let mut flag = installed(&wanted[0]);
        flag.exclude_options = true;
        let mut length = installed(&wanted[0]);
        length.mac_length = 16;
        for other in [secret, flag, length] {
            let additions = additions(Role::Listener, &wanted, std::slice::from_ref(&other));
            assert_eq!(additions.displaced, [name_of(&other)]);
            assert_eq!(ids(&additions.replacing), [1]);
            assert_eq!(ids(&additions.keys), [0_u8; 0]);
        }
    }

    #[test]
    fn a_key_in_use_is_not_displaced_by_one_with_its_id() {
        let wanted = [simple(1), simple(2)];
        let mut other = installed(&wanted[0]);
        other.secret = Zeroizing::new(b"other".to_vec());
        other.is_current = true;
        let additions = additions(Role::Connection, &wanted, &[other]);
        assert_eq!(ids(&additions.blocked), [1]);
        assert_eq!(ids(&additions.keys), [2]);
    }

    #[test]
    fn equal_ids_of_two_peers_on_a_listener_do_not_meet() {
        let other = want("10.0.0.3", 1, Algorithm::HmacSha1_96, "secret");
        let wanted = [simple(1), other.clone()];
        let additions = additions(Role::Listener, &wanted, &[installed(&other)]);
        assert_eq!(ids(&additions.keys), [1]);
        assert!(additions.displaced.is_empty());
        let unwanted = |is_ours| {
            let there = [installed(&other)];
            deletions(Role::Listener, &wanted[..1], &there, |_| is_ours).keys
        };
        assert_eq!(unwanted(true), [name(&other)]);
        assert_eq!(unwanted(false), []);
    }

    #[test]
    fn only_an_installed_key_is_selected_and_only_once() {
        let wanted = [simple(2), simple(1)];
        let mut old = installed(&wanted[1]);
        (old.is_current, old.is_rnext) = (true, true);
        let none = Selection::default();
        assert_eq!(selection(Role::Connection, &wanted, &[old.clone()]), none);
        let mut new = installed(&wanted[0]);
        let there = [old.clone(), new.clone()];
        let rnext = Selection {
            current: None,
            rnext: Some(102),
        };
        assert_eq!(selection(Role::Connection, &wanted, &there), rnext);
        assert_eq!(selection(Role::Listener, &wanted, &there), none);
        new.is_rnext = true;
        assert_eq!(selection(Role::Connection, &wanted, &[old, new]), none);
    }

    #[test]
    fn a_connection_that_begins_takes_the_preferred_key_for_both() {
        let wanted = [simple(2), simple(1)];
        let mut there = [installed(&wanted[0]), installed(&wanted[1])];
        (there[1].is_current, there[1].is_rnext) = (true, true);
        let both = Selection {
            current: Some(2),
            rnext: Some(102),
        };
        for role in [Role::Opening, Role::Connecting] {
            assert_eq!(selection(role, &wanted, &there), both);
        }
    }

    #[test]
    fn a_session_leaves_a_key_that_is_not_to_be_sent_with() {
        let mut wanted = [simple(2), simple(1)];
        let mut there = [installed(&wanted[0]), installed(&wanted[1])];
        (there[0].is_rnext, there[1].is_current) = (true, true);
        assert!(selection(Role::Connection, &wanted, &there).is_empty());
        wanted[1].accept_only = true;
        let left = Selection {
            current: Some(2),
            rnext: None,
        };
        assert_eq!(selection(Role::Connection, &wanted, &there), left);
    }

    #[test]
    fn what_is_in_use_waits() {
        let (old, new) = (simple(1), simple(2));
        let mut there = [installed(&old), installed(&new)];
        there[0].is_current = true;
        let of = |there: &[InstalledKey]| {
            deletions(Role::Connection, std::slice::from_ref(&new), there, |_| {
                true
            })
        };
        assert_eq!(of(&there).waiting, [name(&old)]);
        assert_eq!(of(&there).keys, []);
        there[0].is_current = false;
        assert_eq!(of(&there).keys, [name(&old)]);
    }

    proptest! {
        /// Applied step by step to any set of keys, the three answers lead to what is wanted, and
        /// at no moment is the connection without its current_key.
        #[test]
        fn steps_lead_to_what_is_wanted(
            have in prop::collection::btree_set(1..6_u8, 1..5),
            want_ids in prop::collection::btree_set(1..6_u8, 1..5),
            current in any::<prop::sample::Index>(),
        ) {
            let mut there: Vec<InstalledKey> = have.iter().map(|&id| installed(&simple(id))).collect();
            let current = current.index(there.len());
            there[current].is_current = true;
            there[current].is_rnext = true;
            let wanted: Vec<Wanted> = want_ids.iter().map(|&id| simple(id)).collect();

            let added = additions(Role::Connection, &wanted, &there);
            prop_assert!(added.displaced.is_empty() && added.blocked.is_empty());
            there.extend(added.keys.iter().map(|want| installed(want)));
            if let Some(rnext) = selection(Role::Connection, &wanted, &there).rnext {
                for key in &mut there {
                    key.is_rnext = key.recv_id == rnext;
                }
            }
            // The far end follows.
            let first = deletions(Role::Connection, &wanted, &there, |_| true);
            for name in &first.keys {
                let gone = there.iter().position(|key| name_of(key) == *name).unwrap();
                prop_assert!(!there[gone].is_current && !there[gone].is_rnext);
                there.remove(gone);
            }
            for key in &mut there {
                key.is_current = key.is_rnext;
            }
            let last = deletions(Role::Connection, &wanted, &there, |_| true);
            prop_assert!(last.waiting.is_empty());
            there.retain(|key| !last.keys.contains(&name_of(key)));
            let left: std::collections::BTreeSet<u8> = there.iter().map(|key| key.send_id).collect();
            prop_assert_eq!(left, want_ids);
        }
    }
}
