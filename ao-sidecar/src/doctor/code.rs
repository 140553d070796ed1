//! The names of findings.

use grpc_api::operator::administration::FindingSeverity::{self, Note, Ok, Problem, Warning};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal: $severity:ident,)*) => {
        /// What a finding is about. Earlier ones are causes of later ones, or surer than they are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// Every code, in their order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name, as in `docs/DOCTOR.md`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// How much it matters, unless circumstances say otherwise.
            #[must_use]
            pub const fn severity(self) -> FindingSeverity {
                match self {
                    $(Self::$variant => $severity,)*
                }
            }
        }
    };
}

codes! {
    /// The configuration is wrong.
    ConfigWrong = "config-wrong": Problem,
    /// A peer is to be the kernel's, which has no TCP-AO.
    KernelMissing = "kernel-missing": Problem,
    /// A firewall is missing, or cannot do what is needed.
    FirewallMissing = "firewall-missing": Problem,
    /// The caller may not use the socket.
    NoAccess = "no-access": Problem,
    /// The sidecar has the socket and says nothing.
    Hanging = "hanging": Problem,
    /// Nobody has the socket.
    NotRunning = "not-running": Problem,
    /// Rules or guard are in place, and no sidecar serves them.
    BlockedPeers = "blocked-peers": Problem,
    /// No rules, no guard, no sidecar.
    Unprotected = "unprotected": Problem,
    /// A capability is missing.
    CapabilityMissing = "capability-missing": Warning,
    /// Firewall rules are not in place and cannot be put back.
    RulesMissing = "rules-missing": Problem,
    /// A start has left a peer out, as a session of its was unprotected.
    LeftOut = "left-out": Problem,
    /// No way to the peer.
    NoRoute = "no-route": Problem,
    /// The key chain has no key to send with any more.
    ChainExpired = "chain-expired": Problem,
    /// No key of the chain has begun.
    ChainNotBegun = "chain-not-begun": Problem,
    /// The far end's sidecar and this one do not trust each other.
    FarEndUntrusted = "far-end-untrusted": Problem,
    /// The far end's sidecar speaks other versions of the protocol.
    FarEndVersion = "far-end-version": Problem,
    /// The far end's sidecar refuses to agree on keys.
    FarEndRefuses = "far-end-refuses": Problem,
    /// The far end's sidecar cannot be called.
    FarEndUnreachable = "far-end-unreachable": Problem,
    /// No key has been agreed yet.
    NoKeyYet = "no-key-yet": Problem,
    /// The peer has no key, for another reason.
    Blocked = "blocked": Problem,
    /// The kernel is to sign, and the daemon was not launched for it.
    KernelWithoutLaunch = "kernel-without-launch": Problem,
    /// No option memory for keys in the kernel.
    Optmem = "optmem": Problem,
    /// The daemon has a TCP-MD5 password for the peer.
    LocalMd5 = "local-md5": Problem,
    /// The daemon signs by itself.
    AlreadySigned = "already-signed": Problem,
    /// Sockets lack keys in the kernel.
    KernelSockets = "kernel-sockets": Problem,
    /// The far end's options cannot be read.
    MalformedOption = "malformed-option": Problem,
    /// TCP-AO comes and goes between the segments of the far end.
    ForeignOption = "foreign-option": Problem,
    /// The far end has KeyIDs of this end.
    IdsSwapped = "ids-swapped": Problem,
    /// The far end uses a key of the chain at another time.
    KeyOutOfTime = "key-out-of-time": Problem,
    /// Both ends disagree whether the MAC covers options.
    OptionsFlag = "options-flag": Problem,
    /// Both ends have other algorithms.
    WrongAlgorithm = "wrong-algorithm": Problem,
    /// The far end uses the secret of another key.
    SecretOfOtherKey = "secret-of-other-key": Problem,
    /// The MAC has another length.
    MacLength = "mac-length": Problem,
    /// No key of the peer has this KeyID.
    UnknownKeyId = "unknown-key-id": Problem,
    /// The MAC does not verify with anything known.
    WrongSecret = "wrong-secret": Problem,
    /// The far end signs by TCP-MD5.
    Md5Instead = "md5-instead": Problem,
    /// The far end does not sign.
    NoAo = "no-ao": Problem,
    /// The far end's segments come from too far away.
    TtlLow = "ttl-low": Problem,
    /// Nobody listens for the peer, and nobody connects to it.
    NobodyListens = "nobody-listens": Problem,
    /// The far end asks for a key that this end does not have.
    UnknownRnextKeyId = "unknown-rnext-key-id": Problem,
    /// The peer's segments come from, or go to, somewhere else.
    Stranger = "stranger": Problem,
    /// The far end refuses the connection.
    PeerRefuses = "peer-refuses": Problem,
    /// The far end does not accept segments of this end.
    NotAccepted = "not-accepted": Problem,
    /// TCP-AO works, and the daemon ends the session.
    DaemonCloses = "daemon-closes": Problem,
    /// Segments that are right are lost on this host.
    LocalDrop = "local-drop": Problem,
    /// Nothing arrives from the peer.
    NoSegments = "no-segments": Problem,
    /// Nothing arrives from the peer, and the daemon does not try.
    NoAttempts = "no-attempts": Problem,
    /// There is no session, and nothing tells why.
    NoSession = "no-session": Problem,
    /// Packets were lost before the queues.
    QueueOverrun = "queue-overrun": Warning,
    /// The path is too narrow.
    MtuSmall = "mtu-small": Warning,
    /// The wall clock jumped.
    ClockJumped = "clock-jumped": Warning,
    /// The wall clock follows no source of time.
    ClockUnsynchronised = "clock-unsynchronised": Warning,
    /// Rules were flushed.
    RulesFlushed = "rules-flushed": Warning,
    /// The chain ends soon.
    ChainEnding = "chain-ending": Warning,
    /// Key changes need attention.
    RolloverAlarm = "rollover-alarm": Warning,
    /// Segments of a peer with a session are refused.
    SegmentsRefused = "segments-refused": Note,
    /// Something could not be found out.
    NotFoundOut = "not-found-out": Note,
    /// All is well with the session.
    SessionOk = "session-ok": Ok,
    /// All is well with the sidecar.
    SidecarOk = "sidecar-ok": Ok,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const DOCUMENTATION: &str = include_str!("../../../docs/DOCTOR.md");

    #[test]
    fn codes_are_unique_and_documented() {
        let mut seen = HashSet::new();
        for code in Code::ALL {
            let name = code.as_str();
            assert!(seen.insert(name), "{name} twice");
            assert!(
                DOCUMENTATION.contains(&format!("| `{name}` |")),
                "{name} has no line in docs/DOCTOR.md"
            );
        }
        let lines = DOCUMENTATION.lines().filter(|line| line.starts_with("| `"));
        assert_eq!(lines.count(), Code::ALL.len(), "a line too many");
    }
}
