#!/usr/bin/python3
"""Tells which KeyIDs the TCP segments of a capture carry, without knowing a key.

Prints JSON: for each direction the segments with TCP-AO and without, those that
carry data, how many have which KeyID, and the KeyIDs by their first appearance.
"""

import argparse
import json
import sys

import packets
import tcpao


def report(capture, port):
    """The report, as a dictionary by direction."""
    directions = {}
    for segment in packets.segments(capture):
        if port not in (segment.source_port, segment.destination_port):
            continue
        counts = directions.setdefault(">".join(segment.packet.addresses), {
            "signed": 0, "unsigned": 0, "with_data": 0, "key_ids": {}, "order": []})
        counts["with_data"] += bool(segment.payload)
        option = tcpao.option(segment)
        if not option:
            counts["unsigned"] += 1
            continue
        key_id = option[1]
        counts["signed"] += 1
        counts["key_ids"][key_id] = counts["key_ids"].get(key_id, 0) + 1
        if key_id not in counts["order"]:
            counts["order"].append(key_id)
    return directions


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("capture", help="pcap file")
    parser.add_argument("--port", type=int, default=179)
    arguments = parser.parse_args()
    print(json.dumps(report(arguments.capture, arguments.port)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
