use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;

use serde_json::Value;

use super::*;
use crate::small_disk::SmallDisk;

fn lines(log: &AuditLog) -> Vec<Value> {
    let text = fs::read_to_string(log.path()).unwrap();
    assert!(text.ends_with('\n'), "half a line: {text:?}");
    let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}"));
    text.lines().map(line).collect()
}

#[test]
fn a_change_has_a_line_before_and_one_after() {
    let folder = tempfile::tempdir().unwrap();
    let log = AuditLog::new(folder.path());
    let entry = log
        .begin("user 0 (root)", "admin", "create peer \"x\"")
        .unwrap();
    let [begun] = &lines(&log)[..] else {
        panic!("one line")
    };
    assert_eq!(begun["outcome"], "begun");
    assert_eq!(begun["who"], "user 0 (root)");
    assert_eq!(begun["role"], "admin");
    assert_eq!(begun["what"], "create peer \"x\"");
    assert!(begun["time"].as_str().unwrap().parse::<Timestamp>().is_ok());
    assert!(begun.get("detail").is_none());
    entry.done(Ok("peer x is protected"));
    log.begin("a", "operator", "reload")
        .unwrap()
        .done(Err("no room"));
    let all = lines(&log);
    let outcomes: Vec<_> = all.iter().map(|line| &line["outcome"]).collect();
    assert_eq!(outcomes, ["begun", "done", "begun", "failed"]);
    assert_eq!(all[0]["id"], all[1]["id"]);
    assert_eq!(all[2]["id"], all[3]["id"]);
    assert_ne!(all[0]["id"], all[2]["id"]);
    assert_eq!(all[1]["detail"], "peer x is protected");
    assert_eq!(all[3]["detail"], "no room");
    let mode = fs::metadata(log.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn nothing_that_is_said_ends_a_line_or_moves_a_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let log = AuditLog::new(folder.path());
    let who = "a\nb\r\u{1b}[2J\u{9b}2J\u{7f}\u{202e}\u{2028}\"}\\";
    log.begin(who, "admin", "\0").unwrap().done(Ok("\n"));
    let [begun, done] = &lines(&log)[..] else {
        panic!("two lines")
    };
    assert_eq!((&begun["who"], &done["who"]), (&who.into(), &who.into()));
    let text = fs::read_to_string(log.path()).unwrap();
    let odd = |c: &char| (c.is_control() && *c != '\n') || !c.is_ascii();
    assert_eq!(text.chars().find(odd), None);
}

#[test]
fn long_texts_are_cut() {
    let folder = tempfile::tempdir().unwrap();
    let log = AuditLog::new(folder.path());
    let _entry = log.begin(&"é".repeat(1 << 20), "admin", "é").unwrap();
    let all = lines(&log);
    assert_eq!(all[0]["who"].as_str().unwrap(), "é".repeat(2048));
    assert_eq!(all[0]["what"], "é");
}

#[test]
fn lines_of_many_threads_stay_whole() {
    let folder = tempfile::tempdir().unwrap();
    let log = AuditLog::new(folder.path());
    thread::scope(|scope| {
        for worker in 0..8 {
            let log = &log;
            scope.spawn(move || {
                for change in 0..8 {
                    let what = format!("{worker} {change}");
                    log.begin("somebody", "admin", &what).unwrap().done(Ok(""));
                }
            });
        }
    });
    let all = lines(&log);
    assert_eq!(all.len(), 128);
    for line in all.iter().filter(|line| line["outcome"] == "done") {
        let begun = |other: &&Value| other["id"] == line["id"] && other["outcome"] == "begun";
        let begun = all.iter().find(begun).unwrap();
        assert_eq!(begun["what"], line["what"]);
    }
}

#[test]
fn a_full_disk_refuses_the_change_and_leaves_no_half_line() {
    let disk = SmallDisk::new(64);
    let log = AuditLog::new(disk.path());
    log.begin("first", "admin", "x").unwrap().done(Ok(""));
    let entry = log.begin("begun before", "admin", "x").unwrap();
    disk.fill();
    // The rest of a page may still be had, so several lines are tried.
    let refused = (0..64).find_map(|_| log.begin("late", "admin", &"x".repeat(1000)).err());
    let refused = refused.unwrap().to_string();
    assert!(
        refused.contains("audit.log cannot be written: No space left"),
        "{refused}"
    );
    assert_eq!(log.failing().as_deref(), Some(&*refused));
    assert_eq!(log.failures(), 1);
    let before = lines(&log);
    entry.done(Ok(&"x".repeat(4096)));
    assert_eq!(log.failures(), 2);
    assert_eq!(
        lines(&log),
        before,
        "the outcome left nothing, not even a part"
    );
    disk.free();
    log.begin("later", "admin", "x").unwrap().done(Ok(""));
    assert_eq!(log.failing(), None);
    assert_eq!(lines(&log).len(), before.len() + 2);
}

#[test]
fn what_a_crash_has_cut_off_garbles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let log = AuditLog::new(folder.path());
    log.begin("a", "admin", "x").unwrap().done(Ok(""));
    let mut text = fs::read_to_string(log.path()).unwrap();
    text.push_str("{\"time\":\"2026");
    fs::write(log.path(), &text).unwrap();
    fs::set_permissions(log.path(), Permissions::from_mode(0o600)).unwrap();
    log.begin("b", "admin", "x").unwrap().done(Ok(""));
    let after = fs::read_to_string(log.path()).unwrap();
    let fresh = after
        .strip_prefix(&text)
        .unwrap()
        .strip_prefix('\n')
        .unwrap();
    assert_eq!(fresh.lines().count(), 2);
    for line in fresh.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["who"], "b");
    }
}

#[test]
fn what_is_not_a_private_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let log = AuditLog::new(folder.path());
    let refusal = || log.begin("a", "admin", "x").unwrap_err().to_string();

    let elsewhere = folder.path().join("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    symlink(&elsewhere, log.path()).unwrap();
    assert!(refusal().contains("symbolic link"), "{}", refusal());
    assert_eq!(fs::read(&elsewhere).unwrap(), b"");
    fs::remove_file(log.path()).unwrap();

    nix::unistd::mkfifo(
        log.path(),
        nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR,
    )
    .unwrap();
    assert!(refusal().contains("not a regular file"), "{}", refusal());
    fs::remove_file(log.path()).unwrap();

    fs::write(log.path(), "").unwrap();
    fs::set_permissions(log.path(), Permissions::from_mode(0o620)).unwrap();
    assert!(refusal().contains("mode 0620"), "{}", refusal());
    // As logrotate may make it for a group that reads it.
    fs::set_permissions(log.path(), Permissions::from_mode(0o640)).unwrap();
    let _entry = log.begin("a", "admin", "x").unwrap();
    fs::remove_file(log.path()).unwrap();

    fs::create_dir(log.path()).unwrap();
    assert!(!refusal().is_empty());
}

#[test]
fn a_file_that_was_moved_away_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let log = AuditLog::new(folder.path());
    let entry = log.begin("a", "admin", "x").unwrap();
    fs::rename(log.path(), folder.path().join("audit.log.1")).unwrap();
    entry.done(Ok(""));
    assert_eq!(lines(&log).len(), 1);
}
