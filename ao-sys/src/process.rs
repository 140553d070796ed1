//! Other processes, by what /proc says of them, and becoming one's own background process.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setsid};

/// Reads memory of the process that thread `thread` belongs to, from `address` on. Returns how
/// many octets were read: fewer than the buffer holds when the memory ends before.
///
/// # Errors
/// ESRCH or `NotFound` (no such thread), EFAULT or EIO (no memory at the address), EPERM or EACCES
/// (the calling thread may not trace it).
pub fn read_memory(thread: u32, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let pid = i32::try_from(thread).map_err(|_| Errno::ESRCH)?;
    let base = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
    let len = buffer.len();
    let remote = [RemoteIoVec { base, len }];
    let local = &mut [IoSliceMut::new(buffer)];
    match process_vm_readv(Pid::from_raw(pid), local, &remote) {
        Ok(count) => Ok(count),
        // Kernels without CONFIG_CROSS_MEMORY_ATTACH, and sandboxes that forbid the call.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            File::open(format!("/proc/{thread}/mem"))?.read_at(buffer, address)
        }
        Err(error) => Err(error.into()),
    }
}

/// Process ID of the process that thread `thread` belongs to.
///
/// # Errors
/// `NotFound` when there is no such thread.
pub fn group_of(thread: u32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status"))?;
    field(&status, "Tgid:").ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Name of a process as the kernel keeps it, up to 15 octets; control characters are shown as
/// U+FFFD. `None` when there is no such process.
#[must_use]
pub fn name(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(printable(&name))
}

fn printable(name: &[u8]) -> String {
    let name = name.strip_suffix(b"\n").unwrap_or(name);
    let show = |character: char| match character.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => character,
    };
    String::from_utf8_lossy(name).chars().map(show).collect()
}

/// Who has a socket open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// Process ID.
    pub pid: u32,
    /// Its descriptor.
    pub fd: i32,
}

/// Finds a process that holds each socket, given by inode: first among the processes `first`, then
/// among all. Sockets that no process holds, or only one that may not be looked into, are missing
/// in the answer.
///
/// # Errors
/// When /proc cannot be listed.
pub fn holders(inodes: &HashSet<u32>, first: &[u32]) -> io::Result<HashMap<u32, Holder>> {
    let mut found = HashMap::new();
    let complete = |found: &HashMap<u32, Holder>| found.len() == inodes.len();
    for &pid in first {
        if complete(&found) {
            return Ok(found);
        }
        note_sockets(pid, inodes, &mut found);
    }
    if complete(&found) {
        return Ok(found);
    }
    for entry in fs::read_dir("/proc")? {
        if complete(&found) {
            break;
        }
        let name = entry?.file_name();
        match name.to_str().and_then(|name| name.parse().ok()) {
            Some(pid) if !first.contains(&pid) => note_sockets(pid, inodes, &mut found),
            _ => {}
        }
    }
    Ok(found)
}

/// A process may end while it is looked at: what cannot be read is not there.
fn note_sockets(pid: u32, inodes: &HashSet<u32>, found: &mut HashMap<u32, Holder>) {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return;
    };
    for descriptor in descriptors.flatten() {
        let Ok(target) = fs::read_link(descriptor.path()) else {
            continue;
        };
        let name = descriptor.file_name();
        let fd = name.to_str().and_then(|name| name.parse().ok());
        let inode = target.to_str().and_then(socket_inode);
        if let (Some(fd), Some(inode)) = (fd, inode)
            && inodes.contains(&inode)
        {
            found.entry(inode).or_insert(Holder { pid, fd });
        }
    }
}

fn socket_inode(target: &str) -> Option<u32> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// Inode of a process's network namespace, of the calling thread's for `None`: equal numbers mean
/// the same namespace.
///
/// # Errors
/// `NotFound` (no such process), `PermissionDenied` (it may not be looked into).
pub fn network_namespace(pid: Option<u32>) -> io::Result<u64> {
    let path = match pid {
        Some(pid) => format!("/proc/{pid}/ns/net"),
        None => "/proc/thread-self/ns/net".to_owned(),
    };
    fs::metadata(path).map(|file| file.ino())
}

/// Threads of this process.
///
/// # Errors
/// When /proc cannot be read.
pub(crate) fn threads() -> io::Result<u32> {
    let status = fs::read_to_string("/proc/self/status")?;
    field(&status, "Threads:").ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn field(status: &str, name: &str) -> Option<u32> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().parse().ok()
}

/// Which of the two processes [`detach`] returned in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that called.
    Parent,
    /// The new one.
    Detached,
}

/// Makes a process that is no child of this one, in a session of its own and not its leader, so
/// that it can never get a controlling terminal. Both go on from here, with copies of everything.
///
/// # Errors
/// `InvalidInput` when this process has more than one thread, since the copy would have only this
/// one and locks of the others for ever; else what fork or setsid answered.
pub fn detach() -> io::Result<Side> {
    if threads()? != 1 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a process with several threads cannot be split",
        ));
    }
    // SAFETY: this process has one thread, so the copy has all of it in a consistent state.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            let status = loop {
                match waitpid(child, None) {
                    Err(Errno::EINTR) => {}
                    other => break other?,
                }
            };
            match status {
                WaitStatus::Exited(_, 0) => Ok(Side::Parent),
                WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
                _ => Err(io::Error::other("the process in between was killed")),
            }
        }
        ForkResult::Child => {
            // SAFETY: as above.
            let forked = setsid().and_then(|_| unsafe { fork() });
            let status = match forked {
                Ok(ForkResult::Child) => return Ok(Side::Detached),
                Ok(ForkResult::Parent { .. }) => 0,
                Err(error) => error as i32,
            };
            // SAFETY: takes an integer and does not return; nothing of the caller is run twice.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Whether a program is a 64-bit one, by its ELF header; `None` when it is no ELF file, as a
/// script.
///
/// # Errors
/// When the file cannot be opened or read.
pub fn is_64_bit_program(path: &Path) -> io::Result<Option<bool>> {
    let mut head = Vec::new();
    File::open(path)?.take(5).read_to_end(&mut head)?;
    Ok(match head.as_slice() {
        [0x7f, b'E', b'L', b'F', class] => Some(*class == 2),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
