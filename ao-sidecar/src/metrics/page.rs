//! How a moment becomes text.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use datapath::report::{PeerReport, Session, SessionState};
use datapath::settings::Backend;
use grpc_api::Snapshot;
use grpc_api::operator::{KeyOrigin, KeyReport, KeyState, RolloverReport};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::registry::Registry;

use super::PREFIX;
use super::families::{self as family, Family};
use super::history::{Counted, Durations};
use super::totals::{Totals, add};

/// What is known of one moment.
#[derive(Debug)]
pub(super) struct Moment {
    /// What the daemon says.
    pub(super) snapshot: Snapshot,
    /// How key changes stand.
    pub(super) rollovers: Vec<RolloverReport>,
    /// The keys of all peers.
    pub(super) keys: Vec<KeyReport>,
}

impl Moment {
    /// Names of the peers there are.
    pub(super) fn peers(&self) -> HashSet<&str> {
        let peers = self.snapshot.report.peers.iter();
        peers.map(|peer| &*peer.name).collect()
    }
}

/// A key of a peer: SendID, RecvID, and its generation if it was agreed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct KeyName {
    peer: Arc<str>,
    ids: (u8, u8),
    generation: Option<u64>,
}

/// A session, for as long as it lives.
#[derive(Debug, PartialEq, Eq, Hash)]
struct SessionName {
    local: SocketAddr,
    remote: SocketAddr,
    vrf: Option<String>,
    kernel: bool,
}

impl SessionName {
    fn new(session: &Session) -> Self {
        Self {
            local: session.local,
            remote: session.remote,
            vrf: session.vrf.clone(),
            kernel: session.backend == Backend::Kernel,
        }
    }
}

/// Good, bad and sent segments of a key.
type KeyCounts = [u64; 3];
/// What [`KeyCounts`] are called.
const RESULTS: [&str; 3] = ["good", "bad", "sent"];

/// What a session of the kernel counts: good and sent segments, then what it refused.
type KernelCounts = [u64; 6];
/// What the refusals among [`KernelCounts`] are called; the engine counts its own by these names.
const KERNEL_REASONS: [&str; 4] = ["bad-mac", "unsigned", "unknown-key-id", "icmp-ignored"];

/// What must be remembered from one page to the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    keys: Totals<(SessionName, (u8, u8)), KeyName, 3>,
    /// The engine remembers its peers' counts itself; the kernel forgets those of a closed socket.
    kernel: Totals<SessionName, Arc<str>, 6>,
}

impl Memory {
    fn update(&mut self, moment: &Moment) {
        let Moment { snapshot, keys, .. } = moment;
        let report = &snapshot.report;
        let generations = generations(keys);
        let of_keys = report.sessions.iter().flat_map(|session| {
            session.keys.iter().map(|used| {
                let ids = (used.send_id, used.recv_id);
                let generation = generations.get(&(&*session.peer, ids)).copied();
                let name = KeyName {
                    peer: Arc::clone(&session.peer),
                    ids,
                    generation,
                };
                let counts = [used.good, used.bad, used.sent.unwrap_or(0)];
                ((SessionName::new(session), ids), name, counts)
            })
        });
        self.keys.update(of_keys, !report.partial);
        let of_kernel = report
            .sessions
            .iter()
            .filter(|session| session.backend == Backend::Kernel)
            .map(|session| {
                let peer = Arc::clone(&session.peer);
                (SessionName::new(session), peer, kernel_counts(session))
            });
        self.kernel.update(of_kernel, !report.partial);

        let live: HashSet<KeyRef<'_>> = keys.iter().filter_map(live_key).collect();
        self.keys
            .retain(|key| live.contains(&(&*key.peer, key.ids, key.generation)));
        let peers = moment.peers();
        self.kernel.retain(|peer| peers.contains(&**peer));
    }
}

type KeyRef<'k> = (&'k str, (u8, u8), Option<u64>);

fn kernel_counts(session: &Session) -> KernelCounts {
    [
        session.segments_good,
        session.segments_sent,
        session.segments_bad,
        session.segments_unsigned,
        session.key_not_found,
        session.dropped_icmp,
    ]
}

/// The key, if it is one that may still be used.
fn live_key(key: &KeyReport) -> Option<KeyRef<'_>> {
    let live = !matches!(
        key.state,
        KeyState::Deleted | KeyState::Revoked | KeyState::Expired
    );
    let generation = match &key.origin {
        KeyOrigin::Chain { .. } => None,
        KeyOrigin::Rollover { generation, .. } => Some(*generation),
    };
    live.then_some((&*key.peer, key.ids?, generation))
}

/// Generations of live keys by peer and IDs.
fn generations(keys: &[KeyReport]) -> HashMap<(&str, (u8, u8)), u64> {
    keys.iter()
        .filter_map(live_key)
        .filter_map(|(peer, ids, generation)| Some(((peer, ids), generation?)))
        .collect()
}

/// When the key chains end that do: when the last of their keys is sent with no more.
fn chain_ends(keys: &[KeyReport]) -> BTreeMap<&str, SystemTime> {
    let mut ends: BTreeMap<&str, Option<SystemTime>> = BTreeMap::new();
    for key in keys {
        if let KeyOrigin::Chain { name } = &key.origin {
            let end = ends.entry(name).or_insert(key.send.end);
            *end = end.zip(key.send.end).map(|(one, other)| one.max(other));
        }
    }
    ends.into_iter()
        .filter_map(|(name, end)| Some((name, end?)))
        .collect()
}

/// Writes the page of `moment`.
pub(super) fn text(
    moment: Moment,
    memory: &mut Memory,
    counted: Counted,
) -> Result<String, fmt::Error> {
    memory.update(&moment);
    let page = Page {
        keys: memory.keys.all(),
        kernel_ended: memory.kernel.ended().clone(),
        kernel: memory.kernel.all(),
        moment,
        counted,
    };
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(page));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Page {
    moment: Moment,
    counted: Counted,
    keys: BTreeMap<KeyName, KeyCounts>,
    kernel_ended: BTreeMap<Arc<str>, KernelCounts>,
    kernel: BTreeMap<Arc<str>, KernelCounts>,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer(encoder);
        self.sidecar(&mut out)?;
        self.peers(&mut out)?;
        self.keys(&mut out)?;
        self.traffic(&mut out)?;
        self.key_changes(&mut out)
    }
}

impl Page {
    fn sidecar(&self, out: &mut Writer<'_>) -> fmt::Result {
        let Snapshot {
            version,
            uptime,
            config_loaded_at,
            api_made,
            ..
        } = &self.moment.snapshot;
        out.info(&family::BUILD, [[Cow::from(*version)]])?;
        out.gauge(&family::UPTIME, [([], uptime.as_secs_f64())])?;
        let loaded = timestamp(*config_loaded_at);
        out.gauge(&family::CONFIG_LOADED, [([], loaded)])?;
        out.gauge(&family::API_MADE, [([], *api_made)])?;
        let alarms = self.alarms().get(&None).copied();
        out.gauge(&family::ALARMS, [([], alarms.unwrap_or(0))])?;
        let events = self.counted.events.iter();
        out.counter(
            &family::EVENTS,
            events.map(|(&(kind, severity), &count)| ([kind.into(), severity.into()], count)),
        )
    }

    /// How many there are of each peer, and of none.
    fn alarms(&self) -> HashMap<Option<&str>, u64> {
        let mut counts = HashMap::new();
        for alarm in &self.moment.snapshot.alarms {
            *counts.entry(alarm.peer.as_deref()).or_default() += 1;
        }
        counts
    }

    fn peers(&self, out: &mut Writer<'_>) -> fmt::Result {
        let peers = &self.moment.snapshot.report.peers;
        let each = |value: fn(&PeerReport) -> u64| {
            peers
                .iter()
                .map(move |peer| (name(&peer.name), value(peer)))
        };
        out.info(
            &family::PEER,
            peers.iter().map(|peer| {
                let backend = peer.backend.as_str();
                [
                    Cow::from(&*peer.name),
                    Cow::from(&*peer.address),
                    backend.into(),
                ]
            }),
        )?;
        // A prefix without far ends is as well as one with.
        let single = peers.iter().filter(|peer| !peer.address.contains('/'));
        out.gauge(
            &family::PEER_UP,
            single.map(|peer| (name(&peer.name), u64::from(peer.sessions > 0))),
        )?;
        out.gauge(&family::PEER_SESSIONS, each(|peer| peer.sessions.into()))?;
        out.gauge(
            &family::PEER_BLOCKED,
            each(|peer| u64::from(peer.keys == 0)),
        )?;
        let alarms = self.alarms();
        out.gauge(
            &family::PEER_ALARMS,
            peers.iter().map(|peer| {
                let count = alarms.get(&Some(&*peer.name)).copied();
                (name(&peer.name), count.unwrap_or(0))
            }),
        )?;
        let ended = |peer: &PeerReport| self.kernel_ended.get(&peer.name).copied();
        out.counter(
            &family::PEER_SEGMENTS_GOOD,
            peers.iter().map(|peer| {
                let [good, ..] = ended(peer).unwrap_or_default();
                (name(&peer.name), peer.segments_good.saturating_add(good))
            }),
        )?;
        out.counter(
            &family::PEER_SEGMENTS_SENT,
            peers.iter().map(|peer| {
                let [_, sent, ..] = ended(peer).unwrap_or_default();
                (name(&peer.name), peer.segments_sent.saturating_add(sent))
            }),
        )?;
        let drops = peers.iter().flat_map(|peer| {
            let drops = self.drops(peer);
            drops
                .into_iter()
                .map(|(reason, [count])| ([Cow::from(&*peer.name), reason.into()], count))
        });
        out.counter(&family::PEER_DROPS, drops)
    }

    /// What was refused, by the engine and by the kernel.
    fn drops(&self, peer: &PeerReport) -> BTreeMap<&'static str, [u64; 1]> {
        let engine = peer.drops.iter().map(|(&reason, &count)| (reason, count));
        let kernel = self.kernel.get(&peer.name);
        let kernel = kernel
            .into_iter()
            .flat_map(|[_, _, refused @ ..]| KERNEL_REASONS.into_iter().zip(*refused))
            .filter(|(_, count)| *count > 0);
        let mut drops = BTreeMap::new();
        for (reason, count) in engine.chain(kernel) {
            add(drops.entry(reason).or_insert([0]), &[count]);
        }
        drops
    }

    fn keys(&self, out: &mut Writer<'_>) -> fmt::Result {
        let samples = self.keys.iter().flat_map(|(key, counts)| {
            let (send, recv) = key.ids;
            let ids = format!("{send}/{recv}");
            let generation = key.generation.map(|number| number.to_string());
            let generation = generation.unwrap_or_default();
            RESULTS.iter().zip(counts).map(move |(&result, &count)| {
                let labels = [
                    Cow::from(&*key.peer),
                    ids.clone().into(),
                    generation.clone().into(),
                    result.into(),
                ];
                (labels, count)
            })
        });
        out.counter(&family::KEY_SEGMENTS, samples)
    }

    fn traffic(&self, out: &mut Writer<'_>) -> fmt::Result {
        let report = &self.moment.snapshot.report;
        let in_state = |state: SessionState| {
            let sessions = report.sessions.iter();
            let count = sessions.filter(|session| session.state == state).count();
            ([Cow::from(state.as_str())], count)
        };
        let states = [
            SessionState::Opening,
            SessionState::Established,
            SessionState::Closing,
            SessionState::Restored,
        ];
        out.gauge(&family::SESSIONS, states.map(in_state))?;
        out.counter(&family::DROPS, by_name(&report.drops))?;
        out.counter(&family::FIREWALL_DROPS, by_name(&report.firewall_drops))?;
        out.counter(&family::RULES_RESTORED, [([], report.rules_restored)])?;
        let in_place = u64::from(report.rules_trouble.is_none());
        out.gauge(&family::RULES_IN_PLACE, [([], in_place)])?;

        let queues = &report.queues;
        let number = |number: u16| [Cow::from(number.to_string())];
        out.counter(
            &family::QUEUE_PACKETS,
            queues
                .iter()
                .map(|queue| (number(queue.number), queue.packets)),
        )?;
        out.counter(
            &family::QUEUE_OVERRUNS,
            queues
                .iter()
                .map(|queue| (number(queue.number), queue.overruns)),
        )?;
        out.counter(
            &family::QUEUE_DROPPED,
            queues
                .iter()
                .map(|queue| (number(queue.number), queue.dropped)),
        )?;
        out.gauge(
            &family::QUEUE_WAITING,
            queues
                .iter()
                .map(|queue| (number(queue.number), queue.waiting)),
        )?;
        out.counter(&family::MACS, [([], report.macs)])?;
        out.counter(&family::MAC_SECONDS, [([], report.mac_time.as_secs_f64())])?;

        let kernel = report.kernel.iter();
        out.gauge(
            &family::KERNEL_DAEMONS,
            kernel.clone().map(|kernel| ([], kernel.daemons.len())),
        )?;
        out.gauge(
            &family::KERNEL_PROBLEMS,
            kernel.map(|kernel| ([], kernel.problems.len())),
        )
    }

    fn key_changes(&self, out: &mut Writer<'_>) -> fmt::Result {
        let ends = chain_ends(&self.moment.keys).into_iter();
        out.gauge(
            &family::KEY_CHAIN_END,
            ends.map(|(chain, end)| (name(chain), timestamp(end))),
        )?;
        let rollovers = &self.moment.rollovers;
        let each = |value: fn(&RolloverReport) -> u64| {
            rollovers
                .iter()
                .map(move |rollover| (name(&rollover.peer), value(rollover)))
        };
        let moments = |value: fn(&RolloverReport) -> Option<SystemTime>| {
            rollovers.iter().filter_map(move |rollover| {
                Some((name(&rollover.peer), timestamp(value(rollover)?)))
            })
        };
        out.gauge(
            &family::ROLLOVER_GENERATION,
            each(|rollover| rollover.active.map_or(0, |active| active.number)),
        )?;
        out.gauge(
            &family::ROLLOVER_RUNWAY_READY,
            each(|rollover| rollover.runway_ready.into()),
        )?;
        out.gauge(
            &family::ROLLOVER_RUNWAY_WANTED,
            each(|rollover| rollover.runway_wanted.into()),
        )?;
        out.gauge(&family::ROLLOVER_NEXT, moments(|rollover| rollover.next))?;
        let completed = self.counted.completed.iter();
        out.counter(
            &family::ROLLOVERS,
            completed.map(|((peer, trigger), &count)| {
                ([Cow::from(&**peer), Cow::from(*trigger)], count)
            }),
        )?;
        out.histogram(&family::ROLLOVER_DURATION, &self.counted.durations)?;
        out.gauge(
            &family::FAR_END_HEARD,
            moments(|rollover| rollover.last_heard),
        )?;
        out.gauge(
            &family::FAR_END_UNREACHABLE,
            moments(|rollover| Some(rollover.unreachable.as_ref()?.0)),
        )
    }
}

fn name(name: &str) -> [Cow<'_, str>; 1] {
    [name.into()]
}

fn by_name<'c>(
    counts: &'c BTreeMap<&'static str, u64>,
) -> impl Iterator<Item = ([Cow<'c, str>; 1], u64)> {
    counts.iter().map(|(&what, &count)| ([what.into()], count))
}

/// Seconds since 1970.
fn timestamp(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// Writes families: the type system counts their labels.
struct Writer<'e>(DescriptorEncoder<'e>);

impl Writer<'_> {
    fn begin<const N: usize>(
        &mut self,
        family: &Family<N>,
    ) -> Result<MetricEncoder<'_>, fmt::Error> {
        self.0
            .encode_descriptor(family.name, family.help, None, family.kind)
    }

    fn info<'l, const N: usize>(
        &mut self,
        family: &Family<N>,
        samples: impl IntoIterator<Item = [Cow<'l, str>; N]>,
    ) -> fmt::Result {
        let mut metric = self.begin(family)?;
        for values in samples {
            metric.encode_info(&labels(family, values))?;
        }
        Ok(())
    }

    fn gauge<'l, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        family: &Family<N>,
        samples: impl IntoIterator<Item = ([Cow<'l, str>; N], V)>,
    ) -> fmt::Result {
        let mut metric = self.begin(family)?;
        for (values, value) in samples {
            let labels = labels(family, values);
            sample(&mut metric, &labels, |sample| sample.encode_gauge(&value))?;
        }
        Ok(())
    }

    fn counter<'l, const N: usize, V: EncodeCounterValue>(
        &mut self,
        family: &Family<N>,
        samples: impl IntoIterator<Item = ([Cow<'l, str>; N], V)>,
    ) -> fmt::Result {
        let mut metric = self.begin(family)?;
        for (values, value) in samples {
            let labels = labels(family, values);
            sample(&mut metric, &labels, |sample| {
                sample.encode_counter::<NoLabelSet, V, u64>(&value, None)
            })?;
        }
        Ok(())
    }

    fn histogram(
        &mut self,
        family: &Family<1>,
        samples: &BTreeMap<&'static str, Durations>,
    ) -> fmt::Result {
        let mut metric = self.begin(family)?;
        for (label, durations) in samples {
            let labels = labels(family, name(label));
            metric
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(
                    durations.sum,
                    durations.count,
                    &durations.buckets(),
                    None,
                )?;
        }
        Ok(())
    }
}

/// Writes a sample. One without labels would have empty braces as a member of a family.
fn sample<const N: usize>(
    metric: &mut MetricEncoder<'_>,
    labels: &[(&'static str, Cow<'_, str>); N],
    write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if N == 0 {
        write(metric)
    } else {
        write(&mut metric.encode_family(labels)?)
    }
}

/// The labels of a sample, with their names.
fn labels<'l, const N: usize>(
    family: &Family<N>,
    values: [Cow<'l, str>; N],
) -> [(&'static str, Cow<'l, str>); N] {
    let mut names = family.labels.into_iter();
    values.map(|value| (names.next().unwrap_or_default(), value))
}
