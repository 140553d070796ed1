use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use super::*;
use crate::test_support::{join_forked, run_forked, start_forked};
use crate::{pidfd::PidFd, socket};

fn open(protocol: i32) -> io::Result<OwnedFd> {
    socket::open(libc::AF_INET, libc::SOCK_STREAM, protocol)
}

fn connect(to: &OwnedFd, port: u16) -> io::Result<()> {
    let address = socket::KernelAddress::new(Ipv4Addr::LOCALHOST.into(), port, 0);
    let (pointer, length) = address.as_raw();
    // SAFETY: pointer and length describe `address`.
    socket::check(unsafe { libc::connect(to.as_raw_fd(), pointer, length) })
}

/// Runs a function under the filter in a forked process and returns that process and, taken out
/// of it, the listener.
fn under_filter(function: impl FnOnce() -> io::Result<()>) -> (u32, Listener) {
    let (from, to) = io::pipe().unwrap();
    let (copied, tell_copied) = io::pipe().unwrap();
    let child = start_forked(move || {
        let listener = install(Options::default())?;
        assert_eq!(listener.waits_killable(), Some(true));
        (&to).write_all(&listener.as_fd().as_raw_fd().to_ne_bytes())?;
        io::Read::read_exact(&mut &copied, &mut [0])?;
        let result = function();
        // Not before: a closed listener answers ENOSYS.
        drop(listener);
        result
    });
    let mut number = [0; 4];
    io::Read::read_exact(&mut &from, &mut number).unwrap();
    let child_fd = PidFd::open(child).unwrap();
    let listener = child_fd.get(i32::from_ne_bytes(number)).unwrap();
    (&tell_copied).write_all(b"x").unwrap();
    (child, Listener::from(listener))
}

fn next(listener: &Listener) -> Notification {
    let mut poll = libc::pollfd {
        fd: listener.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, as the count says.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 10_000) };
    assert_eq!(ready, 1);
    assert_eq!(poll.revents, libc::POLLIN);
    listener.receive().unwrap().unwrap()
}

#[test]
fn connect_waits_goes_on_or_is_refused() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let (child, listener) = under_filter(move || {
        let first = connect(&open(libc::IPPROTO_TCP)?, port).unwrap_err();
        assert_eq!(first.raw_os_error(), Some(libc::EHOSTUNREACH));
        connect(&open(libc::IPPROTO_TCP)?, port)
    });
    let call = next(&listener);
    assert_eq!(
        (call.thread, call.call, call.args[2]),
        (child, Call::Connect, 16)
    );
    let mut address = [0; 16];
    let read = process::read_memory(call.thread, call.args[1], &mut address).unwrap();
    assert_eq!(read, 16);
    assert_eq!(
        address[2..8],
        [&port.to_be_bytes()[..], &[127, 0, 0, 1]].concat()
    );
    assert!(listener.is_valid(call.id));
    assert!(listener.refuse(call.id, 0).is_err());
    assert!(listener.refuse(call.id, libc::EHOSTUNREACH).unwrap());
    assert!(!listener.is_valid(call.id));
    assert!(!listener.proceed(call.id).unwrap());
    assert!(!listener.refuse(call.id, libc::EPERM).unwrap());
    let call = next(&listener);
    assert_eq!(call.call, Call::Connect);
    assert!(listener.proceed(call.id).unwrap());
    join_forked(child).unwrap();
    server.accept().unwrap();
}

#[test]
fn listen_waits() {
    let (child, listener) = under_filter(|| {
        let socket = open(0)?;
        // SAFETY: takes two integers.
        socket::check(unsafe { libc::listen(socket.as_raw_fd(), 7) })
    });
    let call = next(&listener);
    assert_eq!((call.call, call.args[1]), (Call::Listen, 7));
    assert!(listener.proceed(call.id).unwrap());
    join_forked(child).unwrap();
}

#[test]
fn detours_are_closed() {
    let (child, _listener) = under_filter(|| {
        let error = open(libc::IPPROTO_MPTCP).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT));
        let socket = open(0)?;
        let octet = [0_u8];
        let pointer = octet.as_ptr().cast::<c_void>();
        // SAFETY: pointer and length describe `octet`.
        let sent = unsafe { libc::send(socket.as_raw_fd(), pointer, 1, libc::MSG_FASTOPEN) };
        assert_eq!(sent, -1);
        let error = io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        // SAFETY: the null pointer makes it fail in any case.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) };
        assert_eq!(ring, -1);
        let error = io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
        // No address of IP fits: answered without the listener.
        // SAFETY: pointer and length describe `octet`.
        let status = unsafe { libc::connect(socket.as_raw_fd(), pointer.cast(), 1) };
        assert_eq!(status, -1);
        let error = io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let second = install(Options::default()).unwrap_err();
        assert_eq!(second.raw_os_error(), Some(libc::EBUSY));
        Ok(())
    });
    join_forked(child).unwrap();
}

#[cfg(target_arch = "x86_64")]
#[test]
fn foreign_call_waits() {
    let number = X32_BIT.cast_signed() | 39;
    let (child, listener) = under_filter(move || {
        // SAFETY: getpid of another ABI takes nothing.
        let status = unsafe { libc::syscall(c_long::from(number)) };
        assert_eq!(status, -1);
        Err(io::Error::last_os_error())
    });
    let call = next(&listener);
    let arch = NATIVE;
    assert_eq!(call.call, Call::Foreign { arch, number });
    assert!(listener.refuse(call.id, libc::ENOSYS).unwrap());
    let error = join_forked(child).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
}

#[test]
fn killed_caller_is_gone_and_the_listener_hangs_up() {
    let (child, listener) = under_filter(|| connect(&open(0)?, 9));
    let call = next(&listener);
    let pid = nix::unistd::Pid::from_raw(child.cast_signed());
    // SAFETY: takes two integers; the process is a child that nobody has waited for.
    socket::check(unsafe { libc::kill(pid.as_raw(), libc::SIGKILL) }).unwrap();
    join_forked(child).unwrap_err();
    assert!(!listener.is_valid(call.id));
    assert!(!listener.proceed(call.id).unwrap());
    let mut poll = libc::pollfd {
        fd: listener.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, as the count says.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 10_000) };
    assert_eq!((ready, poll.revents & libc::POLLHUP), (1, libc::POLLHUP));
}

#[test]
fn process_with_threads_is_refused() {
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || wait.recv_timeout(Duration::from_secs(10)));
    let error = install(Options::default()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    drop(stop);
    other.join().unwrap().unwrap_err();
}

#[test]
fn no_new_privs_is_set_on_request() {
    let (_, result) = run_forked(|| {
        let _listener = install(Options { no_new_privs: true })?;
        let status = std::fs::read_to_string("/proc/self/status")?;
        assert!(status.contains("NoNewPrivs:\t1\n"));
        Ok(())
    });
    result.unwrap();
}

#[test]
fn calls_are_told_apart() {
    let call = |number: c_long| Call::new(NATIVE, i32::try_from(number).unwrap());
    assert_eq!(call(libc::SYS_connect), Call::Connect);
    assert_eq!(call(libc::SYS_listen), Call::Listen);
    let number = i32::try_from(libc::SYS_bind).unwrap();
    assert_eq!(call(libc::SYS_bind), Call::Other(number));
    let (arch, number) = (0x4000_0003, 42);
    assert_eq!(Call::new(arch, number), Call::Foreign { arch, number });
}

#[test]
fn notification_is_available_here() {
    assert!(is_available());
    let other = Listener::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    assert!(other.receive().is_err());
    assert!(!other.is_valid(1));
}
