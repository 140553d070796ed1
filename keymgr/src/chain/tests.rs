use std::time::{Duration, SystemTime};

use ao_engine::crypto::MasterKey;
use proptest::prelude::*;

use super::*;

fn mkt(send_id: u8, recv_id: u8) -> Mkt {
    Mkt {
        send_id,
        recv_id,
        algorithm: "hmac-sha-1-96".parse().unwrap(),
        master_key: MasterKey::new(b"correct horse").unwrap(),
        include_options: true,
    }
}

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + second)
}

fn span(start: u64, end: u64) -> Lifetime {
    Lifetime::new(Some(at(start)), Some(at(end))).unwrap()
}

/// A key with both IDs `id`, sent and accepted for the same time.
fn key(id: u8, lifetime: Lifetime) -> Key {
    Key {
        send: lifetime,
        accept: lifetime,
        ..Key::always(mkt(id, id))
    }
}

fn rules(tolerance: u64) -> Rules {
    Rules {
        tolerance: Tolerance::Within(Duration::from_secs(tolerance)),
        ..Rules::default()
    }
}

fn chain(keys: Vec<Key>, rules: Rules) -> KeyChain {
    KeyChain::new("c", keys, rules).unwrap()
}

/// SendIDs wanted in a second, the preferred one first, and those of them that are retired.
fn ids(chain: &KeyChain, second: u64) -> (Vec<u8>, Vec<u8>) {
    let wanted = chain.at(at(second));
    let ids = wanted.keys.iter().map(|mkt| mkt.send_id).collect();
    (ids, wanted.retired)
}

#[test]
fn an_empty_chain_is_refused() {
    let refused = KeyChain::new("empty", Vec::new(), Rules::default());
    assert_eq!(refused.unwrap_err(), ChainError::Empty);
}

#[test]
fn the_first_repeated_id_is_named() {
    let refused = |ids: &[(u8, u8)]| {
        let keys = ids.iter().map(|&(send, recv)| Key::always(mkt(send, recv)));
        KeyChain::new("c", keys.collect(), Rules::default()).unwrap_err()
    };
    assert_eq!(
        refused(&[(1, 1), (2, 2), (1, 3)]),
        ChainError::DuplicateSendId {
            first: 0,
            second: 2,
            id: 1
        }
    );
    assert_eq!(
        refused(&[(1, 9), (2, 9)]),
        ChainError::DuplicateRecvId {
            first: 0,
            second: 1,
            id: 9
        }
    );
}

#[test]
fn send_and_recv_ids_may_cross() {
    chain(
        vec![Key::always(mkt(1, 2)), Key::always(mkt(2, 1))],
        Rules::default(),
    );
}

#[test]
fn secrets_never_show() {
    let chain = chain(vec![Key::always(mkt(1, 1))], Rules::default());
    let shown = format!("{chain:?} {:?}", chain.at(at(0)));
    assert!(
        !shown.contains("correct horse") && !shown.contains("99, 111, 114"),
        "{shown}"
    );
}

#[test]
fn without_lifetimes_nothing_changes_and_order_is_preference() {
    let chain = chain(
        vec![Key::always(mkt(7, 7)), Key::always(mkt(3, 3))],
        Rules::default(),
    );
    assert_eq!(ids(&chain, 0), (vec![7, 3], vec![]));
    let wanted = chain.at(at(0));
    assert_eq!((wanted.next_change, wanted.expired), (None, None));
    assert_eq!(chain.expires(), None);
    assert_eq!(chain.warning_due(at(0), None), None);
}

#[test]
fn a_change_of_keys_is_right_to_the_second() {
    let chain = chain(vec![key(1, span(0, 100)), key(2, span(90, 200))], rules(5));
    let cases = [
        (0, vec![1], vec![], 85),
        (84, vec![1], vec![], 85),
        // Accepted before it is sent.
        (85, vec![1, 2], vec![], 90),
        (89, vec![1, 2], vec![], 90),
        // The newest start is preferred.
        (90, vec![2, 1], vec![], 100),
        (99, vec![2, 1], vec![], 100),
        (100, vec![2, 1], vec![1], 105),
        (104, vec![2, 1], vec![1], 105),
        (105, vec![2], vec![], 200),
    ];
    for (second, keys, retired, change) in cases {
        assert_eq!(ids(&chain, second), (keys, retired), "{second}");
        assert_eq!(
            chain.at(at(second)).next_change,
            Some(at(change)),
            "{second}"
        );
    }
}

#[test]
fn before_the_first_start_the_peer_is_blocked() {
    let chain = chain(vec![key(1, span(50, 100))], rules(5));
    let wanted = chain.at(at(44));
    assert!(wanted.keys.is_empty() && wanted.expired.is_none());
    assert_eq!(wanted.next_change, Some(at(45)));
    // The far end's clock may be ahead.
    assert_eq!(ids(&chain, 45), (vec![1], vec![]));
}

#[test]
fn an_expired_chain_keeps_its_last_key() {
    let chain = chain(vec![key(1, span(0, 80)), key(2, span(50, 100))], rules(5));
    assert_eq!(chain.expires(), Some(at(100)));
    assert_eq!(chain.at(at(99)).expired, None);
    assert_eq!(chain.at(at(99)).next_change, Some(at(100)));
    for second in [100, 105, 1_000_000] {
        assert_eq!(ids(&chain, second), (vec![2], vec![]));
        let wanted = chain.at(at(second));
        assert_eq!(wanted.expired, Some(OnExpiry::Keep));
        assert_eq!(wanted.next_change, None);
    }
}

#[test]
fn an_expired_chain_closes_when_told_to() {
    let rules = Rules {
        on_expiry: OnExpiry::Close,
        ..rules(5)
    };
    let chain = chain(vec![key(1, span(0, 100))], rules);
    assert_eq!(ids(&chain, 99), (vec![1], vec![]));
    let wanted = chain.at(at(100));
    assert!(wanted.keys.is_empty());
    assert_eq!(wanted.expired, Some(OnExpiry::Close));
    assert_eq!(wanted.next_change, None);
}

#[test]
fn gaps_are_refused_unless_allowed() {
    let keys = || {
        vec![
            key(1, span(60, 80)),
            key(2, span(0, 50)),
            key(3, span(10, 20)),
        ]
    };
    let refused = KeyChain::new("c", keys(), rules(5)).unwrap_err();
    assert_eq!(
        refused,
        ChainError::Gap {
            before: 1,
            after: 0,
            from: at(50),
            until: at(60)
        }
    );
    let allowed = |on_expiry| {
        let rules = Rules {
            allow_gaps: true,
            on_expiry,
            ..rules(5)
        };
        chain(keys(), rules)
    };
    let keeping = allowed(OnExpiry::Keep);
    assert_eq!(ids(&keeping, 52), (vec![2], vec![]));
    assert_eq!(keeping.at(at(52)).expired, Some(OnExpiry::Keep));
    assert_eq!(ids(&keeping, 57), (vec![2, 1], vec![]));
    assert_eq!(ids(&keeping, 60), (vec![1, 2], vec![2]));
    assert_eq!(keeping.at(at(60)).expired, None);
    let closing = allowed(OnExpiry::Close);
    let wanted = closing.at(at(57));
    assert!(wanted.keys.is_empty());
    assert_eq!(wanted.next_change, Some(at(60)));
    assert_eq!(ids(&closing, 60).0, [1]);
}

#[test]
fn keys_that_touch_have_no_gap() {
    let touching = chain(vec![key(1, span(0, 50)), key(2, span(50, 99))], rules(0));
    assert_eq!(ids(&touching, 49), (vec![1], vec![]));
    assert_eq!(ids(&touching, 50), (vec![2], vec![]));
}

#[test]
fn a_key_is_accepted_as_long_as_it_is_sent() {
    let refused = |send, accept| {
        let key = Key {
            send,
            accept,
            ..Key::always(mkt(1, 1))
        };
        KeyChain::new("c", vec![key], rules(60)).err()
    };
    let error = Some(ChainError::SentUnaccepted { key: 0 });
    assert_eq!(refused(span(10, 20), span(10, 19)), error);
    assert_eq!(refused(span(10, 20), span(11, 20)), error);
    assert_eq!(refused(Lifetime::ALWAYS, span(10, 20)), error);
    assert_eq!(refused(span(10, 20), span(10, 20)), None);
    assert_eq!(refused(span(10, 20), Lifetime::ALWAYS), None);
}

#[test]
fn an_id_is_free_again_when_nobody_accepts_its_key() {
    let repeated = |start, tolerance| {
        let keys = vec![
            key(1, span(0, 100)),
            key(2, span(90, 300)),
            key(1, span(start, 400)),
        ];
        KeyChain::new("c", keys, rules(tolerance)).map(|chain| chain.keys().len())
    };
    let error = Err(ChainError::DuplicateSendId {
        first: 0,
        second: 2,
        id: 1,
    });
    assert_eq!(repeated(120, 10), Ok(3));
    assert_eq!(repeated(119, 10), error);
    assert_eq!(repeated(100, 0), Ok(3));
}

#[test]
fn what_is_accepted_for_ever_never_frees_its_id() {
    let forever = Rules {
        tolerance: Tolerance::Forever,
        ..Rules::default()
    };
    let keys = |second| vec![key(1, span(0, 50)), key(second, span(50, 99))];
    assert!(KeyChain::new("c", keys(1), forever).is_err());
    let chain = chain(keys(2), forever);
    assert_eq!(ids(&chain, 0), (vec![1, 2], vec![]));
    assert_eq!(ids(&chain, 70), (vec![2, 1], vec![1]));
}

#[test]
fn a_kept_key_does_not_free_its_id() {
    let rules = Rules {
        allow_gaps: true,
        ..rules(5)
    };
    let keys = |second| vec![key(1, span(0, 50)), key(second, span(500, 600))];
    assert!(KeyChain::new("c", keys(1), rules).is_err());
    chain(keys(2), rules);
}

#[test]
fn every_warning_is_due_once() {
    const DAY: u64 = 86_400;
    let chain = chain(vec![key(1, span(0, 100 * DAY))], rules(5));
    assert_eq!(chain.warning_due(at(70 * DAY - 1), None), None);
    assert_eq!(chain.warning_due(at(70 * DAY), None), Some(30));
    assert_eq!(chain.warning_due(at(93 * DAY - 1), Some(30)), None);
    assert_eq!(chain.warning_due(at(93 * DAY), Some(30)), Some(7));
    assert_eq!(chain.warning_due(at(99 * DAY), Some(7)), Some(1));
    assert_eq!(chain.warning_due(at(99 * DAY), Some(1)), None);
    // After a long stop the nearest one counts.
    assert_eq!(chain.warning_due(at(99 * DAY), None), Some(1));
    // That it has run out is another message.
    assert_eq!(chain.warning_due(at(100 * DAY), None), None);
    assert_eq!(chain.warning_due(at(101 * DAY), Some(1)), None);
}

/// Keys that follow one another, each starting before its predecessor ends, or after it.
fn rotations() -> impl Strategy<Value = (Vec<Key>, Rules)> {
    let key_of = (1_u64..200, -50_i64..60, 0_u64..20);
    let keys = prop::collection::vec(key_of, 1..8);
    (keys, 0_u64..60, any::<bool>()).prop_map(|(spans, tolerance, close)| {
        let mut start = 500;
        let mut keys = Vec::new();
        for (id, (length, overlap, margin)) in (0..).zip(spans) {
            let end = start + length;
            keys.push(Key {
                accept: span(start - margin, end + margin),
                ..key(id, span(start, end))
            });
            start = end.saturating_add_signed(-overlap).max(500);
        }
        let rules = Rules {
            allow_gaps: true,
            on_expiry: if close {
                OnExpiry::Close
            } else {
                OnExpiry::Keep
            },
            ..rules(tolerance)
        };
        (keys, rules)
    })
}

proptest! {
    #[test]
    fn a_chain_without_lifetimes_is_accepted_exactly_when_no_id_repeats(
        ids in prop::collection::vec((0_u8..12, 0_u8..12), 1..8)
    ) {
        let repeats = ids.iter().enumerate().any(|(index, &(send_id, recv_id))| {
            ids.iter().take(index).any(|&(s, r)| s == send_id || r == recv_id)
        });
        let keys = ids.iter().map(|&(send, recv)| Key::always(mkt(send, recv))).collect();
        prop_assert_eq!(KeyChain::new("c", keys, Rules::default()).is_err(), repeats);
    }

    #[test]
    fn between_start_and_end_there_is_a_key_to_send_with((keys, rules) in rotations()) {
        let starts: Vec<_> = keys.iter().map(|key| key.send).collect();
        let chain = chain(keys, rules);
        for second in 400..2000 {
            let wanted = chain.at(at(second));
            let nominal = starts.iter().any(|send| send.contains(at(second)));
            let begun = second >= 500;
            prop_assert_eq!(wanted.expired.is_some(), begun && !nominal);
            if nominal || (begun && rules.on_expiry == OnExpiry::Keep) {
                let first = wanted.keys.first().map(|mkt| mkt.send_id);
                prop_assert!(first.is_some_and(|id| !wanted.retired.contains(&id)), "{}", second);
            }
        }
    }

    /// What one end sends with is accepted by the other, though its clock is off.
    #[test]
    fn mirrored_chains_understand_each_other(
        (keys, rules) in rotations(),
        off in 0.0_f64..=1.0,
    ) {
        let Tolerance::Within(tolerance) = rules.tolerance else { unreachable!() };
        let off = tolerance.mul_f64(off).as_secs();
        let rules = Rules { on_expiry: OnExpiry::Keep, ..rules };
        let (here, there) = (chain(keys.clone(), rules), chain(keys, rules));
        for second in 500..2000 {
            let pair = [here.at(at(second)), there.at(at(second + off))];
            for (sender, receiver) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                let id = sender.keys.first().map(|mkt| mkt.send_id);
                let accepted = receiver.keys.iter().any(|mkt| Some(mkt.recv_id) == id);
                prop_assert!(accepted, "second {} off {}: {:?}", second, off, id);
            }
        }
    }

    #[test]
    fn nothing_changes_before_the_next_change((keys, rules) in rotations()) {
        let chain = chain(keys, rules);
        for second in 400..2000 {
            let wanted = chain.at(at(second));
            if wanted.next_change.is_none_or(|change| change > at(second + 1)) {
                prop_assert_eq!(ids(&chain, second), ids(&chain, second + 1));
                prop_assert_eq!(wanted.expired, chain.at(at(second + 1)).expired);
            }
        }
    }

    #[test]
    fn ids_are_unique_at_every_instant((mut keys, rules) in rotations(), ids in 1_u8..4) {
        for (position, key) in (0_u8..).zip(&mut keys) {
            let id = position % ids;
            key.mkt = Arc::new(mkt(id, id));
        }
        if let Ok(chain) = KeyChain::new("c", keys, rules) {
            for second in 400..2000 {
                let mut seen = [false; 256];
                for mkt in chain.at(at(second)).keys {
                    prop_assert!(!std::mem::replace(&mut seen[usize::from(mkt.send_id)], true));
                }
            }
        }
    }
}
