"""TCP-AO's arithmetic (RFC 5925 section 5.1, RFC 5926), on hashlib and
python3-cryptography: an implementation of the tests' own."""

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

from packets import ACK, SYN

KIND = 29


def _aes_cmac(key, data):
    mac = CMAC(AES(key))
    mac.update(data)
    return mac.finalize()


def _hmac(name):
    return lambda key, data: hmac.new(key, data, getattr(hashlib, name)).digest()


# name: (pseudo-random function and MAC, bits of a traffic key, octets of a MAC)
ALGORITHMS = {
    "hmac-sha-1-96": (_hmac("sha1"), 160, 12),
    "aes-128-cmac-96": (_aes_cmac, 128, 12),
    "hmac-sha-256-96": (_hmac("sha256"), 256, 12),
    "hmac-sha-256-128": (_hmac("sha256"), 256, 16),
}


def traffic_key(algorithm, secret, context):
    """KDF(master key, 1 | "TCP-AO" | context | output length in bits)."""
    function, bits, _ = ALGORITHMS[algorithm]
    if function is _aes_cmac and len(secret) != 16:
        secret = _aes_cmac(bytes(16), secret)  # RFC 5926 section 3.1.1.2
    return function(secret, b"\x01TCP-AO" + context + struct.pack(">H", bits))


def context(segment, source_isn, destination_isn):
    """The connection as the KDF sees it from the segment's sender."""
    packet = segment.packet
    return (packet.source + packet.destination
            + struct.pack(">HHII", segment.source_port, segment.destination_port,
                          source_isn, destination_isn))


def option(segment):
    """(offset in the TCP header, KeyID, RNextKeyID, MAC) of the segment's
    TCP-AO option; None without one. Two of them are an error."""
    found = [(offset, octets) for kind, offset, octets in segment.option_list() if kind == KIND]
    if len(found) > 1:
        raise ValueError("two TCP-AO options")
    if not found:
        return None
    offset, octets = found[0]
    if len(octets) < 4:
        raise ValueError("TCP-AO option of less than 4 octets")
    return offset, octets[2], octets[3], octets[4:]


def mac(algorithm, key, sne, segment, include_options):
    """The MAC of a segment that carries a TCP-AO option, whatever is in it."""
    function, _, length = ALGORITHMS[algorithm]
    offset, _, _, carried = option(segment)
    ao = segment.octets[offset:offset + 4] + bytes(len(carried))
    fixed = segment.fixed[:16] + b"\0\0" + segment.fixed[18:]
    if include_options:
        options = (segment.octets[20:offset] + ao
                   + segment.octets[offset + len(ao):segment.header_length])
    else:
        options = ao
    data = (struct.pack(">I", sne) + segment.packet.pseudo_header(len(segment.octets))
            + fixed + options + segment.payload)
    return function(key, data)[:length]


class Key:
    """A master key tuple of the pair (a, b), as the JSON key file has it:
    a, b, a_to_b_id, b_to_a_id, algorithm, secret (or secret_hex),
    include_options."""

    def __init__(self, entry):
        self.ends = (entry["a"], entry["b"])
        self.ids = (entry["a_to_b_id"], entry["b_to_a_id"])
        self.algorithm = entry["algorithm"]
        self.secret = (bytes.fromhex(entry["secret_hex"]) if "secret_hex" in entry
                       else entry["secret"].encode())
        self.include_options = entry.get("include_options", True)

    def signs(self, addresses, key_id):
        """Whether a segment between the addresses with the KeyID uses this key."""
        return ((self.ends, self.ids[0]) == (addresses, key_id)
                or (self.ends[::-1], self.ids[1]) == (addresses, key_id))

    def mac(self, segment, source_isn, destination_isn, sne):
        """The MAC of a segment."""
        key = traffic_key(self.algorithm, self.secret,
                          context(segment, source_isn, destination_isn))
        return mac(self.algorithm, key, sne, segment, self.include_options)


class Direction:
    """One direction of a connection: its ISN, and the 64-bit high-water mark
    of what was sent, which gives the SNE of any segment nearby."""

    def __init__(self, isn):
        self.isn = isn
        self.mark = isn

    def sne(self, seq):
        """The sequence number extension of a segment."""
        distance = (seq - self.mark + (1 << 31)) % (1 << 32) - (1 << 31)
        return max(self.mark + distance, 0) >> 32

    def advance(self, seq):
        """Takes note of a verified segment."""
        self.mark = max(self.mark, (self.sne(seq) << 32) + seq)


class Connections:
    """Follows the connections of a capture and judges each segment. A SYN that
    verifies may be a replayed one, so every ISN that a signed SYN or SYN-ACK
    named for a 4-tuple stays a candidate. `offloaded`: the TCP checksum may be
    left to a device."""

    def __init__(self, keys, offloaded=False):
        self.keys = keys
        self.offloaded = offloaded
        self.directions = {}

    def _candidates(self, segment):
        """Yields (direction or None, source ISN, destination ISN, SNE) that the
        segment may be signed under."""
        if segment.flags & SYN:
            # On a SYN-ACK the acknowledgement is the other ISN plus one.
            other = (segment.ack - 1) % (1 << 32) if segment.flags & ACK else 0
            yield None, segment.seq, other, 0
            return
        ends = _ends(segment)
        for own in self.directions.get(ends, ()):
            for other in self.directions.get(ends[2:] + ends[:2], ()):
                yield own, own.isn, other.isn, own.sne(segment.seq)

    def _note(self, segment, direction):
        """Takes note of a verified segment."""
        if direction is not None:
            direction.advance(segment.seq)
            return
        known = self.directions.setdefault(_ends(segment), [])
        if all(direction.isn != segment.seq for direction in known):
            known.insert(0, Direction(segment.seq))

    def judge(self, segment):
        """One of "signed", "unsigned", "bad", "unknown", and the algorithm."""
        try:
            found = option(segment)
        except (ValueError, IndexError):
            return "bad", None
        if found is None:
            return "unsigned", None
        _, key_id, _, carried = found
        key = next((key for key in self.keys if key.signs(segment.packet.addresses, key_id)), None)
        if key is None:
            return "bad", None
        if not segment.checksum_ok() and not (self.offloaded and segment.checksum_offloaded()):
            return "bad", None
        verdict = "unknown"
        for direction, *isns_and_sne in self._candidates(segment):
            if key.mac(segment, *isns_and_sne) == carried:
                self._note(segment, direction)
                return "signed", key.algorithm
            verdict = "bad"
        return verdict, key.algorithm


def _ends(segment):
    """Address and port of the source, then of the destination."""
    packet = segment.packet
    return (packet.source, segment.source_port, packet.destination, segment.destination_port)
