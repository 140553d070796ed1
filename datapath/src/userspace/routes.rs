//! The MTU of routes, asked of the kernel at most once a second per destination.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ao_engine::engine::{Direction, Link};
use ao_sys::{raw, route};

const LIFETIME: Duration = Duration::from_secs(1);
/// A prefix may cover many addresses, and anybody can send from them.
const MOST: usize = 1024;

/// Route MTUs as they were a moment ago.
#[derive(Debug, Default)]
pub(super) struct Routes {
    known: HashMap<(IpAddr, u32), (Option<u32>, Instant)>,
}

impl Routes {
    /// MTU of the route to the far end of a packet. Inbound, only a SYN's matters: it bounds the
    /// MSS the local TCP is told of, and asking for every forged source would be dear.
    pub(super) fn towards_remote(
        &mut self,
        direction: Direction,
        link: Link,
        packet: &[u8],
    ) -> Option<u32> {
        match direction {
            Direction::Outbound => {
                let (_, remote) = raw::destination(packet)?;
                self.mtu(remote, link.interface)
            }
            Direction::Inbound => {
                let remote = source(packet).filter(|_| may_be_syn(packet))?;
                // A global address may come in by any device; the VRF decides.
                let device = match remote {
                    IpAddr::V6(v6) if v6.is_unicast_link_local() => link.interface,
                    _ => link.domain,
                };
                self.mtu(remote, device)
            }
        }
    }

    /// MTU of the route to `destination` by `device` (0: any); `None` if there is no route.
    fn mtu(&mut self, destination: IpAddr, device: u32) -> Option<u32> {
        let now = Instant::now();
        let key = (destination, device);
        if let Some((mtu, asked)) = self.known.get(&key)
            && now.duration_since(*asked) < LIFETIME
        {
            return *mtu;
        }
        if self.known.len() >= MOST {
            self.known.clear();
        }
        let mtu = route::mtu(destination, device).ok();
        self.known.insert(key, (mtu, now));
        mtu
    }

    /// Asks anew next time: something was learned.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }
}

/// The source address, from the IP header alone.
fn source(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(*packet.get(12..)?.first_chunk::<4>()?)),
        6 => Some(IpAddr::from(*packet.get(8..)?.first_chunk::<16>()?)),
        _ => None,
    }
}

/// Whether the SYN flag is set, or the TCP header is not where it usually is.
fn may_be_syn(packet: &[u8]) -> bool {
    const TCP: u8 = 6;
    let header = match (packet.first(), packet.get(6)) {
        (Some(first), _) if first >> 4 == 4 => usize::from(first & 0xf) * 4,
        (_, Some(&TCP)) => 40,
        _ => return true,
    };
    packet
        .get(header + 13)
        .is_some_and(|flags| flags & 0x02 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syns_are_told_from_other_segments() {
        for (version, next, header) in [(0x45, 0, 20), (0x46, 0, 24), (0x60, 6, 40)] {
            let mut packet = vec![0; header + 20];
            packet[0] = version;
            packet[6] = next;
            assert!(!may_be_syn(&packet));
            packet[header + 13] = 0x12;
            assert!(may_be_syn(&packet));
            assert!(!may_be_syn(&packet[..header]), "cut off");
        }
        let mut extension = vec![0; 60];
        extension[0] = 0x60;
        assert!(may_be_syn(&extension), "behind an extension header");
    }

    #[test]
    fn sources_of_both_versions() {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        assert_eq!(source(&packet), Some(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(source(&packet[..15]), None);
        packet[0] = 0x60;
        packet[8..24].copy_from_slice(&[1; 16]);
        assert_eq!(source(&packet), Some(IpAddr::from([1_u8; 16])));
        assert_eq!(source(&[]), None);
    }
}
