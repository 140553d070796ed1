//! What is seen, and how news and keys change it.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use grpc_api::v1::{self, PeerState, SessionState};

use super::super::events::Event;

/// News, or a key.
pub(super) enum Message {
    /// The sidecar answered.
    Sample(Box<Sample>),
    /// It did not.
    Lost(String),
    /// Something happened.
    Event(Event),
    /// A key was pressed.
    Key(Key),
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// To end.
    Quit,
    /// Sorts by another column.
    Sort,
    /// Stops what is seen, or lets it go on.
    Pause,
    /// Changes between peers and sessions.
    Switch,
    /// Scrolls up by so many lines.
    Up(usize),
    /// Scrolls down by so many lines.
    Down(usize),
}

/// The sidecar at one moment.
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) status: v1::GetStatusResponse,
    pub(super) sessions: Vec<v1::Session>,
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The configuration.
    Name,
    /// The state, the worst first.
    State,
    /// Refused segments a second.
    Refused,
    /// Good segments a second.
    Good,
}

impl Order {
    const ALL: [Self; 4] = [Self::Name, Self::State, Self::Refused, Self::Good];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Name => "configuration",
            Self::State => "state",
            Self::Refused => "refused",
            Self::Good => "good",
        }
    }

    fn next(self) -> Self {
        let position = Self::ALL.iter().position(|&order| order == self);
        let next = position.map_or(0, |position| (position + 1) % Self::ALL.len());
        Self::ALL[next]
    }
}

/// Segments a second; nothing where there is nothing to compare with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) good: Option<f64>,
    pub(super) refused: Option<f64>,
    pub(super) sent: Option<f64>,
}

#[derive(Clone, Copy)]
struct Counts {
    good: u64,
    refused: u64,
    sent: u64,
}

/// A peer or session as it is seen.
pub(super) struct Row {
    /// The peer's name.
    pub(super) peer: String,
    /// The peer's address, or both ends of the session.
    pub(super) ends: String,
    pub(super) state: &'static str,
    /// How bad the state is; higher is worse.
    badness: u8,
    /// Sessions of a peer, current and next key of a session.
    pub(super) detail: String,
    pub(super) datapath: String,
    pub(super) rates: Rates,
    pub(super) refused: u64,
}

/// What is seen.
pub(super) struct View {
    pub(super) sidecar: String,
    pub(super) status: Option<v1::GetStatusResponse>,
    pub(super) peers: Vec<Row>,
    pub(super) sessions: Vec<Row>,
    /// The last ones, the newest last.
    pub(super) events: VecDeque<Event>,
    /// Why the sidecar does not answer.
    pub(super) lost: Option<String>,
    pub(super) order: Order,
    pub(super) paused: bool,
    pub(super) of_sessions: bool,
    /// Rows above the first one seen.
    pub(super) scrolled: usize,
    before: Option<Before>,
    /// What came while it was paused.
    held: Vec<Event>,
    held_sample: Option<Box<Sample>>,
    ended: bool,
}

/// The counters of the last sample.
struct Before {
    at: Instant,
    peers: HashMap<String, Counts>,
    sessions: HashMap<String, Counts>,
}

/// Events that are kept to be seen.
const EVENTS: usize = 50;

impl View {
    pub(super) fn new(sidecar: String) -> Self {
        Self {
            sidecar,
            status: None,
            peers: Vec::new(),
            sessions: Vec::new(),
            events: VecDeque::new(),
            lost: None,
            order: Order::Name,
            paused: false,
            of_sessions: false,
            scrolled: 0,
            before: None,
            held: Vec::new(),
            held_sample: None,
            ended: false,
        }
    }

    /// Whether the user has seen enough.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// The rows of what is chosen.
    pub(super) fn rows(&self) -> &[Row] {
        match self.of_sessions {
            true => &self.sessions,
            false => &self.peers,
        }
    }

    pub(super) fn update(&mut self, message: Message) {
        match message {
            Message::Lost(reason) => self.lost = Some(reason),
            Message::Sample(sample) => {
                self.lost = None;
                match self.paused {
                    true => self.held_sample = Some(sample),
                    false => self.see(*sample),
                }
            }
            Message::Event(event) => {
                self.held.push(event);
                let superfluous = self.held.len().saturating_sub(EVENTS);
                self.held.drain(..superfluous);
                if !self.paused {
                    self.release_events();
                }
            }
            Message::Key(key) => self.press(key),
        }
    }

    fn press(&mut self, key: Key) {
        match key {
            Key::Quit => self.ended = true,
            Key::Pause if self.paused => {
                self.paused = false;
                self.release_events();
                if let Some(sample) = self.held_sample.take() {
                    self.see(*sample);
                }
            }
            Key::Pause => self.paused = true,
            Key::Sort => {
                self.order = self.order.next();
                self.scrolled = 0;
                self.sort();
            }
            Key::Switch => {
                self.of_sessions = !self.of_sessions;
                self.scrolled = 0;
            }
            Key::Up(lines) => self.scrolled = self.scrolled.saturating_sub(lines),
            Key::Down(lines) => {
                let last = self.rows().len().saturating_sub(1);
                self.scrolled = self.scrolled.saturating_add(lines).min(last);
            }
        }
    }

    fn release_events(&mut self) {
        self.events.extend(self.held.drain(..));
        while self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    fn see(&mut self, sample: Sample) {
        let Sample {
            at,
            status,
            sessions,
        } = sample;
        let before = self.before.take();
        let seconds = before
            .as_ref()
            .map(|before| at.saturating_duration_since(before.at).as_secs_f64());
        let rates = |now: Counts, then: Option<&Counts>| match (then, seconds) {
            (Some(then), Some(seconds)) if seconds > 0.0 => now.since(*then, seconds),
            _ => Rates::default(),
        };
        let mut after = Before {
            at,
            peers: HashMap::new(),
            sessions: HashMap::new(),
        };
        self.peers.clear();
        for peer in &status.peers {
            let counts = Counts {
                good: peer.segments_good,
                refused: peer.segments_dropped,
                sent: peer.segments_sent,
            };
            let then = before
                .as_ref()
                .and_then(|before| before.peers.get(&peer.name));
            let (state, badness) = of_peer(peer.state());
            self.peers.push(Row {
                peer: peer.name.clone(),
                ends: peer.address.clone(),
                state,
                badness,
                detail: peer.sessions.to_string(),
                datapath: peer.datapath.clone(),
                rates: rates(counts, then),
                refused: counts.refused,
            });
            after.peers.insert(peer.name.clone(), counts);
        }
        self.sessions.clear();
        for session in &sessions {
            let counts = Counts {
                good: session.segments_good,
                refused: session.segments_bad + session.segments_unsigned + session.key_not_found,
                sent: session.segments_sent,
            };
            let mut ends = format!("{} {}", session.local, session.remote);
            if !session.vrf.is_empty() {
                ends = format!("{ends} ({})", session.vrf);
            }
            let then = before
                .as_ref()
                .and_then(|before| before.sessions.get(&ends));
            let (state, badness) = of_session(session.state());
            self.sessions.push(Row {
                peer: session.peer.clone(),
                ends: ends.clone(),
                state,
                badness,
                detail: format!("{}/{}", session.current_key, session.rnext_key),
                datapath: session.datapath.clone(),
                rates: rates(counts, then),
                refused: counts.refused,
            });
            after.sessions.insert(ends, counts);
        }
        self.before = Some(after);
        self.status = Some(status);
        self.sort();
        self.scrolled = self.scrolled.min(self.rows().len().saturating_sub(1));
    }

    fn sort(&mut self) {
        let position: HashMap<&str, usize> = self
            .status
            .iter()
            .flat_map(|status| &status.peers)
            .enumerate()
            .map(|(position, peer)| (peer.name.as_str(), position))
            .collect();
        let order = self.order;
        // What is not known comes last.
        let rank = |rate: Option<f64>| rate.unwrap_or(-1.0);
        for rows in [&mut self.peers, &mut self.sessions] {
            rows.sort_by(|a, b| {
                let by_order = match order {
                    Order::Name => std::cmp::Ordering::Equal,
                    Order::State => b.badness.cmp(&a.badness),
                    Order::Refused => rank(b.rates.refused).total_cmp(&rank(a.rates.refused)),
                    Order::Good => rank(b.rates.good).total_cmp(&rank(a.rates.good)),
                };
                let place = |row: &Row| position.get(row.peer.as_str()).copied();
                by_order
                    .then_with(|| place(a).cmp(&place(b)))
                    .then_with(|| a.ends.cmp(&b.ends))
            });
        }
    }
}

impl Counts {
    /// What became of them in so many seconds. Counters that have begun anew tell nothing.
    fn since(self, then: Self, seconds: f64) -> Rates {
        let rate = |now: u64, then: u64| {
            let grown = now.checked_sub(then)?;
            Some(grown as f64 / seconds)
        };
        Rates {
            good: rate(self.good, then.good),
            refused: rate(self.refused, then.refused),
            sent: rate(self.sent, then.sent),
        }
    }
}

fn of_peer(state: PeerState) -> (&'static str, u8) {
    match state {
        PeerState::Blocked => ("blocked", 3),
        PeerState::Down => ("down", 2),
        PeerState::Unspecified => ("unknown", 1),
        PeerState::Established => ("established", 0),
    }
}

fn of_session(state: SessionState) -> (&'static str, u8) {
    match state {
        SessionState::Closing => ("closing", 4),
        SessionState::Restored => ("restored", 3),
        SessionState::Opening => ("opening", 2),
        SessionState::Unspecified => ("unknown", 1),
        SessionState::Established => ("established", 0),
    }
}
