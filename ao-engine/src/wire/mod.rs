//! Byte-exact views of IP packets and TCP segments, and the edits the engine makes to them.
//!
//! A packet stays in the buffer it came in ([`PacketBuf`]). [`Segment::parse`] finds the TCP
//! header and decodes what the engine decides on; it borrows nothing, so edits may follow.
//! [`summarize_options`] reads the option list once. The edits keep the IP length, the IPv4 header
//! checksum and the data offset right; [`fill_checksum`] completes the TCP checksum, once, at the
//! end. [`mac_header`] writes what a MAC covers besides the payload.
//!
//! No function here panics, whatever the packet holds, and none does anything useful when a
//! [`Segment`] is used with a packet it was not parsed from.

mod ack;
mod buf;
mod bytes;
mod checksum;
mod edit;
mod icmp;
mod ip;
mod mac_header;
mod options;
mod segment;
mod split;

pub use ack::bare_ack;
pub use buf::{HEADROOM, NoHeadroom, PacketBuf};
pub use checksum::{checksum_ok, fill_checksum};
pub use edit::{NoOptionSpace, clamp_mss, insert_ao, remove_ao, set_mac, strip_options, trim_sack};
pub use icmp::{IcmpError, Quoted, icmp_checksum_ok, parse_icmp_error, set_icmp_mtu};
pub use ip::ParseError;
pub use mac_header::{MacHeader, mac_header};
pub use options::{
    AoOption, MalformedOptions, OptionSummary, Options, OptionsError, TcpOption, kind, options,
    summarize_options,
};
pub use segment::{Flags, Segment};
pub use split::split_segment;
