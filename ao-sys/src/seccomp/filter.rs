//! The filter's program.
//!
//! A filter sees the number of the call and its six arguments as 64-bit registers, and loads 32
//! bits at a time. The arguments looked at are all of type `int`: the kernel's entry point cuts
//! the register down to its low half, so the filter compares the low half alone. Comparing the high
//! half too would let a program through that leaves garbage there, which C allows.

use libc::{c_int, sock_filter};

/// The architecture of this program, as in linux/audit.h.
#[cfg(target_arch = "x86_64")]
pub const NATIVE: u32 = 0xc000_003e;
/// The architecture of this program, as in linux/audit.h.
#[cfg(target_arch = "aarch64")]
pub const NATIVE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the filter knows the system calls of x86-64 and of aarch64");

/// In a call's number: it is one of the x32 ABI. 0 where there is no such thing.
#[cfg(target_arch = "x86_64")]
pub const X32_BIT: u32 = 0x4000_0000;
/// In a call's number: it is one of the x32 ABI. 0 where there is no such thing.
#[cfg(not(target_arch = "x86_64"))]
pub const X32_BIT: u32 = 0;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;

const MPTCP: u32 = libc::IPPROTO_MPTCP.cast_unsigned();
const FASTOPEN: u32 = libc::MSG_FASTOPEN.cast_unsigned();

/// Length of a `sockaddr_in`, the smallest address of IP.
const IP_ADDRESS_MIN: u32 = 16;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;

/// The program; see [`super::install`] for what it does.
pub(super) fn program() -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCH),
        jump(IF_EQUAL, NATIVE, 1, 0),
        answer(NOTIFY),
        load(NUMBER),
    ];
    if X32_BIT != 0 {
        program.extend([jump(IF_ANY_BIT, X32_BIT, 0, 1), answer(NOTIFY)]);
    }
    program.extend(on(
        libc::SYS_io_uring_setup,
        &[answer(refusal(libc::ENOSYS))],
    ));
    program.extend(on(libc::SYS_listen, &[answer(NOTIFY)]));
    program.extend(on(
        libc::SYS_connect,
        &answer_if(2, IF_AT_LEAST, IP_ADDRESS_MIN, NOTIFY),
    ));
    let refused = refusal(libc::EPROTONOSUPPORT);
    program.extend(on(
        libc::SYS_socket,
        &answer_if(2, IF_EQUAL, MPTCP, refused),
    ));
    // MSG_FASTOPEN sends a SYN without a connect(2).
    let refused = refusal(libc::EOPNOTSUPP);
    for (call, flags) in [
        (libc::SYS_sendto, 3),
        (libc::SYS_sendmsg, 2),
        (libc::SYS_sendmmsg, 3),
    ] {
        program.extend(on(call, &answer_if(flags, IF_ANY_BIT, FASTOPEN, refused)));
    }
    program.push(answer(ALLOW));
    program
}

/// `body`, which must end with an answer, for one call; expects and leaves the call's number in
/// the accumulator.
fn on(call: libc::c_long, body: &[sock_filter]) -> Vec<sock_filter> {
    // Numbers of calls and lengths of bodies are small, and the tests run every branch.
    let number = u32::try_from(call).unwrap_or(u32::MAX);
    let length = u8::try_from(body.len()).unwrap_or(u8::MAX);
    let mut program = vec![jump(IF_EQUAL, number, 0, length)];
    program.extend_from_slice(body);
    program
}

/// `result` if the low half of an argument meets the condition, else ALLOW.
fn answer_if(argument: u32, condition: u32, value: u32, result: u32) -> [sock_filter; 4] {
    [
        // The machine is little-endian: the low half comes first.
        load(ARGUMENTS + 8 * argument),
        jump(condition, value, 0, 1),
        answer(result),
        answer(ALLOW),
    ]
}

fn refusal(errno: c_int) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

fn load(offset: u32) -> sock_filter {
    instruction(LOAD, offset, 0, 0)
}

fn answer(action: u32) -> sock_filter {
    instruction(RETURN, action, 0, 0)
}

/// Skips `met` instructions if the condition is met, else `unmet`.
fn jump(condition: u32, value: u32, met: u8, unmet: u8) -> sock_filter {
    instruction(condition, value, met, unmet)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    let code = u16::try_from(code).unwrap_or(u16::MAX);
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: [u64; 6] = [0; 6];

    /// A machine for the instructions above; panics on any other and on a jump out of the program.
    fn run(arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let program = program();
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let skip = |met: bool| usize::from(if met { jt } else { jf });
            match u32::from(code) {
                LOAD => {
                    accumulator = match k {
                        NUMBER => number,
                        ARCH => arch,
                        _ => {
                            let (argument, half) = ((k - ARGUMENTS) / 8, (k - ARGUMENTS) % 8);
                            assert!(half == 0 || half == 4);
                            u32::try_from(args[argument as usize] >> (8 * half) & 0xffff_ffff)
                                .unwrap()
                        }
                    }
                }
                RETURN => return k,
                IF_EQUAL => at += skip(accumulator == k),
                IF_AT_LEAST => at += skip(accumulator >= k),
                IF_ANY_BIT => at += skip(accumulator & k != 0),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn native(call: libc::c_long, args: [u64; 6]) -> u32 {
        run(NATIVE, u32::try_from(call).unwrap(), args)
    }

    fn with(argument: usize, value: u64) -> [u64; 6] {
        let mut args = [u64::MAX >> 33; 6];
        args[argument] = value;
        args
    }

    #[test]
    fn every_foreign_call_is_notified() {
        for arch in [0x4000_0003, 0x4000_0028, NATIVE ^ 1, 0] {
            for number in [0, 3, 42, 50, 425, 0x4000_002a, u32::MAX] {
                assert_eq!(run(arch, number, ANY), NOTIFY);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_x32_call_is_notified() {
        for number in [0, 42, 520, 425] {
            assert_eq!(run(NATIVE, X32_BIT | number, ANY), NOTIFY);
        }
        assert_eq!(run(NATIVE, u32::MAX, ANY), NOTIFY);
    }

    #[test]
    fn listen_is_notified() {
        assert_eq!(native(libc::SYS_listen, ANY), NOTIFY);
        assert_eq!(native(libc::SYS_listen, [u64::MAX; 6]), NOTIFY);
    }

    #[test]
    fn connect_is_notified_when_an_ip_address_fits() {
        for (length, action) in [
            (0, ALLOW),
            (15, ALLOW),
            (16, NOTIFY),
            (28, NOTIFY),
            (128, NOTIFY),
            // Negative; the kernel refuses it.
            (u64::MAX, NOTIFY),
            // The kernel takes the low half.
            (0xdead_0000_0000_0010, NOTIFY),
            (0xdead_0000_0000_0002, ALLOW),
        ] {
            assert_eq!(
                native(libc::SYS_connect, with(2, length)),
                action,
                "{length:#x}"
            );
        }
    }

    #[test]
    fn mptcp_is_refused() {
        let refused = libc::SECCOMP_RET_ERRNO | 93;
        for (protocol, action) in [
            (262, refused),
            (0xffff_ffff_0000_0106, refused),
            (0, ALLOW),
            (6, ALLOW),
            (263, ALLOW),
            (0x0000_0106_0000_0006, ALLOW),
        ] {
            assert_eq!(
                native(libc::SYS_socket, with(2, protocol)),
                action,
                "{protocol:#x}"
            );
        }
    }

    #[test]
    fn sends_that_open_a_connection_are_refused() {
        let refused = libc::SECCOMP_RET_ERRNO | 95;
        for (call, flags) in [
            (libc::SYS_sendto, 3),
            (libc::SYS_sendmsg, 2),
            (libc::SYS_sendmmsg, 3),
        ] {
            assert_eq!(native(call, with(flags, 0x2000_0000)), refused);
            assert_eq!(native(call, with(flags, 0xdead_beef_2000_4040)), refused);
            assert_eq!(native(call, with(flags, 0x4040)), ALLOW);
            assert_eq!(native(call, with(flags, 0x2000_0000 << 32)), ALLOW);
            assert_eq!(native(call, with(flags, 0xdfff_ffff)), ALLOW);
        }
    }

    #[test]
    fn io_uring_is_refused_and_all_else_goes_on() {
        assert_eq!(
            native(libc::SYS_io_uring_setup, ANY),
            libc::SECCOMP_RET_ERRNO | 38
        );
        let special = [
            libc::SYS_io_uring_setup,
            libc::SYS_listen,
            libc::SYS_connect,
            libc::SYS_socket,
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_sendmmsg,
        ];
        for number in (0..1000).filter(|number| !special.contains(number)) {
            assert_eq!(native(number, [u64::MAX; 6]), ALLOW, "{number}");
        }
    }
}
