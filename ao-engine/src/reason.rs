//! Why a packet was refused: one name per reason, used for counters, logs and documentation.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why the engine refused a packet.
        ///
        /// Each reason is a counter per peer and a line in `docs/OPERATIONS.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name of the reason, as it stands in counters and logs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

reasons! {
    /// Not an IP packet with a whole TCP header, or lengths that contradict each other.
    Malformed = "malformed",
    /// A fragment, atomic ones included: its tail was never covered by a MAC.
    Fragment = "fragment",
    /// An extension header that changes what the addresses mean (routing, home address).
    ExtensionHeader = "extension-header",
    /// The TCP checksum is wrong.
    Checksum = "checksum",
    /// The option list cannot be read: a length of 0 or 1, or one past the header's end.
    MalformedOptions = "malformed-options",
    /// The TCP-AO option occurs twice (RFC 5925 §2.2).
    DuplicateAo = "duplicate-ao",
    /// TCP-AO and TCP-MD5 in one segment (RFC 5925 §2.2).
    AoWithMd5 = "ao-with-md5",
    /// TTL or hop limit below the peer's `ttl_min` (RFC 5082).
    Ttl = "ttl",
    /// No configured peer has this address, port and L3 domain.
    NoPeer = "no-peer",
    /// A segment from the peer without TCP-AO.
    Unsigned = "unsigned",
    /// A segment from the peer with TCP-MD5 instead of TCP-AO.
    Md5 = "md5",
    /// A KeyID that no MKT of the peer has as its RecvID.
    UnknownKeyId = "unknown-key-id",
    /// The option's length is not the one the MKT's algorithm gives.
    MacLength = "mac-length",
    /// The MAC does not match.
    BadMac = "bad-mac",
    /// A segment of no connection the engine knows.
    UnknownConnection = "unknown-connection",
    /// A local segment that already carries TCP-AO: somebody else signs, too.
    AlreadySigned = "already-signed",
    /// A local segment with TCP-MD5: the daemon has an MD5 password for the peer.
    LocalMd5 = "local-md5",
    /// The peer has no MKT to sign with.
    NoKey = "no-key",
    /// The options leave no room for TCP-AO in the 40 octets of a header.
    NoOptionSpace = "no-option-space",
    /// The connection table is full and nothing in it may be evicted.
    TableFull = "table-full",
    /// The ISNs could not be recorded, so a restart would lose the connection.
    NotRecorded = "not-recorded",
    /// An ICMP error that RFC 5925 §7.8 orders to ignore.
    IcmpIgnored = "icmp-ignored",
    /// An ICMP error whose quoted segment is of no connection, or not in flight.
    IcmpUnmatched = "icmp-unmatched",
    /// More first segments of unknown connections than the engine verifies per second.
    RateLimited = "rate-limited",
}
