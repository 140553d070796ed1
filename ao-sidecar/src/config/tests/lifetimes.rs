//! Key chains with lifetimes.

use insta::assert_snapshot;
use keymgr::chain::{OnExpiry, Rules};
use keymgr::lifetime::{Lifetime, Tolerance};

use super::*;

/// A chain with these lines after its name, and keys with these lines after their IDs, which are
/// 1, 2, …; then a peer. The chain's lines begin in line 3; each key takes 5 lines and its own.
fn chain(lines: &str, keys: &[&str]) -> String {
    let mut text = format!("[[key_chain]]\nname = \"transit\"\n{lines}\n");
    for (id, key) in (1..).zip(keys) {
        text.push_str(&format!(
            "[[key_chain.key]]\nsend_id = {id}\nrecv_id = {id}\nalgorithm = \"hmac-sha-1-96\"\n\
             secret = \"hunter2\"\n{key}\n"
        ));
    }
    text + PEER
}

fn one(lines: &str) -> String {
    chain("", &[lines])
}

fn instant(text: &str) -> Option<SystemTime> {
    Some(text.parse::<jiff::Timestamp>().unwrap().into())
}

fn read(lines: &str) -> (Lifetime, Lifetime) {
    let config = accepted(&one(lines));
    let key = &config.chains[0].keys.keys()[0];
    (key.send, key.accept)
}

fn span(start: &str, end: &str) -> Lifetime {
    Lifetime::new(instant(start), instant(end)).unwrap()
}

#[test]
fn lifetimes_are_read_in_every_form() {
    let december = span("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z");
    let both = (december, december);
    for lines in [
        "lifetime = { start = 2026-12-01T00:00:00Z, end = 2027-01-01T00:00:00Z }",
        "lifetime = { start = 2026-12-01 00:00:00z, duration = \"31d\" }",
        "lifetime = { start = \"2026-12-01T01:00:00+01:00\", duration = \"30days 24h\" }",
        "send_lifetime = { start = 2026-11-30T19:00:00-05:00, end = 2027-01-01T00:00:00Z }",
        "[key_chain.key.lifetime]\nstart = 2026-12-01T00:00:00Z\nend = 2027-01-01T00:00:00.000Z",
    ] {
        assert_eq!(read(lines), both, "{lines}");
    }
    assert_eq!(read(""), (Lifetime::ALWAYS, Lifetime::ALWAYS));
    assert_eq!(
        read("lifetime = \"always\""),
        (Lifetime::ALWAYS, Lifetime::ALWAYS)
    );
    let lines = "send_lifetime = { start = 2026-12-01T00:00:00Z, duration = \"31d\" }\n\
                 accept_lifetime = \"always\"";
    assert_eq!(read(lines), (december, Lifetime::ALWAYS));
    let from = Lifetime::new(instant("2026-12-01T00:00:00Z"), None).unwrap();
    assert_eq!(
        read("lifetime = { start = 2026-12-01T00:00:00Z }"),
        (from, from)
    );
    let until = Lifetime::new(None, instant("2026-12-01T00:00:00Z")).unwrap();
    assert_eq!(
        read("lifetime = { end = 2026-12-01T00:00:00Z }"),
        (until, until)
    );
}

#[test]
fn rules_are_read() {
    let rules = |lines: &str| accepted(&chain(lines, &[""])).chains[0].keys.rules();
    assert_eq!(rules(""), Rules::default());
    let given = rules("accept_tolerance = \"90s\"\nallow_gaps = true\non_expiry = \"close\"");
    let expected = Rules {
        tolerance: Tolerance::Within(Duration::from_secs(90)),
        allow_gaps: true,
        on_expiry: OnExpiry::Close,
    };
    assert_eq!(given, expected);
    let tolerance = |text: &str| rules(&format!("accept_tolerance = {text:?}")).tolerance;
    assert_eq!(tolerance("forever"), Tolerance::Forever);
    assert_eq!(tolerance("0s"), Tolerance::Within(Duration::ZERO));

    let wrong = "accept_tolerance = \"5 parsecs\"\nallow_gaps = \"no\"\non_expiry = \"open\"";
    assert_snapshot!(refused(&chain(wrong, &[""])), @r#"
/etc/ao.toml:3:20: "5 parsecs" is no duration; write one like "90s", "5m", "24h" or "31d"
/etc/ao.toml:4:14: `allow_gaps` is of type string; write true or false
/etc/ao.toml:5:13: unknown on_expiry "open"; write one of `keep`, `close`
"#);
}

#[test]
fn lifetimes_that_say_nothing_or_too_much_are_refused() {
    let start = "start = 2026-12-01T00:00:00Z";
    let all: Vec<String> = [
        "lifetime = \"never\"",
        "lifetime = 5",
        "lifetime = {}",
        "lifetime = { begin = 2026-12-01T00:00:00Z }",
        "lifetime = { duration = \"31d\" }",
        &format!("lifetime = {{ {start}, end = 2026-12-02T00:00:00Z, duration = \"1d\" }}"),
        &format!("lifetime = {{ {start}, end = 2026-12-01T00:00:00Z }}"),
        &format!("lifetime = {{ {start}, duration = \"0s\" }}"),
        &format!("lifetime = {{ {start}, duration = \"a month\" }}"),
        &format!("lifetime = {{ {start}, duration = \"9000years\" }}"),
        &format!("lifetime = {{ {start} }}\naccept_lifetime = \"always\""),
        &format!("accept_lifetime = {{ {start} }}"),
        &format!("send_lifetime = \"always\"\naccept_lifetime = {{ {start} }}"),
    ]
    .into_iter()
    .map(|lines| refused(&one(lines)))
    .collect();
    assert_snapshot!(all.join("\n"), @r#"
/etc/ao.toml:9:12: "never" is no lifetime; write "always" or { start = …, end = … }
/etc/ao.toml:9:12: `lifetime` is of type integer; write "always" or { start = …, end = … }
/etc/ao.toml:9:12: the lifetime has neither `start` nor `end`; add one, or write "always"
/etc/ao.toml:9:12: the lifetime has neither `start` nor `end`; add one, or write "always"
/etc/ao.toml:9:14: unknown key `begin` in a lifetime; write one of `start`, `end`, `duration`
/etc/ao.toml:9:25: the lifetime has a `duration` and no `start`; add it
/etc/ao.toml:9:83: the lifetime has `end` and `duration`; write one of them
/etc/ao.toml:9:50: the lifetime is empty: it ends before it has begun; write a later `end`
/etc/ao.toml:9:55: "0s" is no duration; write one like "90s", "5m", "24h" or "31d"
/etc/ao.toml:9:55: "a month" is no duration; write one like "90s", "5m", "24h" or "31d"
/etc/ao.toml:9:55: `duration` is too long; leave it away for a lifetime without end
/etc/ao.toml:10:19: the key has `lifetime` and `accept_lifetime`; write one of them
/etc/ao.toml:9:19: the key has no `send_lifetime`, so it is sent for ever; add it, or write `lifetime` for both
/etc/ao.toml:10:19: key chain "transit" is refused: a key is sent when it is not accepted; write an `accept_lifetime` that covers `send_lifetime`
"#);
}

#[test]
fn times_without_a_zone_are_refused_with_the_way_out() {
    let all: Vec<String> = [
        "2026-12-01T00:00:00",
        "2026-12-01",
        "12:00:00",
        "\"2026-12-01T00:00:00\"",
        "\"tomorrow\"",
        "1",
    ]
    .into_iter()
    .map(|start| refused(&one(&format!("lifetime = {{ start = {start} }}"))))
    .collect();
    assert_snapshot!(all.join("\n"), @r#"
/etc/ao.toml:9:22: "2026-12-01T00:00:00" has no time zone, and could be read differently at either end; write it with one, like 2026-12-01T00:00:00Z or 2026-12-01T01:00:00+01:00
/etc/ao.toml:9:22: "2026-12-01" has no time zone, and could be read differently at either end; write it with one, like 2026-12-01T00:00:00Z or 2026-12-01T01:00:00+01:00
/etc/ao.toml:9:22: "12:00:00" is no date-time; write one like 2026-12-01T00:00:00Z
/etc/ao.toml:9:22: "2026-12-01T00:00:00" has no time zone, and could be read differently at either end; write it with one, like 2026-12-01T00:00:00Z or 2026-12-01T01:00:00+01:00
/etc/ao.toml:9:22: "tomorrow" is no date-time; write one like 2026-12-01T00:00:00Z
/etc/ao.toml:9:22: `start` is of type integer; write a date-time like 2026-12-01T00:00:00Z
"#);
}

const JUNE: &str = "lifetime = { start = 2026-06-01T00:00:00Z, end = 2026-07-01T00:00:00Z }";
const JULY: &str = "lifetime = { start = 2026-07-01T00:00:00Z, end = 2026-08-01T00:00:00Z }";
const LATER: &str = "lifetime = { start = 2026-09-01T00:00:00Z, duration = \"30d\" }";

#[test]
fn gaps_are_refused_unless_allowed() {
    accepted(&chain("", &[JUNE, JULY]));
    let gap = [LATER, JUNE];
    assert_snapshot!(refused(&chain("", &gap)), @r#"/etc/ao.toml:9:12: key chain "transit" is refused: no key is sent from 2026-07-01T00:00:00Z, when the one in line 15 ends, until 2026-09-01T00:00:00Z, when this one starts; let them overlap, or write allow_gaps = true"#);
    accepted(&chain("allow_gaps = true", &gap));
}

#[test]
fn an_id_may_be_used_again_when_its_key_is_gone() {
    let again = |last: &str| {
        let text = chain("", &[JUNE, JULY, last]);
        text.replace("send_id = 3", "send_id = 1")
    };
    accepted(&again(
        "lifetime = { start = 2026-07-01T00:10:00Z, duration = \"90d\" }",
    ));
    assert_snapshot!(refused(&again(
        "lifetime = { start = 2026-07-01T00:09:59Z, duration = \"90d\" }",
    )), @r#"/etc/ao.toml:17:11: key chain "transit" is refused: two keys have send_id 1; the other is in line 5; write an ID that the chain does not have, or lifetimes that are at least twice `accept_tolerance` apart"#);
}

#[test]
fn peers_get_the_keys_of_the_moment() {
    let config = accepted(&chain("", &[JULY, JUNE]));
    let spec = &config.peers[0].spec;
    let ids: Vec<u8> = spec.keys.iter().map(|mkt| mkt.send_id).collect();
    assert_eq!(ids, [2]);
    assert_eq!(spec.algorithms, [Algorithm::HmacSha1_96]);
    let chain = config.peers[0].keys.chain().unwrap();
    let same = Arc::ptr_eq(&spec.keys[0], &chain.at(now()).keys[0]);
    assert!(same, "a key is the same MKT each time");
}

#[test]
fn chains_without_a_key_for_now_are_warned_about() {
    let warnings = |lines: &str, keys: &[&str]| -> String {
        let warnings = accepted(&chain(lines, keys)).warnings;
        warnings
            .iter()
            .map(|warning| format!("{warning}\n"))
            .collect()
    };
    let past = "lifetime = { end = 2026-05-31T00:00:00Z }";
    let close = "on_expiry = \"close\"";
    let gaps = format!("{close}\nallow_gaps = true");
    let all = [
        warnings("", &[JUNE]),
        warnings("", &[past]),
        warnings(close, &[past]),
        warnings("", &[JULY]),
        warnings(&gaps, &[past, JULY]),
        warnings("allow_gaps = true", &[past, JULY]),
    ];
    assert_snapshot!(all.join("---\n"), @r#"
---
2:8: key chain "transit" ran out at 2026-05-31T00:00:00Z: its last key stays in use; add a key
---
2:8: key chain "transit" ran out at 2026-05-31T00:00:00Z: its peers are blocked; add a key
---
2:8: key chain "transit" has not begun: its peers are blocked until 2026-06-30T23:55:00Z
---
2:8: key chain "transit" is in a gap: its peers are blocked until 2026-07-01T00:00:00Z
---
"#);
}

#[test]
fn chains_with_lifetimes_are_summed_up() {
    let summary = |lines: &str, keys: &[&str]| {
        let lines = accepted(&chain(lines, keys)).chain_summaries(now());
        lines.join("\n")
    };
    assert_eq!(summary("", &[""]), "");
    let past = "lifetime = { end = 2026-05-31T00:00:00Z }";
    let all = [
        summary("", &[JUNE, JULY]),
        summary("", &[JUNE]),
        summary("on_expiry = \"close\"", &[JUNE]),
        summary("", &["", JULY]),
        summary("", &[past]),
        summary("", &[JULY]),
        summary("on_expiry = \"close\"", &[past]),
        summary("allow_gaps = true", &[past, JULY]),
    ];
    assert_snapshot!(all.join("\n"), @r#"
key chain "transit": sends with ID 1, from 2026-07-01T00:00:00Z sends with ID 2; runs out at 2026-08-01T00:00:00Z
key chain "transit": sends with ID 1, from 2026-07-01T00:00:00Z still sends with ID 1; runs out at 2026-07-01T00:00:00Z
key chain "transit": sends with ID 1, from 2026-07-01T00:00:00Z blocked; runs out at 2026-07-01T00:00:00Z
key chain "transit": sends with ID 1, from 2026-07-01T00:00:00Z sends with ID 2; never runs out
key chain "transit": still sends with ID 1; ran out at 2026-05-31T00:00:00Z
key chain "transit": blocked, from 2026-06-30T23:55:00Z sends with ID 1; runs out at 2026-08-01T00:00:00Z
key chain "transit": blocked; ran out at 2026-05-31T00:00:00Z
key chain "transit": still sends with ID 1, from 2026-07-01T00:00:00Z sends with ID 2; runs out at 2026-08-01T00:00:00Z
"#);
}
