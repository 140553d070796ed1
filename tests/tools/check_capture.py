#!/usr/bin/python3
"""Recomputes the MAC of every TCP segment in a capture.

Prints a JSON report: for each direction the segments signed, unsigned, bad
(MAC, KeyID, option or TCP checksum wrong) and unknown (the beginning of the
connection is not in the capture), and the longest IP packet. Exits with 1, and
says why on stderr, when a segment is bad or an expectation fails.
"""

import argparse
import json
import sys

import packets
import tcpao


def report(capture, keys, port, offloaded=False):
    """The report, as a dictionary by direction."""
    connections = tcpao.Connections(keys, offloaded)
    directions = {}
    for segment in packets.segments(capture):
        if port not in (segment.source_port, segment.destination_port):
            continue
        verdict, algorithm = connections.judge(segment)
        counts = directions.setdefault(">".join(segment.packet.addresses), {
            "signed": 0, "unsigned": 0, "bad": 0, "unknown": 0,
            "max_ip_length": 0, "algorithms": {}})
        counts[verdict] += 1
        counts["max_ip_length"] = max(counts["max_ip_length"], segment.packet.length)
        if algorithm:
            used = counts["algorithms"]
            used[algorithm] = used.get(algorithm, 0) + 1
    return directions


def failures(directions, arguments):
    """Yields a line for each expectation that fails."""
    for name, counts in directions.items():
        for verdict in ("bad", "unsigned", "unknown"):
            if verdict not in arguments.allow and counts[verdict]:
                yield f"{name}: {counts[verdict]} {verdict}"
        if arguments.max_ip_length and counts["max_ip_length"] > arguments.max_ip_length:
            yield f"{name}: an IP packet of {counts['max_ip_length']} octets"
        if arguments.expect_algorithm:
            others = set(counts["algorithms"]) - {arguments.expect_algorithm}
            if others:
                yield f"{name}: signed with {', '.join(sorted(others))}"
    signed = sorted(counts["signed"] for counts in directions.values())
    if arguments.min_signed and (len(signed) < 2 or signed[0] < arguments.min_signed):
        yield f"fewer than {arguments.min_signed} signed segments in a direction"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("capture", help="pcap file")
    parser.add_argument("keys", help="JSON file: a list of keys, see tcpao.Key")
    parser.add_argument("--port", type=int, default=179)
    parser.add_argument("--allow", action="append", default=[],
                        choices=["bad", "unsigned", "unknown"], help="do not fail for these")
    parser.add_argument("--offloaded", action="store_true",
                        help="the TCP checksum may be left to a device")
    parser.add_argument("--min-signed", type=int, default=0, help="in each direction")
    parser.add_argument("--max-ip-length", type=int, default=0)
    parser.add_argument("--expect-algorithm", choices=sorted(tcpao.ALGORITHMS))
    arguments = parser.parse_args()
    with open(arguments.keys, encoding="utf-8") as file:
        keys = [tcpao.Key(entry) for entry in json.load(file)]
    directions = report(arguments.capture, keys, arguments.port, arguments.offloaded)
    print(json.dumps(directions, indent=1))
    lines = list(failures(directions, arguments))
    for line in lines:
        print(f"{arguments.capture}: {line}", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
