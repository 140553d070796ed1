//! The MTU of routes, asked of the kernel at most once a second per destination.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ao_sys::route;

const LIFETIME: Duration = Duration::from_secs(1);
/// A prefix may cover many addresses, and anybody can send from them.
const MOST: usize = 1024;

/// Route MTUs as they were a moment ago.
#[derive(Debug, Default)]
pub(super) struct Routes {
    known: HashMap<(IpAddr, u32), (Option<u32>, Instant)>,
}

impl Routes {
    /// MTU of the route to `destination` by `device` (0: any); `None` if there is no route.
    pub(super) fn mtu(&mut self, destination: IpAddr, device: u32) -> Option<u32> {
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
