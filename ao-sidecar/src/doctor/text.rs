//! How findings say things.

use std::time::{Duration, SystemTime};

use super::facts::{Facts, KeyFacts, Keys, PeerFacts};

/// `1 SYN`, `3 SYNs`.
pub(super) fn count(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

/// A span in its largest unit that makes sense: `3 s`, `5 min`, `2 h`, `4 d`.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A moment, for people: UTC to the second.
pub(super) fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(
        |_| "a time beyond the calendar".to_owned(),
        |time| format!("{time:.0}"),
    )
}

/// How the far end's entry of a key has to be.
pub(super) fn mirrored(key: &KeyFacts) -> String {
    format!(
        "SendID {}, RecvID {}, {}, TCP options {}, the same secret",
        key.recv_id,
        key.send_id,
        key.algorithm,
        covered(key.include_options),
    )
}

/// Whether the MAC covers them.
pub(super) fn covered(include_options: bool) -> &'static str {
    match include_options {
        true => "covered by the MAC",
        false => "not covered by the MAC",
    }
}

/// How to change a setting of a peer here.
pub(super) fn set_peer(facts: &Facts, peer: &PeerFacts, setting: &str, value: &str) -> String {
    let name = &peer.name;
    if peer.made_by_api {
        let option = setting.replace('_', "-");
        return format!("`aoctl peers update {name} --{option} {value}`");
    }
    let quoted = match value.parse::<u64>() {
        Ok(_) => value.to_owned(),
        Err(_) => format!("{value:?}"),
    };
    format!(
        "{setting} = {quoted} under [[peer]] {name:?} in {}, then `aoctl config reload`",
        facts.config_file.display()
    )
}

/// Where a key of a peer is written here.
pub(super) fn key_here(facts: &Facts, peer: &PeerFacts, key: &KeyFacts) -> String {
    let KeyFacts {
        send_id, recv_id, ..
    } = key;
    let Keys::Chain(chain) = &peer.keys else {
        return format!("the agreed key with KeyID {recv_id}");
    };
    let place = match key.made_by_api {
        true => "made by API".to_owned(),
        false => facts.config_file.display().to_string(),
    };
    format!(
        "the key with send_id = {send_id}, recv_id = {recv_id} of key chain {:?} ({place})",
        chain.name
    )
}

/// How a change of a key is taken over here.
pub(super) fn take_over(key: &KeyFacts) -> &'static str {
    match key.made_by_api {
        true => "by `aoctl keys change`",
        false => "then `aoctl config reload`",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_words() {
        assert_eq!(count(1, "SYN"), "1 SYN");
        assert_eq!(count(0, "SYN"), "0 SYNs");
        let told = |seconds| span(Duration::from_secs(seconds));
        assert_eq!(told(119), "119 s");
        assert_eq!(told(120), "2 min");
        assert_eq!(told(7200), "2 h");
        assert_eq!(told(172_800), "2 d");
        assert_eq!(time(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00Z");
    }
}
