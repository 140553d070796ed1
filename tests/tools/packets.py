"""Captures and packets, with nothing but the standard library.

Independent of the project's engine on purpose: what these tools say about a
capture must not share a mistake with the code that made it.
"""

import ipaddress
import struct

ETHERNET, LINUX_SLL, RAW = 1, 113, 101
TCP, ICMP, ICMPV6, FRAGMENT = 6, 1, 58, 44
IPV6_EXTENSIONS = {0, 43, 60, 135}
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def read_pcap(path):
    """Yields (link type, frame) for each complete record of a pcap file, which
    may still be written to."""
    with open(path, "rb") as file:
        header = file.read(24)
        if len(header) < 24:
            return
        magic = header[:4]
        if magic in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1"):
            order = "<"
        elif magic in (b"\xa1\xb2\xc3\xd4", b"\xa1\xb2\x3c\x4d"):
            order = ">"
        else:
            raise ValueError(f"{path}: not a pcap file")
        link = struct.unpack(order + "I", header[20:24])[0] & 0xFFFF
        while len(record := file.read(16)) == 16:
            _, _, captured, _ = struct.unpack(order + "IIII", record)
            frame = file.read(captured)
            if len(frame) < captured:
                return
            yield link, frame


def ip_of(link, frame):
    """The IP packet in a frame, or None."""
    if link == RAW:
        return frame
    if link == ETHERNET:
        kind, payload = frame[12:14], frame[14:]
        if kind == b"\x81\x00":
            kind, payload = frame[16:18], frame[18:]
    elif link == LINUX_SLL:
        kind, payload = frame[14:16], frame[16:]
    else:
        raise ValueError(f"link type {link} is not supported")
    return payload if kind in (b"\x08\x00", b"\x86\xdd") else None


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Packet:
    """An IP packet. `fragment` says whether it is one; `tcp` is the segment as
    octets, or None."""

    def __init__(self, data):
        self.version = data[0] >> 4
        self.fragment = False
        self.protocol = None
        if self.version == 4:
            header = (data[0] & 15) * 4
            length = struct.unpack(">H", data[2:4])[0]
            self.fragment = struct.unpack(">H", data[6:8])[0] & 0x3FFF != 0
            self.protocol = data[9]
            self.source, self.destination = data[12:16], data[16:20]
            self.ttl = data[8]
        elif self.version == 6:
            header = 40
            length = 40 + struct.unpack(">H", data[4:6])[0]
            self.source, self.destination = data[8:24], data[24:40]
            self.ttl = data[7]
            self.protocol = data[6]
            while self.protocol in IPV6_EXTENSIONS or self.protocol == FRAGMENT:
                following = data[header]
                if self.protocol == FRAGMENT:
                    self.fragment = True
                    header += 8
                else:
                    header += (data[header + 1] + 1) * 8
                self.protocol = following
        else:
            raise ValueError(f"IP version {self.version}")
        self.header = data[:header]
        self.payload = data[header:length]
        self.length = length
        self.octets = data[:length]

    @property
    def addresses(self):
        """Source and destination as text."""
        return tuple(str(ipaddress.ip_address(end)) for end in (self.source, self.destination))

    def pseudo_header(self, length):
        """The pseudo-header of a TCP segment of `length` octets."""
        if self.version == 4:
            return self.source + self.destination + struct.pack(">BBH", 0, TCP, length)
        return self.source + self.destination + struct.pack(">IHBB", length, 0, 0, TCP)


class Segment:
    """A TCP segment in an IP packet."""

    def __init__(self, packet):
        data = packet.payload
        (self.source_port, self.destination_port, self.seq, self.ack, offset, self.flags,
         self.window) = struct.unpack(">HHIIBBH", data[:16])
        self.packet = packet
        self.header_length = (offset >> 4) * 4
        self.fixed = data[:20]
        self.options = data[20:self.header_length]
        self.payload = data[self.header_length:]
        self.octets = data

    @property
    def span(self):
        """Sequence numbers it takes."""
        return len(self.payload) + bool(self.flags & SYN) + bool(self.flags & FIN)

    def option_list(self):
        """Yields (kind, offset within the header, octets) for each option."""
        offset = 0
        while offset < len(self.options):
            kind = self.options[offset]
            if kind == 0:
                return
            length = 1 if kind == 1 else self.options[offset + 1]
            if length < 1 or (kind != 1 and length < 2) or offset + length > len(self.options):
                raise ValueError("malformed options")
            yield kind, 20 + offset, self.options[offset:offset + length]
            offset += length

    def checksum_ok(self):
        """Whether the TCP checksum is right."""
        return checksum(self.packet.pseudo_header(len(self.octets)) + self.octets) == 0

    def checksum_offloaded(self):
        """Whether the field has what Linux puts there for the device to complete:
        the sum of the pseudo-header."""
        partial = ~checksum(self.packet.pseudo_header(len(self.octets))) & 0xFFFF
        return int.from_bytes(self.octets[16:18], "big") == partial


def segments(path):
    """Yields every TCP segment of a capture that is not a fragment."""
    for link, frame in read_pcap(path):
        data = ip_of(link, frame)
        if data:
            packet = Packet(data)
            if packet.protocol == TCP and not packet.fragment:
                yield Segment(packet)
