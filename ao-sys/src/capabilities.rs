//! What the calling thread may do.

use std::fs;

/// Bit numbers of linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;

/// Whether CAP_NET_ADMIN is in the calling thread's effective set.
#[must_use]
pub fn have_net_admin() -> bool {
    have(CAP_NET_ADMIN)
}

/// Whether CAP_NET_RAW is in the calling thread's effective set.
#[must_use]
pub fn have_net_raw() -> bool {
    have(CAP_NET_RAW)
}

/// Whether CAP_SYS_PTRACE is in the calling thread's effective set: it lets a program take copies
/// of another's descriptors and read its memory.
#[must_use]
pub fn have_sys_ptrace() -> bool {
    have(CAP_SYS_PTRACE)
}

/// Whether CAP_SYS_ADMIN is in the calling thread's effective set: it lets a program install a
/// seccomp filter without giving up set-user-ID programs.
#[must_use]
pub fn have_sys_admin() -> bool {
    have(CAP_SYS_ADMIN)
}

fn have(capability: u32) -> bool {
    fs::read_to_string("/proc/thread-self/status")
        .ok()
        .and_then(|status| effective(&status))
        .is_some_and(|set| set & (1 << capability) != 0)
}

fn effective(status: &str) -> Option<u64> {
    let digits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_set_is_read_from_status() {
        let status = "Name:\tcat\nCapPrm:\t0000000000000000\nCapEff:\t0000000000003000\n";
        assert_eq!(effective(status), Some(0x3000));
        assert_eq!(effective("Name:\tcat\n"), None);
        assert_eq!(effective("CapEff:\tzz\n"), None);
    }
}
