use std::time::{Duration, Instant};

use grpc_api::v1;
use insta::assert_snapshot;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::output::Paint;
use super::draw::draw;
use super::view::{Key, Message, Order, Sample, View};
use crate::cli::aoctl::When;

fn peer(name: &str, state: v1::PeerState, good: u64, refused: u64) -> v1::Peer {
    v1::Peer {
        name: name.into(),
        address: "192.0.2.2".into(),
        sessions: u32::from(state == v1::PeerState::Established),
        state: state.into(),
        segments_good: good,
        segments_sent: good / 2,
        segments_dropped: refused,
        datapath: "userspace".into(),
        ..v1::Peer::default()
    }
}

fn session(peer: &str, port: u16, good: u64) -> v1::Session {
    v1::Session {
        peer: peer.into(),
        local: "192.0.2.1:179".into(),
        remote: format!("192.0.2.2:{port}"),
        vrf: if port == 40_002 { "blue" } else { "" }.into(),
        state: v1::SessionState::Established.into(),
        current_key: 1,
        rnext_key: 2,
        segments_good: good,
        datapath: "userspace".into(),
        ..v1::Session::default()
    }
}

/// Three peers, `seconds` after the start.
fn sample(start: Instant, seconds: u64) -> Message {
    let status = v1::GetStatusResponse {
        version: "1.2.3".into(),
        uptime_seconds: 3600 + seconds,
        datapath: "userspace".into(),
        queues: vec![v1::Queue {
            waiting: 3,
            overruns: 2,
            dropped: 5,
            ..v1::Queue::default()
        }],
        peers: vec![
            peer(
                "transit",
                v1::PeerState::Established,
                1000 + 40 * seconds,
                7,
            ),
            peer("ix", v1::PeerState::Down, 0, 3 * seconds),
            peer("new\u{1b}[2J", v1::PeerState::Blocked, 0, 0),
        ],
        alarms: vec![v1::Alarm {
            peer: "ix".into(),
            text: "peer unreachable: connection refused".into(),
        }],
        ..v1::GetStatusResponse::default()
    };
    Message::Sample(Box::new(Sample {
        at: start + Duration::from_secs(seconds),
        status,
        sessions: vec![
            session("transit", 40_001, 600 + 30 * seconds),
            session("transit", 40_002, 400 + 200_000 * seconds),
        ],
    }))
}

fn event(sequence: u64, severity: v1::Severity, message: &str) -> Message {
    Message::Event(
        v1::Event {
            sequence,
            time: Some(prost_types::Timestamp {
                seconds: 1_798_156_800,
                nanos: 0,
            }),
            peer: "transit".into(),
            severity: severity.into(),
            message: message.into(),
            ..v1::Event::default()
        }
        .into(),
    )
}

fn shown(view: &View, when: When) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(118, 18)).unwrap();
    let paint = Paint::new(when, &std::io::stdout());
    terminal.draw(|frame| draw(view, paint, frame)).unwrap();
    terminal
}

/// The page without blanks at the ends of lines.
fn page(view: &View) -> String {
    let terminal = shown(view, When::Never);
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(buffer.area.width));
    let text = lines.map(|cells| {
        cells
            .iter()
            .map(ratatui::buffer::Cell::symbol)
            .collect::<String>()
    });
    text.map(|line| format!("{}\n", line.trim_end())).collect()
}

fn seen() -> (View, Instant) {
    let start = Instant::now();
    let mut view = View::new("/run/api.sock".into());
    view.update(sample(start, 0));
    view.update(sample(start, 2));
    view.update(event(1, v1::Severity::Info, "generation 5 is proven"));
    view.update(event(2, v1::Severity::Alarm, "no answer\nfor 15 minutes"));
    (view, start)
}

#[test]
fn peers_are_seen_with_rates_alarms_and_events() {
    assert_snapshot!(page(&seen().0), @r"
ao-sidecar 1.2.3  up 1h 0m 2s  userspace
3 peers: 1 established, 1 down, 1 blocked  sessions 2  good/s 40  refused/s 3.0  sent/s 20  queued 3, lost 7
ALARM ix: peer unreachable: connection refused
 peers 1-3 of 3, by configuration ────────────────────────────────────────────────────────────────────────────────────
PEER    ADDRESS                                        STATE       SESSIONS GOOD/S REFUSED/S SENT/S  REFUSED DATAPATH
transit 192.0.2.2                                      established        1     40       0.0     20        7 userspace
ix      192.0.2.2                                      down               0    0.0       3.0    0.0        6 userspace
new�[2J 192.0.2.2                                      blocked            0    0.0       0.0    0.0        0 userspace



 events ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
2026-12-25T00:00:00.000Z transit: generation 5 is proven
2026-12-25T00:00:00.000Z transit: no answer�for 15 minutes



q quit   arrows scroll   Tab peers/sessions   s sort   p pause
");
}

#[test]
fn sessions_are_seen_instead() {
    let (mut view, _) = seen();
    view.update(Message::Key(Key::Switch));
    assert_snapshot!(page(&view), @r"
ao-sidecar 1.2.3  up 1h 0m 2s  userspace
3 peers: 1 established, 1 down, 1 blocked  sessions 2  good/s 40  refused/s 3.0  sent/s 20  queued 3, lost 7
ALARM ix: peer unreachable: connection refused
 sessions 1-2 of 2, by configuration ─────────────────────────────────────────────────────────────────────────────────
PEER    LOCAL REMOTE                                   STATE           KEYS GOOD/S REFUSED/S SENT/S  REFUSED DATAPATH
transit 192.0.2.1:179 192.0.2.2:40001                  established      1/2     30       0.0    0.0        0 userspace
transit 192.0.2.1:179 192.0.2.2:40002 (blue)           established      1/2   200k       0.0    0.0        0 userspace




 events ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
2026-12-25T00:00:00.000Z transit: generation 5 is proven
2026-12-25T00:00:00.000Z transit: no answer�for 15 minutes



q quit   arrows scroll   Tab peers/sessions   s sort   p pause
");
}

#[test]
fn before_the_first_answer_the_reason_is_seen() {
    let mut view = View::new("/run/api.sock".into());
    view.update(Message::Lost(
        "cannot reach ao-sidecar on /run/api.sock".into(),
    ));
    assert_snapshot!(page(&view), @r"
ao-sidecar on /run/api.sock  GONE, trying again: cannot reach ao-sidecar on /run/api.sock

 no peers ────────────────────────────────────────────────────────────────────────────────────────────────────────────
PEER ADDRESS                                           STATE       SESSIONS GOOD/S REFUSED/S SENT/S  REFUSED DATAPATH







 no events ───────────────────────────────────────────────────────────────────────────────────────────────────────────





q quit   arrows scroll   Tab peers/sessions   s sort   p pause
");
}

#[test]
fn a_sidecar_that_goes_and_comes_back_is_seen() {
    let (mut view, start) = seen();
    view.update(Message::Lost("the sidecar is stopping".into()));
    let gone = page(&view);
    assert!(
        gone.contains("GONE, trying again: the sidecar is stopping"),
        "{gone}"
    );
    assert!(gone.contains("transit"), "what was known stays: {gone}");
    // It started again: its counters begin anew and tell nothing until the next look.
    let mut again = match sample(start, 3) {
        Message::Sample(sample) => sample,
        _ => unreachable!(),
    };
    again.status.peers[0].segments_good = 5;
    view.update(Message::Sample(again));
    assert!(!page(&view).contains("GONE"));
    assert_eq!(view.peers[0].rates.good, None);
    assert_eq!(view.peers[1].rates.refused, Some(3.0));
}

#[test]
fn pause_holds_everything_and_lets_it_go() {
    let (mut view, start) = seen();
    view.update(Message::Key(Key::Pause));
    let before = page(&view);
    assert!(before.contains("PAUSED"));
    view.update(sample(start, 4));
    view.update(event(3, v1::Severity::Warning, "later"));
    assert_eq!(page(&view), before);
    view.update(Message::Key(Key::Pause));
    let after = page(&view);
    assert!(
        after.contains("later") && !after.contains("PAUSED"),
        "{after}"
    );
    assert!(after.contains("up 1h 0m 4s"), "{after}");
}

#[test]
fn rows_are_sorted_by_what_is_asked() {
    let (mut view, _) = seen();
    let names = |view: &View| -> Vec<char> {
        view.peers
            .iter()
            .filter_map(|peer| peer.peer.chars().next())
            .collect()
    };
    let mut orders = Vec::new();
    for _ in 0..4 {
        view.update(Message::Key(Key::Sort));
        orders.push((view.order, names(&view)));
    }
    assert_eq!(
        orders,
        [
            (Order::State, vec!['n', 'i', 't']),
            (Order::Refused, vec!['i', 't', 'n']),
            (Order::Good, vec!['t', 'i', 'n']),
            (Order::Name, vec!['t', 'i', 'n']),
        ]
    );
}

#[test]
fn scrolling_ends_at_the_last_row() {
    let (mut view, start) = seen();
    view.update(Message::Key(Key::Down(1)));
    assert!(
        page(&view).contains(" peers 2-3 of 3, by configuration "),
        "{}",
        page(&view)
    );
    view.update(Message::Key(Key::Down(usize::MAX)));
    assert_eq!(view.scrolled, 2);
    let mut fewer = match sample(start, 3) {
        Message::Sample(sample) => sample,
        _ => unreachable!(),
    };
    fewer.status.peers.truncate(1);
    view.update(Message::Sample(fewer));
    assert_eq!(view.scrolled, 0);
    view.update(Message::Key(Key::Up(usize::MAX)));
    assert_eq!(view.scrolled, 0);
}

#[test]
fn only_the_last_events_are_kept() {
    let mut view = View::new("/run/api.sock".into());
    for sequence in 0..5000 {
        view.update(event(
            sequence,
            v1::Severity::Info,
            &format!("number {sequence}"),
        ));
    }
    assert_eq!(view.events.len(), 50);
    assert!(page(&view).contains("number 4999"));
}

#[test]
fn colours_are_used_where_wanted_only() {
    let coloured = |when| {
        let terminal = shown(&seen().0, when);
        let cells = terminal.backend().buffer().content();
        cells
            .iter()
            .any(|cell| cell.fg != ratatui::style::Color::Reset)
    };
    assert!(coloured(When::Always));
    assert!(!coloured(When::Never));
}

#[test]
fn small_terminals_do_no_harm() {
    let (view, _) = seen();
    let paint = Paint::new(When::Never, &std::io::stdout());
    for (columns, lines) in [(1, 1), (10, 3), (200, 2), (3, 60)] {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        terminal.draw(|frame| draw(&view, paint, frame)).unwrap();
    }
}

#[test]
fn many_alarms_leave_room_for_the_peers() {
    let (mut view, start) = seen();
    let mut many = match sample(start, 3) {
        Message::Sample(sample) => sample,
        _ => unreachable!(),
    };
    many.status.alarms = vec![many.status.alarms[0].clone(); 10];
    view.update(Message::Sample(many));
    let page = page(&view);
    assert_eq!(page.matches("ALARM").count(), 2, "{page}");
    assert!(page.contains("and 8 more alarms: aoctl status"), "{page}");
}
