//! Puts rules back that somebody flushed or changed.
//!
//! nftables tells of every change. x_tables tells nobody, so its tables' outlines are compared
//! a few times per second, which costs one system call each; the tools run only after a change,
//! and once a minute to find changes that leave the outline as it was.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ao_sys::links::{LinkMonitor, Links};
use ao_sys::nftables::{Changes, NftMonitor};
use ao_sys::xtables::{Family, Outline, Tables};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::part::Place;
use super::{Error, Firewall, nft, xt};
use crate::abort::AbortOnPanic;

/// Between two looks at the outlines, in milliseconds: rules must be back within a second.
const LOOK_EVERY: u16 = 400;
/// Between two checks of everything.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// What a round takes at most: each tool that it runs may take its longest time.
const LONGEST_ROUND: Duration = Duration::from_secs(300);
/// Between two reports of the same failure.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// A thread that watches over the rules of a [`Firewall`] until it is dropped.
pub struct Watcher {
    stop: Arc<EventFd>,
    /// When the last round began.
    beat: Arc<Mutex<Instant>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Begins to watch, in the calling thread's network namespace. `on_links` is told the
    /// devices at once and whenever they have changed.
    ///
    /// # Errors
    /// When sockets or the thread cannot be had.
    pub fn spawn(
        firewall: Arc<Firewall>,
        on_links: impl Fn(&Arc<Links>) + Send + 'static,
    ) -> Result<Self, Error> {
        let stop = Arc::new(
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(io::Error::from)?,
        );
        let beat = Arc::new(Mutex::new(Instant::now()));
        let mut watch = Watch {
            stop: Arc::clone(&stop),
            beat: Arc::clone(&beat),
            nft: NftMonitor::new()?,
            links: LinkMonitor::new()?,
            tables: Tables::open()?,
            outlines: BTreeMap::new(),
            firewall,
            suspicious: true,
            links_changed: true,
            checked: Instant::now(),
            complaint: None,
        };
        let thread = thread::Builder::new()
            .name("ao-watcher".to_owned())
            .spawn(move || {
                let _guard = AbortOnPanic;
                watch.run(&on_links);
            })?;
        Ok(Self {
            stop,
            beat,
            thread: Some(thread),
        })
    }

    /// Whether it has done a round lately. One takes as long as the tools do.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let beat = *self.beat.lock().unwrap_or_else(PoisonError::into_inner);
        beat.elapsed() < LONGEST_ROUND
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // The counter of an eventfd that only this writes cannot overflow.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watch {
    stop: Arc<EventFd>,
    beat: Arc<Mutex<Instant>>,
    nft: NftMonitor,
    links: LinkMonitor,
    tables: Tables,
    outlines: BTreeMap<(Family, &'static str), Outline>,
    firewall: Arc<Firewall>,
    /// Whether the rules must be compared.
    suspicious: bool,
    /// Whether others must be told of the devices.
    links_changed: bool,
    checked: Instant,
    /// The last failure that was logged, and when.
    complaint: Option<(String, Instant)>,
}

impl Watch {
    fn run(&mut self, on_links: &dyn Fn(&Arc<Links>)) {
        loop {
            *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            match self.step(on_links) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    self.complain(&error);
                    self.suspicious = true;
                    // Not at once, whatever else happens: the cause may last.
                    if self.wait_for(&[]).unwrap_or(false) {
                        return;
                    }
                }
            }
        }
    }

    /// Logs a failure, but not with every attempt.
    fn complain(&mut self, error: &Error) {
        let error = error.to_string();
        let said = self
            .complaint
            .as_ref()
            .is_some_and(|(last, when)| *last == error && when.elapsed() < COMPLAIN_EVERY);
        if !said {
            tracing::error!(%error, "cannot watch over the firewall; trying again");
            self.complaint = Some((error, Instant::now()));
        }
    }

    /// Waits for one event or the next look, and acts on it; whether to stop.
    fn step(&mut self, on_links: &dyn Fn(&Arc<Links>)) -> Result<bool, Error> {
        if self.checked.elapsed() >= CHECK_EVERY {
            self.suspicious = true;
            self.firewall.count();
        }
        if self.suspicious {
            self.restore()?;
        }
        if self.links_changed {
            let links = self.links.links();
            on_links(&links);
            self.firewall.update_links(&links)?;
            self.links_changed = false;
        }
        if self.wait_for(&[self.nft.as_fd(), self.links.as_fd()])? {
            return Ok(true);
        }
        self.links_changed |= self.links.update()?;
        self.suspicious |= match self.nft.changes()? {
            Changes::Unknown => true,
            Changes::Tables(tables) => self
                .firewall
                .parts()
                .iter()
                .any(|part| part.place == Place::Nft && tables.contains(nft::table(part.role))),
        };
        self.suspicious |= self.outlines_now() != self.outlines;
        Ok(false)
    }

    /// Waits for an event or the time of the next look; whether the event is the one to stop.
    fn wait_for(&self, events: &[BorrowedFd<'_>]) -> Result<bool, Error> {
        let mut descriptors: Vec<PollFd> = [self.stop.as_fd()]
            .iter()
            .chain(events)
            .map(|descriptor| PollFd::new(*descriptor, PollFlags::POLLIN))
            .collect();
        match poll(&mut descriptors, PollTimeout::from(LOOK_EVERY)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let stop = descriptors.first().and_then(PollFd::any);
        Ok(stop.unwrap_or(false))
    }

    fn restore(&mut self) -> Result<(), Error> {
        // Taken before the comparison: what changes during it makes the next look suspicious.
        let outlines = self.outlines_now();
        let restored = self.firewall.restore()?;
        self.outlines = if restored.is_empty() {
            outlines
        } else {
            self.outlines_now()
        };
        self.suspicious = false;
        self.checked = Instant::now();
        Ok(())
    }

    fn outlines_now(&self) -> BTreeMap<(Family, &'static str), Outline> {
        let mut outlines = BTreeMap::new();
        for part in self.firewall.parts() {
            let Place::Xt(family) = part.place else {
                continue;
            };
            for table in xt::table_names(part.role) {
                if let Ok(outline) = self.tables.outline(family, table) {
                    outlines.insert((family, table), outline);
                }
            }
        }
        outlines
    }
}
