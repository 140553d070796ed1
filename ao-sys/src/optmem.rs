//! The limit of memory for a socket's options, which keys count against: net.core.optmem_max of
//! the calling thread's network namespace (of the machine before Linux 6.8).

use std::fs;
use std::io;

const PATH: &str = "/proc/sys/net/core/optmem_max";

/// The limit, in octets.
///
/// # Errors
/// `NotFound` in a network namespace other than the first of a kernel before 6.8.
pub fn read() -> io::Result<u64> {
    let text = fs::read_to_string(PATH)?;
    text.trim().parse().map_err(io::Error::other)
}

/// Raises the limit to `octets`; one that is as high already stays. The kernel takes less than
/// 2^31. It holds for all sockets at once, those that exist too.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN or with a read-only /proc/sys, `InvalidInput` for a
/// number that the kernel does not take.
pub fn raise(octets: u64) -> io::Result<()> {
    if read()? >= octets {
        return Ok(());
    }
    fs::write(PATH, octets.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_read_and_never_lowered() {
        let limit = read().unwrap();
        assert!(limit > 0);
        raise(limit / 2).unwrap();
        raise(limit).unwrap();
        assert_eq!(read().unwrap(), limit);
        assert!(raise(u64::MAX).is_err());
    }
}
