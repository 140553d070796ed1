//! Network namespaces.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use nix::sched::{CloneFlags, setns};
use tokio::runtime::Runtime;

use crate::daemon::At;
use crate::process::{Process, output};
use crate::scratch::{prefix, serial};

/// A network namespace. Dropping it ends every process in it and removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with the loopback up, no duplicate address detection, and Reno as
    /// congestion control: the machine's default may be BBR, which hides losses, and cubic is not
    /// allowed in namespaces everywhere.
    ///
    /// # Panics
    /// When the machine does not let us.
    #[must_use]
    pub fn new(label: &str) -> Self {
        hire_janitor();
        let name = format!("{}{}-{label}", prefix(), serial());
        let mut add = Command::new("ip");
        add.args(["netns", "add", &name]);
        output(add).expect("add a namespace (root is needed)");
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace.sysctl("net.ipv6.conf.all.accept_dad", "0");
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0");
        namespace.sysctl("net.ipv6.conf.default.router_solicitations", "0");
        namespace.sysctl("net.ipv4.tcp_congestion_control", "reno");
        namespace
    }

    /// Its name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` on the namespace, arguments separated by blanks.
    ///
    /// # Panics
    /// When it fails.
    pub fn ip(&self, arguments: &str) -> String {
        let mut command = Command::new("ip");
        command
            .args(["-n", &self.name])
            .args(arguments.split_whitespace());
        output(command).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Sets a kernel parameter of the namespace.
    ///
    /// # Panics
    /// When it fails.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.run("sysctl", &["-q", "-w", &format!("{key}={value}")]);
    }

    /// A command that will run in the namespace.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a program in the namespace to its end and returns its output.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.try_run(program, arguments)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same.
    ///
    /// # Errors
    /// When it fails: command, status and output.
    pub fn try_run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command(program);
        command.args(arguments);
        output(command)
    }

    /// An asynchronous runtime: what its tasks open is of the namespace. What `block_on` itself
    /// opens is not, as it runs in the caller's thread.
    ///
    /// # Panics
    /// When the machine does not let us.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        let path = Path::new("/run/netns").join(&self.name);
        let file = File::open(path).expect("open the namespace");
        // A thread belongs to the namespace that the one that started it belonged to.
        let start = move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime")
        };
        thread::spawn(start).join().expect("the runtime's thread")
    }

    /// Loads firewall rules written in nft's language.
    ///
    /// # Panics
    /// When nft refuses them.
    pub fn nft(&self, rules: &str) {
        self.run("nft", &[rules]);
    }

    /// Starts a program that goes on running in the namespace.
    #[must_use]
    pub fn spawn<I: AsRef<std::ffi::OsStr>>(
        &self,
        program: impl AsRef<Path>,
        arguments: impl IntoIterator<Item = I>,
        log: &Path,
    ) -> Process {
        At::plain(self).spawn(program, arguments, log)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let mut script = Command::new("sh");
        script.args(["-c", REMOVE, "sh", &self.name]);
        if let Err(error) = output(script) {
            eprintln!("{error}");
        }
    }
}

const REMOVE: &str = r#"
for name; do
    ip netns pids "$name" | xargs -r kill -9 2>/dev/null
    ip netns del "$name"
done"#;

const JANITOR: &str = r#"
prefix=$1
cat >/dev/null
names=$(ip netns list | awk -v p="$prefix" 'index($1, p) == 1 { print $1 }')
for name in $names; do
    ip netns pids "$name" | xargs -r kill -9
    ip netns del "$name"
done
rm -rf "${TMPDIR:-/tmp}/$prefix"*"#;

/// Starts, once per process, a shell that waits for this process to end, in whatever way, and then
/// removes the namespaces and directories that carry its id.
pub(crate) fn hire_janitor() {
    use std::os::unix::process::CommandExt as _;
    static HIRED: OnceLock<Child> = OnceLock::new();
    HIRED.get_or_init(|| {
        Command::new("sh")
            .args(["-c", JANITOR, "sh", &prefix()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("start the janitor")
    });
}
