//! What is left of a secret in the memory of an `aoctl` that has used it. Reading the memory of a
//! process that cannot be dumped needs root.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use grpc_api::operator::administration::Changed;

use crate::fixture::snapshot;
use crate::server::{Server, program};

/// Nothing else in memory looks like it.
const SECRET: &str = "Qx7#vT2!mZ9$kL4&pW6*rY1^nB8(";

/// The forms in which a secret might be found.
fn forms() -> [Vec<u8>; 3] {
    let hex = |upper| -> String {
        let digits = SECRET.bytes().map(|octet| match upper {
            true => format!("{octet:02X}"),
            false => format!("{octet:02x}"),
        });
        digits.collect()
    };
    [SECRET.into(), hex(false).into(), hex(true).into()]
}

/// Ends the process with this value.
struct Blocked(Child);

impl Blocked {
    /// Waits until it is stuck in writing its answer to a pipe that nobody reads.
    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let call = format!("/proc/{}/syscall", self.0.id());
        // The number of write(2) on x86-64 and elsewhere, and its first argument.
        let writes = |call: &str| call.starts_with("1 0x1 ") || call.starts_with("64 0x1 ");
        loop {
            let call = fs::read_to_string(&call).unwrap();
            if writes(&call) {
                return;
            }
            assert!(Instant::now() < deadline, "it does not write: {call}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How often each form is in its memory.
    fn count(&self, forms: &[Vec<u8>]) -> Vec<usize> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.0.id())).unwrap();
        let memory = File::open(format!("/proc/{}/mem", self.0.id())).unwrap();
        let mut found = vec![0; forms.len()];
        let mut read = 0;
        for map in maps.lines() {
            let mut fields = map.split_whitespace();
            let (start, end) = fields.next().unwrap().split_once('-').unwrap();
            let address = |digits| u64::from_str_radix(digits, 16).unwrap();
            let (start, end) = (address(start), address(end));
            let mut octets = vec![0; usize::try_from(end - start).unwrap()];
            if !fields.next().unwrap().starts_with('r')
                || memory.read_exact_at(&mut octets, start).is_err()
            {
                // A guard page, or what the kernel shows of itself.
                continue;
            }
            read += octets.len();
            for (form, found) in forms.iter().zip(&mut found) {
                *found += octets
                    .windows(form.len())
                    .filter(|window| window == form)
                    .count();
            }
        }
        assert!(read > 1 << 20, "only {read} octets were read");
        found
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Adds a key by this command line, and looks into the process while it tells of it.
fn nothing_is_left(secret_file: &str, input: Option<&str>) {
    let server = Server::start(Some(snapshot()));
    // More than fits into a pipe.
    *server.administration.changed.lock().unwrap() = Changed {
        warnings: vec!["doubtful ".repeat(50_000)],
        ..Changed::default()
    };
    let mut aoctl = program()
        .arg("--socket")
        .arg(server.socket())
        .args(["keys", "add", "transit", "--send-id", "5", "--recv-id", "6"])
        .args([
            "--algorithm",
            "aes-128-cmac-96",
            "--secret-file",
            secret_file,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut stdin = aoctl.stdin.take().unwrap();
    if let Some(input) = input {
        stdin.write_all(input.as_bytes()).unwrap();
    }
    drop(stdin);
    let aoctl = Blocked(aoctl);
    aoctl.wait();
    assert!(server.administration.last().contains(SECRET), "it was sent");
    assert_eq!(aoctl.count(&forms()), [0, 0, 0]);
    // Nothing would be found either if nothing were looked at.
    let known = aoctl.count(&["doubtful doubtful".into()]);
    assert!(known[0] > 1000, "{known:?}");
}

#[test]
fn no_secret_of_a_file_is_left_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    fs::write(&file, SECRET).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    nothing_is_left(file.to_str().unwrap(), None);
}

#[test]
fn no_secret_of_standard_input_is_left_in_memory() {
    nothing_is_left("-", Some(&format!("{SECRET}\n")));
}
