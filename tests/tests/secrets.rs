//! Secrets that operators give to the sidecar do not come out of it: not in what its programs print,
//! not in logs, metrics or state files, not in what other processes see of it.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use ao_tests::netns::Namespace;
use ao_tests::progress;
use ao_tests::settings::SIDECAR_START;
use ao_tests::sidecar::{Sidecar, program};
use ao_tests::wait;
use nix::sys::signal::Signal;

/// Given in the configuration itself.
const INLINE: &str = "inline-secret-Yc8vKq3";
/// The same, as hexadecimal digits.
const HEXADECIMAL: &str = "hex-secret-0Tn5bXw";
/// In a file that the configuration names.
const IN_FILE: &str = "file-secret-hP27dLm";
/// By the API, from a file and from standard input.
const BY_API: [&str; 4] = [
    "api-secret-Zr61sQu",
    "api-secret-Gk90eVt",
    "api-secret-Wd42yNo",
    "api-secret-Jb78aXi",
];
/// Refused by the sidecar, in ways whose messages might repeat it.
const REFUSED: &str = "refused-secret-Mf35cHz";

/// Something that was seen, and where.
type Seen = (String, Vec<u8>);

#[test]
fn secrets_come_out_nowhere() {
    let namespace = Namespace::new("secrets");
    let mut sidecar = Sidecar::bare(&namespace, "userspace");
    let mut seen = Vec::new();
    let secret_file = sidecar.config_file().with_file_name("in.key");
    write_private(&secret_file, IN_FILE);
    write_private(
        &sidecar.config_file(),
        &configuration("secret_file = \"in.key\""),
    );
    sidecar.launch(&[]);
    sidecar.wait_ready();

    change_keys(&sidecar, &mut seen);
    ask_everything(&sidecar, &mut seen);
    refuse_everything(&mut sidecar, &mut seen);
    seen.push(("metrics".to_owned(), scrape(&namespace)));
    what_others_see(&mut sidecar, &mut seen);
    // Once more from what it has kept, and then what it leaves behind.
    sidecar.stop();
    sidecar.restart();
    ask_everything(&sidecar, &mut seen);
    seen.push(("log".to_owned(), sidecar.process().log().into_bytes()));
    sidecar.stop();
    let left: usize = files(&sidecar.state_dir(), &mut seen);
    assert!(left >= 3, "only {left} state files");

    let needles = needles();
    let octets: usize = seen.iter().map(|(_, octets)| octets.len()).sum();
    progress!(
        "{octets} octets from {} places, {} forms of secrets",
        seen.len(),
        needles.len()
    );
    for (place, octets) in &seen {
        for (what, needle) in &needles {
            assert!(!contains(octets, needle), "{place} has {what}");
        }
    }
}

/// Finds them where they are: the search is not blind.
#[test]
fn the_search_finds_each_form() {
    let needles = needles();
    for (what, needle) in &needles {
        let haystack = [b"before ", &needle[..], b" after"].concat();
        assert!(contains(&haystack, needle), "{what}");
        assert!(!contains(&haystack[..needle.len()], needle), "{what}");
    }
}

fn configuration(secret: &str) -> String {
    let hexadecimal = hex(HEXADECIMAL.as_bytes());
    format!(
        r#"datapath = "userspace"
[log]
level = "trace"
[metrics]
listen = "127.0.0.1:9179"
[[key_chain]]
name = "inline"
[[key_chain.key]]
send_id = 1
recv_id = 1
algorithm = "hmac-sha-1-96"
secret = "{INLINE}"
[[key_chain.key]]
send_id = 2
recv_id = 2
algorithm = "aes-128-cmac-96"
secret_hex = "{hexadecimal}"
[[key_chain]]
name = "file"
[[key_chain.key]]
send_id = 3
recv_id = 3
algorithm = "hmac-sha-256-128"
{secret}
[[peer]]
name = "one"
address = "127.0.0.2"
key_chain = "inline"
[[peer]]
name = "two"
address = "127.0.0.3"
key_chain = "file"
"#
    )
}

/// What an operator does with secrets, by files and by standard input.
fn change_keys(sidecar: &Sidecar, seen: &mut Vec<Seen>) {
    let file = sidecar.config_file().with_file_name("by-api.key");
    write_private(&file, BY_API[0]);
    let file = file.to_str().expect("a path").to_owned();
    let key = ["--send-id", "7", "--recv-id", "7"];
    let algorithm = ["--algorithm", "hmac-sha-1-96"];
    let mut done = |words: &[&str], input: &str| {
        let (success, output) = aoctl(sidecar, words, input);
        let shown = String::from_utf8_lossy(&output).into_owned();
        assert!(success, "aoctl {words:?}: {shown}");
        seen.push((format!("aoctl {words:?}"), output));
    };
    let words = [
        &["chains", "create", "api"],
        &key[..],
        &algorithm,
        &["--secret-file", &file],
    ];
    done(&words.concat(), "");
    done(
        &[
            "peers",
            "create",
            "three",
            "--peer-address",
            "127.0.0.4",
            "--key-chain",
            "api",
        ],
        "",
    );
    let other = ["--send-id", "8", "--recv-id", "8"];
    let input = ["--secret-file", "-"];
    done(
        &[&["keys", "add", "api"], &other[..], &algorithm, &input].concat(),
        BY_API[1],
    );
    done(
        &[&["keys", "add", "inline"], &other[..], &algorithm, &input].concat(),
        BY_API[2],
    );
    let change = [&["keys", "change", "api", "--json"], &other[..], &input].concat();
    done(&change, BY_API[3]);
    done(&[&["keys", "delete", "api"], &key[..]].concat(), "");
}

/// All that can be asked, both ways.
fn ask_everything(sidecar: &Sidecar, seen: &mut Vec<Seen>) {
    let questions: [&[&str]; 16] = [
        &["status"],
        &["peers"],
        &["chains"],
        &["keys", "list"],
        &["keys", "list", "one"],
        &["sessions"],
        &["counters"],
        &["rollover", "status"],
        &["events"],
        &["config", "show"],
        &["config", "check"],
        &["config", "diff"],
        &["config", "reload"],
        &["identity"],
        &["doctor", "--listen", "0"],
        &["doctor", "three", "--listen", "0"],
    ];
    for words in questions {
        for words in [words.to_vec(), [words, &["--json"]].concat()] {
            let (_, output) = aoctl(sidecar, &words, "");
            // Without key changes there are no events.
            assert!(
                !output.is_empty() || words[0] == "events",
                "aoctl {words:?} says nothing"
            );
            seen.push((format!("aoctl {words:?}"), output));
        }
    }
}

/// What is refused, with a secret at hand.
fn refuse_everything(sidecar: &mut Sidecar, seen: &mut Vec<Seen>) {
    let mut refused = |words: &[&str], input: &str, sidecar: &Sidecar| {
        let (success, output) = aoctl(sidecar, words, input);
        let shown = String::from_utf8_lossy(&output).into_owned();
        assert!(!success, "aoctl {words:?} is not refused: {shown}");
        seen.push((format!("aoctl {words:?}"), output));
    };
    let input = ["--secret-file", "-", "--algorithm", "hmac-sha-1-96"];
    let ids = ["--send-id", "1", "--recv-id", "1"];
    for chain in ["inline", "nowhere"] {
        refused(
            &[&["keys", "add", chain], &ids[..], &input].concat(),
            REFUSED,
            sidecar,
        );
    }
    let much = REFUSED.repeat(10);
    refused(
        &[&["keys", "add", "api"], &ids[..], &input].concat(),
        &much,
        sidecar,
    );
    refused(
        &[&["chains", "create", "file"], &ids[..], &input].concat(),
        REFUSED,
        sidecar,
    );
    for wrong in wrong_configurations() {
        refused(&["config", "check", "-"], &wrong, sidecar);
        write_private(&sidecar.config_file(), &wrong);
        refused(&["config", "reload"], "", sidecar);
        refused(&["config", "diff"], "", sidecar);
    }
    let stays = |log: String| log.matches("the running configuration stays").count();
    let before = stays(sidecar.process().log());
    sidecar.process().signal(Signal::SIGHUP);
    wait::until("the refused reload", SIDECAR_START, || {
        stays(sidecar.process().log()) > before
    });
    for wrong in wrong_configurations() {
        write_private(&sidecar.config_file(), &wrong);
        let file = sidecar.config_file();
        let (success, output) = run("ao-sidecar", [OsStr::new("check"), file.as_os_str()], "");
        assert!(!success, "ao-sidecar check takes {wrong}");
        seen.push(("ao-sidecar check".to_owned(), output));
    }
    write_private(
        &sidecar.config_file(),
        &configuration("secret_file = \"in.key\""),
    );
}

fn wrong_configurations() -> Vec<String> {
    let right = configuration("secret_file = \"in.key\"");
    vec![
        configuration(&format!("secret = \"{REFUSED}\"\nsecret_file = \"in.key\"")),
        configuration(&format!("secret_hex = \"{REFUSED}\"")),
        configuration(&format!("secret = \"{}\"", REFUSED.repeat(10))),
        configuration(&format!("secret = {REFUSED}")),
        configuration(&format!("secret = \"{REFUSED}")),
        configuration(&format!("sceret = \"{REFUSED}\"")),
        format!("{right}secret = \"{REFUSED}\"\n"),
    ]
}

fn scrape(namespace: &Namespace) -> Vec<u8> {
    let runtime = namespace.runtime();
    let page = runtime.spawn(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect("127.0.0.1:9179").await?;
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut page = Vec::new();
        stream.read_to_end(&mut page).await?;
        std::io::Result::Ok(page)
    });
    let page = runtime.block_on(page).expect("a task").expect("metrics");
    assert!(
        contains(&page, b"ao_sidecar_"),
        "{}",
        String::from_utf8_lossy(&page)
    );
    page
}

/// What any process of the same user sees of the running one.
fn what_others_see(sidecar: &mut Sidecar, seen: &mut Vec<Seen>) {
    let process = format!("/proc/{}", sidecar.process().id());
    for file in ["cmdline", "environ", "status", "maps"] {
        let path = format!("{process}/{file}");
        let octets = fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        seen.push((path, octets));
    }
    let limits = fs::read_to_string(format!("{process}/limits")).expect("its limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core
        .expect("the limit of core dumps")
        .split_whitespace()
        .collect();
    assert_eq!(core[4..6], ["0", "0"], "it may leave a core dump");
}

/// Takes in all files of a folder; returns how many.
fn files(folder: &Path, seen: &mut Vec<Seen>) -> usize {
    let entries = fs::read_dir(folder).expect("the state folder");
    let mut count = 0;
    for entry in entries {
        let path = entry.expect("a name").path();
        if path.is_dir() {
            count += files(&path, seen);
        } else {
            let octets = fs::read(&path).expect("a state file");
            seen.push((path.display().to_string(), octets));
            count += 1;
        }
    }
    count
}

/// The secrets, as they are and as people and programs write octets.
fn needles() -> Vec<(String, Vec<u8>)> {
    let secrets = [INLINE, HEXADECIMAL, IN_FILE, REFUSED]
        .into_iter()
        .chain(BY_API);
    let forms = |secret: &str| {
        let octets = secret.as_bytes();
        let list: Vec<String> = octets.iter().map(u8::to_string).collect();
        [
            octets.to_vec(),
            hex(octets).into_bytes(),
            hex(octets).to_uppercase().into_bytes(),
            base64(octets).into_bytes(),
            list.join(", ").into_bytes(),
        ]
        .map(|form| {
            (
                format!("{secret} as {:?}", String::from_utf8_lossy(&form)),
                form,
            )
        })
    };
    secrets.flat_map(forms).collect()
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// All but the last digits, which depend on what follows.
fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = octets.chunks_exact(3).flat_map(|three| {
        let bits = three
            .iter()
            .fold(0_usize, |bits, &octet| bits << 8 | usize::from(octet));
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[bits >> shift & 63]))
    });
    digits.collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

/// Runs `aoctl WORDS…` with `input`; whether it succeeded, and all that it printed.
fn aoctl(sidecar: &Sidecar, words: &[&str], input: &str) -> (bool, Vec<u8>) {
    let socket = sidecar.socket();
    let socket = [OsStr::new("--socket"), socket.as_os_str()];
    run(
        "aoctl",
        socket.into_iter().chain(words.iter().map(OsStr::new)),
        input,
    )
}

fn run<'w>(name: &str, words: impl IntoIterator<Item = &'w OsStr>, input: &str) -> (bool, Vec<u8>) {
    let mut child = Command::new(program(name))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start a program");
    let mut pipe = child.stdin.take().expect("its input");
    // One that refuses before it reads may have closed it.
    let _ = pipe.write_all(input.as_bytes());
    drop(pipe);
    let mut output = Vec::new();
    let mut stdout = child.stdout.take().expect("its output");
    stdout.read_to_end(&mut output).expect("read its output");
    let mut stderr = child.stderr.take().expect("its errors");
    stderr.read_to_end(&mut output).expect("read its errors");
    (child.wait().expect("its end").success(), output)
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
