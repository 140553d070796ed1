//! Verdicts for a batch in one system call.

use std::io::{self, IoSlice};

use super::Queue;
use super::message::{self, VERDICT, VERDICT_BATCH};

const DROP: u32 = libc::NF_DROP as u32;
const ACCEPT: u32 = libc::NF_ACCEPT as u32;

/// Octets of packets that go out in one call at most; the rest follows in another.
const CHUNK: usize = 512 * 1024;

/// The longest packet an attribute can carry.
const LONGEST: usize = u16::MAX as usize - message::ATTRIBUTE_HEADER;

/// Encodes verdicts; lasts from batch to batch.
#[derive(Debug, Default)]
pub struct VerdictBuffer {
    /// All messages of the call without the packets they carry.
    headers: Vec<u8>,
    /// Where in `headers` the packets belong, in order.
    cuts: Vec<usize>,
    /// Every packet up to this number has its verdict, in `drops` at the latest.
    settled: u32,
    /// The first and the last of the packets to drop whose verdict is not in `headers` yet.
    drops: Option<(u32, u32)>,
    /// Number of the queue.
    queue: u16,
}

impl VerdictBuffer {
    /// Adds a message that lets packet `id` pass as it is. Only drops are batched: a batch holds for
    /// every older packet, too, and one whose own verdict did not reach the kernel must not pass by
    /// it.
    fn accept(&mut self, id: u32, mark: Option<u32>) {
        self.advance_to(id);
        self.put(VERDICT, ACCEPT, id, mark);
    }

    /// Adds the verdict on a packet that does not pass.
    fn drop(&mut self, id: u32) {
        match &mut self.drops {
            Some((_, last)) if id == last.wrapping_add(1) => {
                *last = id;
                self.settled = id;
            }
            _ => {
                self.advance_to(id);
                self.drops = Some((id, id));
            }
        }
    }

    /// Adds a message that lets packet `id` pass with other contents, `length` octets that the
    /// caller provides.
    fn replace(&mut self, id: u32, mark: Option<u32>, length: usize) {
        self.advance_to(id);
        let start = self.put_verdict(VERDICT, ACCEPT, id, mark);
        message::open_attribute(&mut self.headers, libc::NFQA_PAYLOAD, length);
        message::finish(&mut self.headers, start, length);
        self.cuts.push(self.headers.len());
        message::pad(&mut self.headers, length);
    }

    /// Ends a run of drops, and drops what lies between the last settled packet and `id`: packets
    /// whose message never reached us in a readable form, and which would wait for ever.
    fn advance_to(&mut self, id: u32) {
        self.end_drops();
        let before = id.wrapping_sub(1);
        if before.wrapping_sub(self.settled).cast_signed() > 0 {
            self.put(VERDICT_BATCH, DROP, before, None);
        }
        self.settled = id;
    }

    fn end_drops(&mut self) {
        if let Some((first, last)) = self.drops.take() {
            let kind = if first == last {
                VERDICT
            } else {
                VERDICT_BATCH
            };
            self.put(kind, DROP, last, None);
        }
    }

    fn put(&mut self, kind: u16, verdict: u32, id: u32, mark: Option<u32>) {
        let start = self.put_verdict(kind, verdict, id, mark);
        message::finish(&mut self.headers, start, 0);
    }

    /// Appends a message without its length; returns where it starts.
    fn put_verdict(&mut self, kind: u16, verdict: u32, id: u32, mark: Option<u32>) -> usize {
        let start = self.headers.len();
        message::begin(&mut self.headers, kind, 0, self.queue);
        message::open_attribute(&mut self.headers, libc::NFQA_VERDICT_HDR, 8);
        self.headers.extend_from_slice(&verdict.to_be_bytes());
        self.headers.extend_from_slice(&id.to_be_bytes());
        if let Some(mark) = mark {
            message::put(&mut self.headers, libc::NFQA_MARK, &mark.to_be_bytes());
        }
        start
    }

    fn clear(&mut self) {
        self.headers.clear();
        self.cuts.clear();
    }
}

/// Collects the verdicts of one batch, which must come in the order the packets came in. The
/// packets themselves are sent from where they are.
#[derive(Debug)]
pub struct Verdicts<'a> {
    queue: &'a Queue,
    buffer: &'a mut VerdictBuffer,
    payloads: Vec<&'a [u8]>,
    payload_octets: usize,
    outcome: io::Result<()>,
}

impl<'a> Verdicts<'a> {
    /// Begins the verdicts of a batch. A buffer belongs to one queue from its first use on.
    #[must_use]
    pub fn new(queue: &'a Queue, buffer: &'a mut VerdictBuffer) -> Self {
        buffer.queue = queue.number();
        let payloads = Vec::with_capacity(super::BATCH);
        Self {
            queue,
            buffer,
            payloads,
            payload_octets: 0,
            outcome: Ok(()),
        }
    }

    /// Lets a packet pass as it came, with another mark if given.
    pub fn accept(&mut self, id: u32, mark: Option<u32>) {
        self.buffer.accept(id, mark);
    }

    /// Lets a packet pass with other contents, and with another mark if given. Contents that no
    /// message can carry (above 65,531 octets) are dropped.
    pub fn replace(&mut self, id: u32, mark: Option<u32>, contents: &'a [u8]) {
        if contents.len() > LONGEST {
            return self.drop(id);
        }
        self.buffer.replace(id, mark, contents.len());
        self.payloads.push(contents);
        self.payload_octets += contents.len();
        if self.payload_octets >= CHUNK {
            self.flush();
        }
    }

    /// Drops a packet.
    pub fn drop(&mut self, id: u32) {
        self.buffer.drop(id);
    }

    /// Hands the verdicts to the kernel.
    ///
    /// # Errors
    /// When the kernel did not take them all; the packets concerned are dropped.
    pub fn send(mut self) -> io::Result<()> {
        self.buffer.end_drops();
        self.flush();
        self.outcome
    }

    fn flush(&mut self) {
        if self.buffer.headers.is_empty() {
            return;
        }
        let mut parts = Vec::with_capacity(2 * self.payloads.len() + 1);
        let mut from = 0;
        for (&cut, payload) in self.buffer.cuts.iter().zip(&self.payloads) {
            parts.push(IoSlice::new(
                self.buffer.headers.get(from..cut).unwrap_or_default(),
            ));
            parts.push(IoSlice::new(payload));
            from = cut;
        }
        parts.push(IoSlice::new(
            self.buffer.headers.get(from..).unwrap_or_default(),
        ));
        let sent = self.queue.send(&parts);
        self.buffer.clear();
        self.payloads.clear();
        self.payload_octets = 0;
        if let Err(error) = sent {
            // What has no verdict would fill the queue, so it is dropped. This message is tiny; if
            // not even that is taken, it goes out with the next call.
            self.buffer
                .put(VERDICT_BATCH, DROP, self.buffer.settled, None);
            let retry = self.queue.send(&[IoSlice::new(&self.buffer.headers)]);
            if retry.is_ok() {
                self.buffer.clear();
            }
            self.outcome = retry.and(Err(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// What the kernel reads of a message: type, verdict, ID, mark and contents.
    type Told = (u16, u32, u32, Option<u32>, Option<Vec<u8>>);

    /// Reads messages as the kernel does, which believes their lengths and passes over what it
    /// cannot read; here that is an error.
    fn read(mut octets: &[u8]) -> Vec<Told> {
        let half = |octets: &[u8], at: usize| u16::from_ne_bytes([octets[at], octets[at + 1]]);
        let word = |octets: &[u8]| u32::from_be_bytes(octets.try_into().expect("four octets"));
        let mut all = Vec::new();
        while !octets.is_empty() {
            let length = u32::from_ne_bytes(octets[..4].try_into().expect("a length")) as usize;
            let kind = half(octets, 4) & 0xff;
            let mut attributes = &octets[20..length];
            let (mut settled, mut mark, mut contents) = (None, None, None);
            while !attributes.is_empty() {
                let size = usize::from(half(attributes, 0));
                let value = &attributes[message::ATTRIBUTE_HEADER..size];
                match i32::from(half(attributes, 2)) {
                    libc::NFQA_VERDICT_HDR => {
                        settled = Some((word(&value[..4]), word(&value[4..])));
                    }
                    libc::NFQA_MARK => mark = Some(word(value)),
                    libc::NFQA_PAYLOAD => contents = Some(value.to_vec()),
                    other => panic!("attribute {other}"),
                }
                attributes = &attributes[message::aligned(size).min(attributes.len())..];
            }
            let (verdict, id) = settled.expect("a verdict");
            all.push((kind, verdict, id, mark, contents));
            octets = &octets[message::aligned(length)..];
        }
        all
    }

    /// The same of verdicts that replace nothing.
    fn decode(buffer: &VerdictBuffer) -> Vec<(u16, u32, u32, Option<u32>)> {
        let told = read(&buffer.headers).into_iter();
        told.map(|(kind, verdict, id, mark, contents)| {
            assert_eq!(contents, None);
            (kind, verdict, id, mark)
        })
        .collect()
    }

    /// What becomes of a packet.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Fate {
        Passes(Option<u32>),
        PassesAs(Option<u32>, Vec<u8>),
        Dropped,
        /// Its message was never read, and nothing is said of it.
        Unread,
    }

    fn any_fate() -> impl Strategy<Value = Fate> {
        let mark = proptest::option::of(any::<u32>());
        prop_oneof![
            mark.clone().prop_map(Fate::Passes),
            (mark, proptest::collection::vec(any::<u8>(), 1..40))
                .prop_map(|(mark, contents)| Fate::PassesAs(mark, contents)),
            Just(Fate::Dropped),
            Just(Fate::Unread),
        ]
    }

    proptest! {
        /// Whatever lengths come together: the kernel finds each verdict, and nothing passes by
        /// one that was not its own.
        #[test]
        fn each_packet_gets_its_own_verdict(fates in proptest::collection::vec(any_fate(), 1..40)) {
            let mut buffer = VerdictBuffer::default();
            let mut payloads = Vec::new();
            for (id, fate) in (1..).zip(&fates) {
                match fate {
                    Fate::Passes(mark) => buffer.accept(id, *mark),
                    Fate::Dropped => buffer.drop(id),
                    Fate::PassesAs(mark, contents) => {
                        buffer.replace(id, *mark, contents.len());
                        payloads.push(contents);
                    }
                    Fate::Unread => {}
                }
            }
            buffer.end_drops();
            let mut octets = Vec::new();
            let mut from = 0;
            for (&cut, contents) in buffer.cuts.iter().zip(payloads) {
                octets.extend_from_slice(&buffer.headers[from..cut]);
                octets.extend_from_slice(contents);
                from = cut;
            }
            octets.extend_from_slice(&buffer.headers[from..]);

            let mut waiting: BTreeMap<u32, &Fate> = (1..).zip(&fates).collect();
            for (kind, verdict, id, mark, contents) in read(&octets) {
                let fate = match (verdict, contents) {
                    (ACCEPT, None) => Fate::Passes(mark),
                    (ACCEPT, Some(contents)) => Fate::PassesAs(mark, contents),
                    _ => Fate::Dropped,
                };
                let mut left = waiting.split_off(&(id + 1));
                if kind == SINGLE {
                    let settled = waiting.remove(&id);
                    left.append(&mut waiting);
                    prop_assert_eq!(settled, Some(&fate));
                } else {
                    for told in waiting.values() {
                        let unread = **told == Fate::Unread && fate == Fate::Dropped;
                        prop_assert!(**told == fate || unread, "{:?}", told);
                    }
                }
                waiting = left;
            }
            // The last ones are in a gap once another one comes.
            prop_assert!(waiting.values().all(|fate| **fate == Fate::Unread), "{:?}", waiting);
        }
    }

    const SINGLE: u16 = VERDICT & 0xff;
    const BATCH: u16 = VERDICT_BATCH & 0xff;

    #[test]
    fn a_run_of_drops_is_one_message_and_accepts_are_one_each() {
        let mut buffer = VerdictBuffer::default();
        for id in 1..=5 {
            buffer.drop(id);
        }
        for id in 6..=7 {
            buffer.accept(id, Some(8));
        }
        buffer.end_drops();
        assert_eq!(
            decode(&buffer),
            [
                (BATCH, DROP, 5, None),
                (SINGLE, ACCEPT, 6, Some(8)),
                (SINGLE, ACCEPT, 7, Some(8))
            ]
        );
    }

    #[test]
    fn a_drop_after_accepts_is_not_theirs() {
        let mut buffer = VerdictBuffer::default();
        buffer.accept(1, None);
        buffer.accept(2, Some(8));
        buffer.drop(3);
        buffer.drop(4);
        buffer.end_drops();
        assert_eq!(
            decode(&buffer),
            [
                (SINGLE, ACCEPT, 1, None),
                (SINGLE, ACCEPT, 2, Some(8)),
                (BATCH, DROP, 4, None)
            ]
        );
    }

    #[test]
    fn a_gap_is_dropped_before_a_later_packet_is_accepted() {
        let mut buffer = VerdictBuffer::default();
        buffer.accept(1, None);
        buffer.accept(4, None);
        buffer.accept(5, None);
        buffer.end_drops();
        assert_eq!(
            decode(&buffer),
            [
                (SINGLE, ACCEPT, 1, None),
                (BATCH, DROP, 3, None),
                (SINGLE, ACCEPT, 4, None),
                (SINGLE, ACCEPT, 5, None)
            ]
        );
    }

    #[test]
    fn an_unread_first_packet_is_dropped() {
        let mut buffer = VerdictBuffer::default();
        buffer.accept(2, None);
        buffer.end_drops();
        assert_eq!(
            decode(&buffer),
            [(BATCH, DROP, 1, None), (SINGLE, ACCEPT, 2, None)]
        );
    }

    #[test]
    fn numbers_may_wrap() {
        let mut buffer = VerdictBuffer {
            settled: u32::MAX - 1,
            ..Default::default()
        };
        buffer.accept(u32::MAX, None);
        buffer.accept(0, None);
        buffer.accept(2, None);
        buffer.end_drops();
        assert_eq!(
            decode(&buffer),
            [
                (SINGLE, ACCEPT, u32::MAX, None),
                (SINGLE, ACCEPT, 0, None),
                (BATCH, DROP, 1, None),
                (SINGLE, ACCEPT, 2, None)
            ]
        );
    }

    #[test]
    fn a_replaced_packet_has_the_kernels_layout() {
        if cfg!(target_endian = "big") {
            return;
        }
        let mut buffer = VerdictBuffer {
            queue: 258,
            ..Default::default()
        };
        buffer.replace(1, None, 5);
        let expected: &[u8] = &[
            41, 0, 0, 0, 0x01, 0x03, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr
            0, 0, 0x01, 0x02, // nfgenmsg, queue 258
            12, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 1, // NFQA_VERDICT_HDR
            9, 0, 10, 0, // NFQA_PAYLOAD, its 5 octets cut out
            0, 0, 0, // padding
        ];
        assert_eq!(buffer.headers, expected);
        assert_eq!(buffer.cuts, [36]);
    }
}
