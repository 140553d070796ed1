//! What to write at the far end, in the words of what may run there.

/// How a session is signed at all.
pub(super) const SIGN: &str = "Junos: `authentication-algorithm ao` and `authentication-key-chain` \
    of the neighbor; IOS-XR: `ao KEYCHAIN` of the neighbor; BIRD 3: `authentication ao` with \
    `keys`; daemons without TCP-AO: ao-sidecar beside them";

/// Where KeyIDs are written.
pub(super) const IDS: &str = "Junos: `send-id` and `recv-id` of `ao-attribute`; IOS-XR: `tcp ao \
    keychain KEYCHAIN key N SendID … ReceiveID …`; BIRD 3: the IDs of `key`";

/// Where it is written whether MACs cover options.
pub(super) const OPTIONS: &str = "Junos: `tcp-ao-option enabled` or `disabled` of `ao-attribute`; \
    IOS-XR: `ao KEYCHAIN include-tcp-options enable` or `disable`; BIRD 3 always covers them";

/// Where the algorithm is written.
pub(super) const ALGORITHM: &str = "Junos: `cryptographic-algorithm` of `ao-attribute`; IOS-XR: \
    `cryptographic-algorithm` of the key; BIRD 3: `algorithm`";
