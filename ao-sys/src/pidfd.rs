//! Processes by descriptor, and copies of their descriptors.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A process (never a single thread), even if its process ID is used again.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl From<OwnedFd> for PidFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<PidFd> for OwnedFd {
    fn from(pidfd: PidFd) -> Self {
        pidfd.0
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PidFd {
    /// The process with ID `pid`.
    ///
    /// # Errors
    /// ESRCH when there is none, EINVAL when it is the ID of a thread that leads no group.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: takes two integers and touches no memory of ours.
        own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).map(Self)
    }

    /// A copy of the process's descriptor `fd`, closed on exec.
    ///
    /// # Errors
    /// ESRCH when the process has ended, EBADF when it has no such descriptor, EPERM when the
    /// calling thread may not trace it (CAP_SYS_PTRACE, Yama), ENOSYS before Linux 5.6.
    pub fn get(&self, fd: i32) -> io::Result<OwnedFd> {
        // SAFETY: takes three integers and touches no memory of ours.
        own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), fd, 0) })
    }

    /// Its process ID, as this process's /proc numbers it.
    ///
    /// # Errors
    /// ESRCH when it has ended, EINVAL when it is in a PID namespace that cannot be seen from
    /// here, `InvalidData` when the descriptor is no pidfd.
    pub fn pid(&self) -> io::Result<u32> {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        pid_of(&fs::read_to_string(path)?)
    }
}

fn pid_of(information: &str) -> io::Result<u32> {
    let line = |line: &str| line.strip_prefix("Pid:").map(|pid| pid.trim().to_owned());
    match information.lines().find_map(line).as_deref() {
        Some("-1") => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        Some("0") => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        Some(pid) => pid.parse().map_err(|_| io::ErrorKind::InvalidData.into()),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "not a pidfd")),
    }
}

/// The descriptor that a system call returned.
pub(crate) fn own(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel just handed us this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn own_descriptor_is_copied() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = PidFd::open(std::process::id()).unwrap();
        assert_eq!(this.pid().unwrap(), std::process::id());
        let copy = TcpListener::from(this.get(listener.as_raw_fd()).unwrap());
        assert_eq!(copy.local_addr().unwrap(), listener.local_addr().unwrap());
        drop(listener);
        TcpStream::connect(copy.local_addr().unwrap()).unwrap();
        let error = this.get(1 << 20).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn child_is_named_until_it_has_ended() {
        let mut command = Command::new("/bin/cat");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        assert_eq!(pidfd.pid().unwrap(), child.id());
        let end = pidfd.get(1).unwrap();
        drop(end);
        drop(child.stdin.take());
        let mut rest = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
        child.wait().unwrap();
        let error = pidfd.pid().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        let error = pidfd.get(1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn other_descriptors_and_missing_processes_are_refused() {
        let file = PidFd::from(OwnedFd::from(fs::File::open("/dev/null").unwrap()));
        assert_eq!(file.pid().unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(file.get(0).is_err());
        let error = PidFd::open(u32::MAX >> 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        let error = pid_of("Pid:\t0\n").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
