//! What must survive a restart of the sidecar so that a live connection goes on.

use core::net::{IpAddr, Ipv6Addr};

use crate::policy::ConnectionId;

/// Identifies an entry of the connection table for as long as it lives. Unique over all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub u64);

/// One connection, as kept outside the engine. The traffic keys are not in it: they follow from
/// the master keys and the ISNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The connection.
    pub connection: ConnectionId,
    /// ISN of this end, once it has sent one.
    pub local_isn: Option<u32>,
    /// ISN of the far end, once it is known.
    pub remote_isn: Option<u32>,
    /// Highest 64-bit sequence number sent; may be up to 2^28 octets old.
    pub sent: u64,
    /// Highest 64-bit sequence number received; may be up to 2^28 octets old.
    pub received: u64,
    /// SendID of current_key.
    pub current_key: u8,
    /// RecvID of rnext_key.
    pub rnext_key: u8,
    /// Whether the far end has proven that it knows both ISNs.
    pub proven: bool,
}

const LOCAL_ISN: u8 = 1;
const REMOTE_ISN: u8 = 2;
const PROVEN: u8 = 4;
const IPV4: u8 = 8;

impl Record {
    /// Octets of an encoded record.
    pub const LEN: usize = 80;

    /// The record as octets, with a check sum over all of it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut writer = Writer {
            out: [0; Self::LEN],
            at: 0,
        };
        let mut flags = 0;
        if self.local_isn.is_some() {
            flags |= LOCAL_ISN;
        }
        if self.remote_isn.is_some() {
            flags |= REMOTE_ISN;
        }
        if self.proven {
            flags |= PROVEN;
        }
        if self.connection.local.is_ipv4() {
            flags |= IPV4;
        }
        writer.put(&[flags, self.current_key, self.rnext_key, 0]);
        writer.put(&self.connection.domain.to_be_bytes());
        writer.put(&self.connection.interface.to_be_bytes());
        writer.put(&sixteen(self.connection.local));
        writer.put(&sixteen(self.connection.remote));
        writer.put(&self.connection.local_port.to_be_bytes());
        writer.put(&self.connection.remote_port.to_be_bytes());
        writer.put(&self.local_isn.unwrap_or(0).to_be_bytes());
        writer.put(&self.remote_isn.unwrap_or(0).to_be_bytes());
        writer.put(&self.sent.to_be_bytes());
        writer.put(&self.received.to_be_bytes());
        let sum = fletcher(writer.written());
        writer.put(&sum.to_be_bytes());
        writer.out
    }

    /// Reads a record back.
    ///
    /// `None` when the check sum is wrong: a record is whole or it is not there.
    #[must_use]
    pub fn decode(octets: &[u8; Self::LEN]) -> Option<Self> {
        let (body, sum) = octets.split_last_chunk::<8>()?;
        if fletcher(body) != u64::from_be_bytes(*sum) {
            return None;
        }
        let mut reader = Reader { rest: body };
        let [flags, current_key, rnext_key, _] = reader.take::<4>()?;
        let address = |octets: [u8; 16]| -> IpAddr {
            let v6 = Ipv6Addr::from(octets);
            match v6.to_ipv4_mapped() {
                Some(v4) if flags & IPV4 != 0 => IpAddr::V4(v4),
                _ => IpAddr::V6(v6),
            }
        };
        Some(Self {
            connection: ConnectionId {
                domain: u32::from_be_bytes(reader.take()?),
                interface: u32::from_be_bytes(reader.take()?),
                local: address(reader.take()?),
                remote: address(reader.take()?),
                local_port: u16::from_be_bytes(reader.take()?),
                remote_port: u16::from_be_bytes(reader.take()?),
            },
            local_isn: Some(u32::from_be_bytes(reader.take()?)).filter(|_| flags & LOCAL_ISN != 0),
            remote_isn: Some(u32::from_be_bytes(reader.take()?))
                .filter(|_| flags & REMOTE_ISN != 0),
            sent: u64::from_be_bytes(reader.take()?),
            received: u64::from_be_bytes(reader.take()?),
            current_key,
            rnext_key,
            proven: flags & PROVEN != 0,
        })
    }
}

struct Writer {
    out: [u8; Record::LEN],
    at: usize,
}

impl Writer {
    fn put(&mut self, octets: &[u8]) {
        if let Some(target) = self.out.get_mut(self.at..self.at + octets.len()) {
            target.copy_from_slice(octets);
            self.at += octets.len();
        }
    }

    fn written(&self) -> &[u8] {
        self.out.get(..self.at).unwrap_or_default()
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }
}

fn sixteen(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Fletcher's check sum over octets: finds torn and half-written records; it is no MAC, and the
/// file it stands in is root's.
fn fletcher(octets: &[u8]) -> u64 {
    let (mut a, mut b) = (1u64, 0u64);
    for &octet in octets {
        a = (a + u64::from(octet)) % 0xffff_fffb;
        b = (b + a) % 0xffff_fffb;
    }
    b << 32 | a
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    fn any_address() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<(u32, u32)>()
                .prop_map(|(a, b)| (Ipv4Addr::from(a).into(), Ipv4Addr::from(b).into())),
            any::<(u128, u128)>()
                .prop_map(|(a, b)| (Ipv6Addr::from(a).into(), Ipv6Addr::from(b).into())),
        ]
    }

    prop_compose! {
        fn any_record()(
            (local, remote) in any_address(),
            (domain, interface, local_port, remote_port) in any::<(u32, u32, u16, u16)>(),
            (local_isn, remote_isn, sent, received) in any::<(Option<u32>, Option<u32>, u64, u64)>(),
            (current_key, rnext_key, proven) in any::<(u8, u8, bool)>(),
        ) -> Record {
            Record {
                connection: ConnectionId { domain, interface, local, remote, local_port, remote_port },
                local_isn, remote_isn, sent, received, current_key, rnext_key, proven,
            }
        }
    }

    proptest! {
        #[test]
        fn round_trips(record in any_record()) {
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn any_changed_octet_is_noticed(record in any_record(), at in 0..Record::LEN, flip in 1u8..) {
            let mut octets = record.encode();
            octets[at] ^= flip;
            prop_assert_eq!(Record::decode(&octets), None);
        }
    }

    #[test]
    fn an_empty_slot_is_no_record() {
        assert_eq!(Record::decode(&[0; Record::LEN]), None);
    }
}
