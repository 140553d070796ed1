//! The queue of ICMP errors: they come from anywhere, so the kernel's hash does not lead them to
//! the worker whose connection they quote. Each worker is asked.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ao_engine::engine::Verdict;
use ao_engine::reason::DropReason;
use ao_sys::nfqueue::{Arena, Queue, Queued, VerdictBuffer, Verdicts};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::worker::{Command, Handle, IcmpAnswer, IcmpQuestion, Shared};
use crate::abort::AbortOnPanic;
use crate::report::QueueReport;

/// How long the workers may take to answer; they answer between two batches.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Counts {
    packets: AtomicU64,
    overruns: AtomicU64,
    unmatched: AtomicU64,
}

/// The thread that serves the ICMP queue.
pub(super) struct IcmpWorker {
    number: u16,
    counts: Arc<Counts>,
    wake: Arc<EventFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl IcmpWorker {
    pub(super) fn spawn(
        queue: Queue,
        shared: Arc<Shared>,
        workers: Vec<Arc<Handle>>,
    ) -> io::Result<Self> {
        let number = queue.number();
        let counts = Arc::new(Counts::default());
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let serve = Serve {
            queue,
            shared,
            workers,
            counts: counts.clone(),
            wake: wake.clone(),
        };
        let thread = thread::Builder::new()
            .name("ao-icmp".to_owned())
            .spawn(move || {
                let _guard = AbortOnPanic;
                serve.run();
            })?;
        Ok(Self {
            number,
            counts,
            wake,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(super) fn queue_report(&self) -> QueueReport {
        QueueReport {
            number: self.number,
            packets: self.counts.packets.load(Ordering::Relaxed),
            overruns: self.counts.overruns.load(Ordering::Relaxed),
            ..QueueReport::default()
        }
    }

    pub(super) fn drops(&self) -> BTreeMap<&'static str, u64> {
        let unmatched = self.counts.unmatched.load(Ordering::Relaxed);
        let some = (unmatched > 0).then_some((DropReason::IcmpUnmatched.as_str(), unmatched));
        some.into_iter().collect()
    }

    pub(super) fn is_alive(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    pub(super) fn stop(&self) {
        // The counter of an eventfd that only this writes cannot overflow.
        let _ = self.wake.write(1);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

struct Serve {
    queue: Queue,
    shared: Arc<Shared>,
    workers: Vec<Arc<Handle>>,
    counts: Arc<Counts>,
    wake: Arc<EventFd>,
}

impl Serve {
    fn run(&self) {
        let mut arena = Arena::default();
        let mut batch = Vec::new();
        let mut buffer = VerdictBuffer::default();
        loop {
            let mut descriptors = [
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.queue.as_fd(), PollFlags::POLLIN),
            ];
            let _ = poll(&mut descriptors, PollTimeout::NONE);
            let [wake, _] = descriptors;
            if wake.any().unwrap_or(false) {
                return;
            }
            match self.queue.receive(&mut arena, &mut batch) {
                Ok(_) => self.judge(&mut arena, &batch, &mut buffer),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.counts.overruns.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => tracing::error!(%error, "ICMP queue"),
            }
        }
    }

    fn judge(&self, arena: &mut Arena, batch: &[Queued], buffer: &mut VerdictBuffer) {
        let slots: Vec<&mut [u8]> = arena.slots().collect();
        let answers: Vec<Option<IcmpAnswer>> = batch
            .iter()
            .map(|queued| {
                let packet = slots.get(queued.slot)?.get(queued.payload.clone())?;
                self.ask(queued, packet)
            })
            .collect();
        let mut verdicts = Verdicts::new(&self.queue, buffer);
        for (queued, answer) in batch.iter().zip(&answers) {
            self.counts.packets.fetch_add(1, Ordering::Relaxed);
            match answer {
                Some((Verdict::Accept, _)) => verdicts.accept(queued.id, None),
                Some((Verdict::Modified, packet)) => verdicts.replace(queued.id, None, packet),
                Some(_) => verdicts.drop(queued.id),
                None => {
                    self.counts.unmatched.fetch_add(1, Ordering::Relaxed);
                    verdicts.drop(queued.id);
                }
            }
        }
        if let Err(error) = verdicts.send() {
            tracing::error!(%error, "verdicts on ICMP errors");
        }
    }

    /// Asks all workers; the one that has the connection answers.
    fn ask(&self, queued: &Queued, packet: &[u8]) -> Option<IcmpAnswer> {
        let (reply, answers) = mpsc::channel();
        let link = self.shared.link(&self.shared.links(), queued.input);
        for worker in &self.workers {
            let question = IcmpQuestion {
                packet: packet.to_vec(),
                link,
                reply: reply.clone(),
            };
            worker.send(Command::Icmp(question));
        }
        drop(reply);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match answers.recv_timeout(left) {
                Ok(Some(answer)) => return Some(answer),
                Ok(None) => {}
                Err(_) => return None,
            }
        }
    }
}
