//! A worker: one thread, one queue, one engine.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ao_engine::engine::{
    Action, Change, Direction, Engine, Limits, Link, Packet, Refused, Verdict,
};
use ao_engine::policy::{ConnectionId, Policy};
use ao_engine::reason::DropReason;
use ao_engine::record::EntryId;
use ao_engine::wire::PacketBuf;
use ao_sys::links::Links;
use ao_sys::nfqueue::{Arena, Queue, Queued, VerdictBuffer, Verdicts};
use ao_sys::raw::{self, Family};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::journal::{Journal, Slot};
use super::log::RefusalLog;
use super::reports::{ConnectionReport, PeerCounts, WorkerReport};
use super::restored::Restored;
use super::routes::Routes;
use crate::abort::AbortOnPanic;
use crate::mac::Timed;
use crate::report::{LastRefused, QueueReport};
use crate::settings::Settings;

/// Between two ticks of the engine, in milliseconds.
const TICK: u16 = 1000;
/// The netfilter hook of packets to the local host.
const LOCAL_IN: u8 = 1;
/// First segments of unknown connections verified per second and worker.
const UNKNOWN_PER_SECOND: u32 = 200;
/// Raw sockets kept open.
const MOST_SENDERS: usize = 64;
/// Batches taken in a row before commands are looked at.
const BATCHES_IN_A_ROW: usize = 16;

/// What all workers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) journal: Journal,
    pub(super) restored: Restored,
    pub(super) strips: bool,
    links: Mutex<Arc<Links>>,
    mark_bit: u32,
    max_connections: usize,
    epoch: Instant,
}

impl Shared {
    pub(super) fn new(
        settings: &Settings,
        strips: bool,
        journal: Journal,
        restored: Restored,
        links: Arc<Links>,
    ) -> Self {
        Self {
            journal,
            restored,
            strips,
            links: Mutex::new(links),
            mark_bit: settings.mark_bit,
            max_connections: usize::try_from(settings.max_connections).unwrap_or(usize::MAX),
            epoch: Instant::now(),
        }
    }

    pub(super) fn links(&self) -> Arc<Links> {
        Arc::clone(&self.links.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_links(&self, links: Arc<Links>) {
        *self.links.lock().unwrap_or_else(PoisonError::into_inner) = links;
    }

    /// The engine's view of a device.
    pub(super) fn link(&self, links: &Links, interface: u32) -> Link {
        Link {
            domain: links.domain_of(interface),
            interface,
            mtu: links
                .get(interface)
                .map(|link| link.mtu)
                .filter(|&mtu| mtu > 0),
            mark: 0,
        }
    }

    fn now(&self) -> ao_engine::time::Instant {
        let passed = self.epoch.elapsed().as_millis();
        ao_engine::time::Instant::from_millis(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

/// An ICMP error and where the answer goes; `None` when the connection is another worker's.
pub(super) struct IcmpQuestion {
    pub(super) packet: Vec<u8>,
    pub(super) link: Link,
    pub(super) reply: Sender<Option<IcmpAnswer>>,
}

/// The verdict on an ICMP error, and how it reads now.
pub(super) type IcmpAnswer = (Verdict, Vec<u8>);

/// What a worker is told from outside.
pub(super) enum Command {
    Report(Sender<WorkerReport>),
    /// Answered when it has been followed.
    Adapt(Arc<Links>, Arc<Policy>, Sender<()>),
    /// The sessions of some peers, by name.
    Observe(Arc<HashSet<Arc<str>>>, Sender<Vec<ConnectionReport>>),
    /// Quiet sessions of some peers are to send a signed acknowledgment.
    Nudge(Arc<HashSet<Arc<str>>>),
    /// Answered when what waits in the queue has been served.
    Settle(Sender<()>),
    Icmp(IcmpQuestion),
    Remove(ConnectionId),
    Stop,
}

/// A worker as the others see it.
pub(super) struct Handle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    /// Gives a command; one that has stopped does not mind.
    pub(super) fn send(&self, command: Command) {
        let _ = self.commands.send(command);
        // The counter of an eventfd cannot overflow by ones.
        let _ = self.wake.write(1);
    }

    /// Stops it; its queue is closed when this returns.
    pub(super) fn stop(&self) {
        self.send(Command::Stop);
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

/// The worker itself, before and in its thread.
pub(super) struct Worker {
    number: u16,
    queue: Queue,
    engine: Engine<Timed>,
    shared: Arc<Shared>,
    links: Arc<Links>,
    slots: HashMap<EntryId, Slot>,
    routes: Routes,
    /// By IP version, device and mark.
    senders: HashMap<(Family, u32, u32), raw::Sender>,
    counts: QueueReport,
    log: RefusalLog,
    adopted: u64,
}

impl Worker {
    pub(super) fn new(number: u16, queue: Queue, shared: Arc<Shared>, policy: Arc<Policy>) -> Self {
        let limits = Limits {
            max_connections: shared.max_connections,
            strip: shared.strips,
            unknown_per_second: UNKNOWN_PER_SECOND,
        };
        let mut engine = Engine::new(Timed::default(), limits, number);
        engine.set_policy(policy);
        let counts = QueueReport {
            number: queue.number(),
            ..QueueReport::default()
        };
        Self {
            number,
            queue,
            engine,
            links: shared.links(),
            shared,
            slots: HashMap::new(),
            routes: Routes::default(),
            senders: HashMap::new(),
            counts,
            log: RefusalLog::default(),
            adopted: 0,
        }
    }

    pub(super) fn spawn(self) -> io::Result<Handle> {
        let (commands, inbox) = mpsc::channel();
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let woken = Arc::clone(&wake);
        let name = format!("ao-worker-{}", self.number);
        let thread = thread::Builder::new().name(name).spawn(move || {
            let _guard = AbortOnPanic;
            self.run(&inbox, &woken);
        })?;
        Ok(Handle {
            commands,
            wake,
            thread: Mutex::new(Some(thread)),
        })
    }

    fn run(mut self, inbox: &Receiver<Command>, wake: &EventFd) {
        let mut buffers = Buffers::default();
        let mut ticked = Instant::now();
        loop {
            let mut descriptors = [
                PollFd::new(wake.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.queue.as_fd(), PollFlags::POLLIN),
            ];
            // An interrupted wait is as good as one that ended.
            let _ = poll(&mut descriptors, PollTimeout::from(TICK));
            let [woken, queued] = descriptors.map(|ready| ready.any().unwrap_or(false));
            if woken {
                let _ = wake.read();
                for command in inbox.try_iter() {
                    if matches!(command, Command::Stop) {
                        return;
                    }
                    self.obey(command, &mut buffers);
                }
            }
            if queued {
                self.serve(&mut buffers);
            }
            if ticked.elapsed() >= Duration::from_millis(u64::from(TICK)) {
                ticked = Instant::now();
                self.engine.tick(self.shared.now());
                self.record(&mut []);
                // What the kernel did not take last time.
                self.carry_out(&[], &[], &[], &mut buffers.encoded);
                self.log.update(&self.engine);
            }
        }
    }

    fn obey(&mut self, command: Command, buffers: &mut Buffers) {
        match command {
            // Whoever asked may have lost patience, here and below.
            Command::Report(reply) => {
                let _ = reply.send(self.report());
            }
            Command::Adapt(links, policy, reply) => {
                if !Arc::ptr_eq(&links, &self.links) {
                    self.links = links;
                    self.senders.clear();
                    self.routes.forget();
                }
                self.engine.set_policy(policy);
                self.record(&mut []);
                let _ = reply.send(());
            }
            Command::Observe(peers, reply) => {
                let _ = reply.send(self.sessions(|name| peers.contains(name)));
            }
            Command::Nudge(peers) => {
                let now = self.shared.now();
                self.engine.nudge(now, |peer| peers.contains(&peer.name));
                self.send_outbox();
            }
            Command::Settle(reply) => {
                self.serve(buffers);
                let _ = reply.send(());
            }
            Command::Icmp(question) => self.answer_icmp(question),
            Command::Remove(connection) => {
                self.engine.remove(&connection);
                self.record(&mut []);
            }
            Command::Stop => {}
        }
    }

    fn answer_icmp(&mut self, question: IcmpQuestion) {
        let IcmpQuestion {
            mut packet,
            link,
            reply,
        } = question;
        let length = packet.len();
        let verdict = PacketBuf::new(&mut packet, 0, length)
            .and_then(|mut buf| self.engine.process_icmp(self.shared.now(), link, &mut buf));
        if verdict == Some(Verdict::Modified) {
            self.routes.forget();
        }
        // Whoever asked may have lost patience.
        let _ = reply.send(verdict.map(|verdict| (verdict, packet)));
    }

    /// Takes what waits in the queue.
    fn serve(&mut self, buffers: &mut Buffers) {
        for _ in 0..BATCHES_IN_A_ROW {
            match self.queue.receive(&mut buffers.arena, &mut buffers.batch) {
                Ok(received) => {
                    self.decide(buffers);
                    if received.messages < ao_sys::nfqueue::BATCH {
                        return;
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.counts.overruns += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::error!(queue = self.counts.number, %error, "queue cannot be read");
                    return;
                }
            }
        }
    }

    /// One batch: from packets to verdicts, with what must be on record on record in between.
    fn decide(&mut self, buffers: &mut Buffers) {
        let Buffers {
            arena,
            batch,
            verdicts,
            encoded,
        } = buffers;
        self.counts.packets += batch.len() as u64;
        let mut packets = self.packets(arena, batch);
        if !self.shared.restored.is_empty() {
            self.adopt(&packets);
        }
        self.engine
            .process(self.shared.now(), &mut packets, verdicts);
        self.record(verdicts);
        self.carry_out(&packets, batch, verdicts, encoded);
        self.send_outbox();
    }

    fn send_outbox(&mut self) {
        for outgoing in self.engine.take_outbox() {
            self.transmit(outgoing.link, &outgoing.bytes);
        }
    }

    /// The batch as the engine takes it. A packet that has no room for headers in front cannot
    /// occur: a message's own headers are longer.
    fn packets<'a>(&mut self, arena: &'a mut Arena, batch: &[Queued]) -> Vec<Packet<'a>> {
        let mut packets = Vec::with_capacity(batch.len());
        let mut waiting = batch.iter().peekable();
        for (index, slot) in arena.slots().enumerate() {
            let Some(queued) = waiting.next_if(|queued| queued.slot == index) else {
                continue;
            };
            let range = queued.payload.clone();
            if let Some(buf) = PacketBuf::new(slot, range.start, range.end) {
                packets.push(self.packet(queued, buf));
            }
        }
        // Verdicts follow packets by their place: one too few would let the wrong packet pass.
        assert_eq!(packets.len(), batch.len(), "a packet for each message");
        packets
    }

    fn packet<'a>(&mut self, queued: &Queued, buf: PacketBuf<'a>) -> Packet<'a> {
        let (direction, interface) = match queued.hook {
            LOCAL_IN => (Direction::Inbound, queued.input),
            _ => (Direction::Outbound, queued.output),
        };
        let link = Link {
            mark: queued.mark,
            ..self.shared.link(&self.links, interface)
        };
        let route_mtu = self.routes.towards_remote(direction, link, buf.bytes());
        Packet {
            direction,
            link,
            route_mtu,
            buf,
        }
    }

    /// Takes up records of connections that a restart interrupted, once they show themselves here.
    fn adopt(&mut self, packets: &[Packet<'_>]) {
        for connection in packets.iter().filter_map(Packet::connection) {
            for (slot, record) in self.shared.restored.take(&connection) {
                self.adopted += 1;
                // Far above the numbers the engine gives out itself.
                let entry = EntryId((u64::from(self.number) << 48) | (1 << 47) | self.adopted);
                if self.engine.restore(self.shared.now(), entry, &record) {
                    self.slots.insert(entry, slot);
                } else if let Err(error) = self.shared.journal.forget(slot) {
                    tracing::warn!(%error, "cannot delete the record of a connection");
                }
            }
        }
    }

    /// Puts changes on record. A packet whose change cannot be recorded does not pass: the far
    /// end would hold this end to an ISN that a restart forgets.
    fn record(&mut self, verdicts: &mut [Verdict]) {
        for Change {
            packet,
            entry,
            action,
        } in self.engine.take_changes()
        {
            let outcome = match action {
                Action::Save(record) => match self.slots.entry(entry) {
                    std::collections::hash_map::Entry::Occupied(mut slot) => {
                        self.shared.journal.save(slot.get_mut(), &record)
                    }
                    std::collections::hash_map::Entry::Vacant(vacant) => {
                        match self.shared.journal.allocate() {
                            Some(slot) => self.shared.journal.save(vacant.insert(slot), &record),
                            None => Err(io::Error::other("the journal is full")),
                        }
                    }
                },
                Action::Forget => match self.slots.remove(&entry) {
                    Some(slot) => self.shared.journal.forget(slot),
                    None => Ok(()),
                },
            };
            if let Err(error) = outcome {
                tracing::error!(%error, "connection state cannot be recorded");
                if let Some(verdict) = packet.and_then(|index| verdicts.get_mut(index)) {
                    *verdict = Verdict::Drop(DropReason::NotRecorded);
                    self.engine.discard(entry);
                }
            }
        }
    }

    fn carry_out(
        &mut self,
        packets: &[Packet<'_>],
        batch: &[Queued],
        verdicts: &[Verdict],
        encoded: &mut VerdictBuffer,
    ) {
        let bit = self.shared.mark_bit;
        let mut answers = Verdicts::new(&self.queue, encoded);
        for (queued, (packet, verdict)) in batch.iter().zip(packets.iter().zip(verdicts)) {
            // The guard lets pass what bears the bit. Outbound marks stay as they are: another
            // mark may mean another route.
            let mark = match packet.direction {
                Direction::Inbound => Some(queued.mark | bit),
                Direction::Outbound => None,
            };
            match verdict {
                Verdict::Accept => answers.accept(queued.id, mark),
                Verdict::Modified => answers.replace(queued.id, mark, packet.buf.bytes()),
                Verdict::Transmit | Verdict::Split => answers.drop(queued.id),
                Verdict::Drop(reason) => {
                    tracing::debug!(reason = reason.as_str(), "packet refused");
                    answers.drop(queued.id);
                }
            }
        }
        if let Err(error) = answers.send() {
            tracing::error!(queue = self.counts.number, %error, "verdicts were not taken");
        }
        for (packet, verdict) in packets.iter().zip(verdicts) {
            if *verdict == Verdict::Transmit {
                self.transmit(packet.link, packet.buf.bytes());
            }
        }
    }

    /// Sends a packet past the route's MTU. What fails is lost, as any packet may be.
    fn transmit(&mut self, link: Link, packet: &[u8]) {
        let Some((family, _)) = raw::destination(packet) else {
            return;
        };
        if self.senders.len() >= MOST_SENDERS {
            self.senders.clear();
        }
        let key = (family, link.interface, link.mark);
        let sent = match self.senders.entry(key) {
            std::collections::hash_map::Entry::Occupied(sender) => sender.into_mut().send(packet),
            std::collections::hash_map::Entry::Vacant(vacant) => {
                raw::Sender::open(family, link.interface, link.mark | self.shared.mark_bit)
                    .and_then(|sender| vacant.insert(sender).send(packet))
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, octets = packet.len(), "segment not sent");
            self.routes.forget();
            self.senders.remove(&key);
        }
    }

    /// The sessions of peers for whose name `wanted` holds.
    fn sessions(&self, wanted: impl Fn(&Arc<str>) -> bool) -> Vec<ConnectionReport> {
        let now = self.shared.now();
        let views = self.engine.sessions();
        views
            .filter(|view| wanted(&view.peer.name))
            .map(|view| ConnectionReport::new(&view, now))
            .collect()
    }

    fn report(&self) -> WorkerReport {
        let by_name = |drops: &ao_engine::engine::DropCounters| {
            drops
                .iter()
                .map(|(reason, count)| (reason.as_str(), count))
                .collect()
        };
        let now = self.shared.now();
        let last_refused = |refused: Refused| LastRefused {
            reason: refused.reason.as_str(),
            ago: now.since(refused.at),
            key_id: refused.key_id,
        };
        let peers = self.engine.peer_counters().map(|(name, counters)| {
            let counts = PeerCounts {
                good: counters.good,
                sent: counters.sent,
                drops: by_name(&counters.drops),
                last_refused: counters.last_refused.map(last_refused),
            };
            (Arc::clone(name), counts)
        });
        WorkerReport {
            queue: self.counts.clone(),
            sessions: self.sessions(|_| true),
            peers: peers.collect(),
            drops: by_name(self.engine.unmatched_drops()),
            macs: self.engine.provider().macs(),
            mac_time: self.engine.provider().time(),
        }
    }
}

/// What a worker keeps from batch to batch.
#[derive(Default)]
struct Buffers {
    arena: Arena,
    batch: Vec<Queued>,
    verdicts: Vec<Verdict>,
    encoded: VerdictBuffer,
}
