//! The filter's program, in classic BPF: it begins at the IP header.

use std::ops::RangeInclusive;

use libc::sock_filter;

/// Ranges of ports a program looks for, at most.
const MAX_RANGES: usize = 16;

const LOAD_OCTET: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
/// Relative to the upper header, whose offset is in X.
const LOAD_OCTET_UPPER: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
const LOAD_HALF_UPPER: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
/// Into X: the length of an IPv4 header.
const LOAD_V4_LENGTH: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
const LOAD_X: u32 = libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM;
const SHIFT_RIGHT: u32 = libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const IF_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

const TCP: u32 = 6;
const ICMP: u32 = 1;
const ICMPV6: u32 = 58;
const SYN_OR_RST: u32 = 0x06;

const TAKE: sock_filter = instruction(RETURN, u32::MAX, 0, 0);
const PASS_OVER: sock_filter = instruction(RETURN, 0, 0, 0);

/// The program: segments with SYN or RST whose source or destination port is one of `ports`, and
/// ICMP errors whose quoted packet is TCP.
pub(super) fn program(ports: &[RangeInclusive<u16>]) -> Vec<sock_filter> {
    let mut program = vec![
        load(LOAD_OCTET, 0),
        instruction(SHIFT_RIGHT, 4, 0, 0),
        jump(IF_EQUAL, 6, 12, 0),
        jump(IF_EQUAL, 4, 0, 20),
        // IPv4: no fragments but the first, which cannot be read anyway.
        load(LOAD_HALF, 6),
        jump(IF_ANY_BIT, 0x1fff, 18, 0),
        load(LOAD_V4_LENGTH, 0),
        load(LOAD_OCTET, 9),
        jump(IF_EQUAL, TCP, 17, 0),
        jump(IF_EQUAL, ICMP, 0, 14),
        load(LOAD_OCTET_UPPER, 0),
        jump(IF_EQUAL, 3, 1, 0),
        jump(IF_EQUAL, 11, 0, 11),
        load(LOAD_OCTET_UPPER, 8 + 9),
        jump(IF_EQUAL, TCP, 10, 9),
        // IPv6.
        load(LOAD_X, 40),
        load(LOAD_OCTET, 6),
        jump(IF_EQUAL, TCP, 8, 0),
        jump(IF_EQUAL, ICMPV6, 0, 5),
        load(LOAD_OCTET_UPPER, 0),
        jump(IF_AT_LEAST, 1, 0, 3),
        jump(IF_GREATER, 4, 2, 0),
        load(LOAD_OCTET_UPPER, 8 + 6),
        jump(IF_EQUAL, TCP, 1, 0),
        PASS_OVER,
        TAKE,
        // TCP.
        load(LOAD_OCTET_UPPER, 13),
        jump(IF_ANY_BIT, SYN_OR_RST, 1, 0),
        PASS_OVER,
    ];
    let ranges = few(ports);
    for offset in [0, 2] {
        program.push(load(LOAD_HALF_UPPER, offset));
        for range in &ranges {
            program.extend([
                jump(IF_AT_LEAST, u32::from(*range.start()), 0, 2),
                jump(IF_GREATER, u32::from(*range.end()), 1, 0),
                TAKE,
            ]);
        }
    }
    program.push(PASS_OVER);
    program
}

/// The ranges without overlaps, and at most [`MAX_RANGES`] of them: where there are more, those
/// that are nearest become one.
fn few(ports: &[RangeInclusive<u16>]) -> Vec<RangeInclusive<u16>> {
    let mut sorted: Vec<RangeInclusive<u16>> = ports
        .iter()
        .filter(|range| !range.is_empty())
        .cloned()
        .collect();
    sorted.sort_by_key(|range| *range.start());
    let mut few: Vec<RangeInclusive<u16>> = Vec::new();
    for range in sorted {
        match few.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => few.push(range),
        }
    }
    while few.len() > MAX_RANGES {
        let gap = |pair: &[RangeInclusive<u16>]| match pair {
            [one, next] => next.start().saturating_sub(*one.end()),
            _ => u16::MAX,
        };
        let nearest = few.windows(2).enumerate().min_by_key(|(_, pair)| gap(pair));
        let Some((at, _)) = nearest else {
            break;
        };
        let next = few.remove(at + 1);
        if let Some(one) = few.get_mut(at) {
            *one = *one.start()..=*next.end();
        }
    }
    few
}

const fn load(code: u32, offset: u32) -> sock_filter {
    instruction(code, offset, 0, 0)
}

/// Skips `yes` or `no` instructions.
const fn jump(code: u32, operand: u32, yes: u8, no: u8) -> sock_filter {
    instruction(code, operand, yes, no)
}

#[expect(clippy::cast_possible_truncation, reason = "codes have 16 bits")]
const fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_merged() {
        assert_eq!(few(&[179..=179, 179..=179]), [179..=179]);
        assert_eq!(
            few(&[200..=300, 1..=5, 6..=9, 250..=260]),
            [1..=9, 200..=300]
        );
        #[expect(clippy::reversed_empty_ranges, reason = "an empty one is meant")]
        let empty = [5..=4, 65535..=65535];
        assert_eq!(few(&empty), [65535..=65535]);
        assert_eq!(few(&[]), []);
    }

    #[test]
    fn many_ranges_become_few_that_cover_them() {
        let ports: Vec<RangeInclusive<u16>> = (0..100).map(|n| n * n..=n * n).collect();
        let few = few(&ports);
        assert_eq!(few.len(), MAX_RANGES);
        for range in &ports {
            assert!(few.iter().any(|one| one.contains(range.start())));
        }
        // The widest gaps are left out.
        assert!(few.contains(&(9801..=9801)) && few[0].contains(&16));
    }

    #[test]
    fn all_jumps_stay_within_the_program() {
        let program = program(&(0..100).map(|n| n * 3..=n * 3).collect::<Vec<_>>());
        for (at, one) in program.iter().enumerate() {
            if u32::from(one.code) & 0x07 == libc::BPF_JMP {
                assert!(at + 1 + usize::from(one.jt.max(one.jf)) < program.len());
            }
        }
    }
}
