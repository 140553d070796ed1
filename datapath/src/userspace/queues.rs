//! What the kernel tells of queues.

use std::collections::HashMap;
use std::fs;

use crate::report::QueueReport;

/// The queues of the calling thread's network namespace; a process may have threads in several.
const TABLE: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";

/// Adds how many packets wait and how many were dropped; nothing where the kernel does not tell.
pub(super) fn fill_in(reports: &mut [QueueReport]) {
    let table = fs::read_to_string(TABLE).unwrap_or_default();
    let counts: HashMap<u16, (u32, u64)> = table.lines().filter_map(parse).collect();
    for report in reports {
        if let Some(&(waiting, dropped)) = counts.get(&report.number) {
            report.waiting = waiting;
            report.dropped = dropped;
        }
    }
}

/// Of a queue by its number: packets that wait, and packets dropped, because the queue was full or
/// because the socket's buffer was.
fn parse(line: &str) -> Option<(u16, (u32, u64))> {
    // Number, port, waiting, copy mode, copy range, dropped by the queue, dropped by the socket, …
    let mut fields = line.split_ascii_whitespace();
    let number = fields.next()?.parse().ok()?;
    let waiting = fields.nth(1)?.parse().ok()?;
    let by_queue: u64 = fields.nth(2)?.parse().ok()?;
    let by_socket: u64 = fields.next()?.parse().ok()?;
    Some((number, (waiting, by_queue.saturating_add(by_socket))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_waiting_and_dropped_packets() {
        let line = "  400  12345    17 2 65535     3     4   100000  1";
        assert_eq!(parse(line), Some((400, (17, 7))));
        for damaged in ["", "400", "400 1 2 3 4", "x 1 2 3 4 5 6 7 8"] {
            assert_eq!(parse(damaged), None, "{damaged}");
        }
    }
}
