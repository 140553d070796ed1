//! What stands below the options in the help: examples, and what the columns and codes mean.

pub(super) const CHECK: &str = "\
A short configuration, to which `chmod 600` belongs as it holds a secret:
  [[key_chain]]
  name = \"transit\"
  [[key_chain.key]]
  send_id = 1                   # the far end's recv_id
  recv_id = 1                   # the far end's send_id
  algorithm = \"hmac-sha-1-96\"
  secret = \"the same at both ends\"
  [[peer]]
  name = \"as64502\"
  address = \"192.0.2.2\"
  key_chain = \"transit\"
docs/CONFIGURATION.md describes every key.

Exit codes: 0 correct, 2 wrong; all problems are told, with line and column.";

pub(super) const AOCTL: &str = "\
A peer is down?           aoctl doctor PEER
What is going on?         aoctl status, aoctl top, aoctl events --follow
Before a reload:          aoctl config diff

Exit codes: 0 success, 1 failure or refusal, 2 wrong usage, 3 the sidecar cannot be reached or goes
away, 4 and 5 with doctor, config check and config diff: something is wrong or differs.";

pub(super) const STATUS: &str = "\
First of all come alarms, blocked peers and peers without a session; `aoctl doctor PEER` tells why.";

pub(super) const DOCTOR: &str = "\
Looks at the sidecar, the firewall, the BGP daemon's sockets, keys and clock, and listens to what
the peer sends: no TCP-AO at all, an unknown KeyID, another secret, other options. Each finding says
what was seen, why it matters and what to do.

Exit codes: 0 nothing is wrong, 5 warnings only, 4 problems; 3 the sidecar does not answer, and the
findings are what can be seen without it.

Examples:
  aoctl doctor                       all peers
  aoctl doctor as64502               one of them
  aoctl doctor as64502 --listen 60s  for a peer that tries once a minute";

pub(super) const TOP: &str = "\
Rates are segments a second; REFUSED counts since the sidecar started.
Keys: q quits, arrows and page keys scroll, Tab changes between peers and sessions, s sorts by
another column, p pauses.";

pub(super) const PEERS: &str = "\
States: established, down (no session is established: `aoctl doctor PEER` tells why), blocked
(there is no key, so nothing is let through).";

pub(super) const PEERS_CREATE: &str = "\
What is made by API is kept beside the configuration file, and survives restarts. The options mean
what the keys of [[peer]] in the file mean; --peer-address is `address`.

Examples:
  aoctl peers create as64502 --peer-address 192.0.2.2 --key-chain transit
  aoctl peers create ix-rs1 --peer-address 2001:db8::/64 --key-chain ix --ttl-min 254";

pub(super) const PEERS_UPDATE: &str = "\
A peer of the configuration file is changed there. An empty value takes a setting away.

Examples:
  aoctl peers update as64502 --ttl-min 254
  aoctl peers update as64502 --vrf \"\"";

pub(super) const CHAINS: &str = "\
Keys of a chain: pending, active, accept-only, expired. ORIGIN is the line of the configuration
file, or `api`.";

pub(super) const CHAINS_CREATE: &str = "\
More keys are added by `aoctl keys add`.

Examples:
  aoctl chains create transit --send-id 1 --recv-id 1 --algorithm aes-128-cmac-96 \\
    --secret-file /root/transit-1.key
  pass show transit/1 | aoctl chains create transit --on-expiry close --send-id 1 --recv-id 1 \\
    --algorithm aes-128-cmac-96 --secret-file - --lifetime ../2027-01-01T00:00:00Z";

pub(super) const CHAINS_UPDATE: &str = "\
Example:
  aoctl chains update transit --accept-tolerance 5m --allow-gaps false";

pub(super) const KEYS: &str = "\
Examples:
  aoctl keys list
  aoctl keys add transit --send-id 2 --recv-id 2 --algorithm aes-128-cmac-96 \\
    --secret-file /root/transit-2.key --lifetime 2026-12-01T00:00:00Z/..";

pub(super) const KEYS_LIST: &str = "\
States of agreed keys: offered, agreed, installed (on every socket here), ready (at both ends),
selected (advertised), proven (in use in both directions), retiring, deleted, revoking, revoked.
States of keys of a chain: pending, active, accept-only, expired.
Times are in UTC; `..` is an open end.

Examples:
  aoctl keys list
  aoctl keys list as64502 --json";

pub(super) const KEYS_ADD: &str = "\
The secret is read from a file or from standard input, never from the command line; a terminal does
not show it. One newline at its end is left out.
A lifetime is `always` or START/END, where END may be a duration, and `..` is an open end; times are
RFC 3339.

Examples:
  aoctl keys add transit --send-id 2 --recv-id 2 --algorithm aes-128-cmac-96 \\
    --secret-file /root/transit-2.key --lifetime 2026-12-01T00:00:00Z/..
  aoctl keys add transit --send-id 3 --recv-id 3 --algorithm hmac-sha-1-96 --secret-file - \\
    --send-lifetime 2026-12-01T00:00:00Z/31d --accept-lifetime 2026-11-30T00:00:00Z/33d";

pub(super) const KEYS_CHANGE: &str = "\
Examples:
  aoctl keys change transit --send-id 1 --recv-id 1 --lifetime ../2026-12-02T00:00:00Z
  aoctl keys change transit --send-id 1 --recv-id 1 --secret-file /root/transit-1.key";

pub(super) const KEYS_DELETE: &str = "\
Example:
  aoctl keys delete transit --send-id 1 --recv-id 1";

pub(super) const ROLLOVER_STATUS: &str = "\
Examples:
  aoctl rollover status            a line for each peer, and all alarms
  aoctl rollover status as64502    everything about one";

pub(super) const ROLLOVER_START: &str = "\
Returns as soon as the change is begun; `aoctl events --follow` shows its steps.

Examples:
  aoctl rollover start as64502
  aoctl rollover start --compromised as64502";

pub(super) const ROLLOVER_ABORT: &str = "\
Once the key is selected there is no way back: the far end may have deleted the former one.

Example:
  aoctl rollover abort as64502";

pub(super) const ROLLOVER_FORCE: &str = "\
Refused unless the successor is installed at both ends.

Example:
  aoctl rollover force as64502";

pub(super) const EVENTS: &str = "\
Each line has the time in UTC, number, severity (info, warning, alarm), peer, kind and message.
The sidecar keeps the last 4096 events of this start; an event of kind `gap` tells that some are
lost. With --follow, Ctrl-C ends with exit code 0; a sidecar that goes away with 3.

Examples:
  aoctl events
  aoctl events --follow --peer as64502
  aoctl events --json --after 17 --log 1795000000000";

pub(super) const CONFIG: &str = "\
Examples:
  aoctl config check && aoctl config diff
  aoctl config reload";

pub(super) const CONFIG_CHECK: &str = "\
Files that the configuration names are looked up beside the sidecar's own. `ao-sidecar check FILE`
checks without a running sidecar.

Exit codes: 0 it would be taken, perhaps with warnings; 4 it would not.";

pub(super) const CONFIG_DIFF: &str = "\
Lines begin with `+` for what is new, `-` for what is gone and `~` for what is another one.

Exit codes: 0 no differences, 5 differences that a reload takes over, 4 some of them need a restart,
and a reload is refused.";

pub(super) const CONFIG_RELOAD: &str = "\
Prints what it changed, as `aoctl config diff` does before. Sessions of peers whose entry did not
change are not touched. What needs a restart is refused, and nothing has changed.";

pub(super) const COMPLETIONS: &str = "\
Examples:
  aoctl completions bash > /usr/share/bash-completion/completions/aoctl
  aoctl completions zsh > /usr/local/share/zsh/site-functions/_aoctl
  aoctl completions fish > ~/.config/fish/completions/aoctl.fish";
