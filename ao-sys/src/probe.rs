//! What this kernel can do, found by trying.

use std::io;
use std::os::fd::AsFd;

use crate::socket;

/// linux/tcp.h, since 6.7.
const TCP_AO_INFO: libc::c_int = 40;

/// Whether this kernel's TCP knows TCP-AO. One that does drops segments whose option it has no
/// key for; one that does not ignores the option.
///
/// # Errors
/// When no TCP socket can be opened.
pub fn kernel_has_tcp_ao() -> io::Result<bool> {
    let socket = socket::open(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    // A kernel that knows the option complains about the socket or the structure instead.
    let answer = socket::get(socket.as_fd(), libc::IPPROTO_TCP, TCP_AO_INFO);
    Ok(!answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENOPROTOOPT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_setting_agree() {
        const TCP_AO_ADD_KEY: libc::c_int = 38;
        let socket = socket::open(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        // Far too short for a key: a kernel that knows the option says so.
        let error = socket::set(socket.as_fd(), libc::IPPROTO_TCP, TCP_AO_ADD_KEY, 0).unwrap_err();
        let known = error.raw_os_error() != Some(libc::ENOPROTOOPT);
        assert_eq!(kernel_has_tcp_ao().unwrap(), known);
    }
}
