#!/usr/bin/python3
"""The capture checker against all vectors of RFC 9235 and against captures
with known faults."""

import argparse
import contextlib
import json
import os
import struct
import tempfile
import unittest

import check_capture
import key_ids
import packets
import tcpao

VECTORS = os.path.join(os.path.dirname(__file__), "../../ao-engine/tests/data/rfc9235-vectors.json")
ISN_A, ISN_B = 0xFFFFFF00, 0x11C14261


def vector_segments():
    with open(VECTORS, encoding="utf-8") as file:
        data = json.load(file)
    secret = bytes.fromhex(data["common"]["master_key_hex"])
    for vector in data["vectors"]:
        packet = packets.Packet(bytes.fromhex(vector["packet"]))
        yield vector, secret, packets.Segment(packet)


def tcp_packet(source, destination, ports, seq, ack, flags, payload, sign=None):
    """An IPv4 packet; `sign` gives the MAC of the segment it is handed."""
    ao = b"" if sign is None else bytes([tcpao.KIND, 16, 1, 1]) + bytes(12)
    def build(option):
        offset = (20 + len(option)) // 4 << 4
        tcp = struct.pack(">HHIIBBHHH", *ports, seq % (1 << 32), ack % (1 << 32), offset, flags,
                          65535, 0, 0) + option + payload
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0)
        packet = packets.Packet(header + source + destination + tcp)
        total = packets.checksum(packet.pseudo_header(len(tcp)) + tcp)
        tcp = tcp[:16] + struct.pack(">H", total) + tcp[18:]
        return header + source + destination + tcp
    data = build(ao)
    if sign is not None:
        data = build(ao[:4] + sign(packets.Segment(packets.Packet(data))))
    return data


class Vectors(unittest.TestCase):
    def test_every_traffic_key_and_mac_of_rfc_9235(self):
        count = 0
        for vector, secret, segment in vector_segments():
            with self.subTest(vector["section"], title=vector["title"]):
                algorithm = vector["mac_algorithm"].lower()
                context = tcpao.context(segment, int(vector["kdf_src_isn"], 16),
                                        int(vector["kdf_dst_isn"], 16))
                self.assertEqual(context.hex(), vector["kdf_context"])
                key = tcpao.traffic_key(algorithm, secret, context)
                self.assertEqual(key.hex(), vector["traffic_key"])
                mac = tcpao.mac(algorithm, key, vector["sne"], segment, vector["options_included"])
                self.assertEqual(mac.hex(), vector["mac"])
                self.assertEqual(tcpao.option(segment)[3].hex(), vector["mac"])
                count += 1
        self.assertEqual(count, 32)


class Captures(unittest.TestCase):
    A, B = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
    KEY = tcpao.Key({"a": "10.0.0.1", "b": "10.0.0.2", "a_to_b_id": 1, "b_to_a_id": 1,
                     "algorithm": "aes-128-cmac-96", "secret": "testvector"})

    def from_a(self, seq, ack, flags, payload=b"", isns=(ISN_A, ISN_B), sne=0):
        return tcp_packet(self.A, self.B, (40000, 179), seq, ack, flags, payload,
                          lambda segment: self.KEY.mac(segment, *isns, sne))

    def from_b(self, seq, ack, flags, payload=b""):
        return tcp_packet(self.B, self.A, (179, 40000), seq, ack, flags, payload,
                          lambda segment: self.KEY.mac(segment, ISN_B, ISN_A, 0))

    def conversation(self):
        return [
            self.from_a(ISN_A, 0, packets.SYN, isns=(ISN_A, 0)),
            self.from_b(ISN_B, ISN_A + 1, packets.SYN | packets.ACK),
            self.from_a(ISN_A + 1, ISN_B + 1, packets.ACK, bytes(255)),
            # The sequence number wraps: SNE 1, and SNE 0 again for a retransmission.
            self.from_a(ISN_A + 256, ISN_B + 1, packets.ACK, b"after", sne=1),
            self.from_a(ISN_A + 1, ISN_B + 1, packets.ACK, bytes(255)),
            self.from_b(ISN_B + 1, ISN_A + 261, packets.ACK),
        ]

    @contextlib.contextmanager
    def file(self, captured):
        with tempfile.NamedTemporaryFile(suffix=".pcap") as file:
            file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, packets.RAW))
            for data in captured:
                file.write(struct.pack("<IIII", 0, 0, len(data), len(data)) + data)
            file.flush()
            yield file.name

    def check(self, captured, *arguments, offloaded=False):
        with self.file(captured) as name:
            directions = check_capture.report(name, [self.KEY], 179, offloaded)
        defaults = {"allow": [], "min_signed": 0, "max_ip_length": 0, "expect_algorithm": None}
        options = argparse.Namespace(**(defaults | dict(arguments)))
        return directions, list(check_capture.failures(directions, options))

    def test_a_conversation_across_a_wrap_is_signed(self):
        directions, failures = self.check(self.conversation(), ("min_signed", 2),
                                          ("expect_algorithm", "aes-128-cmac-96"))
        self.assertEqual(failures, [])
        self.assertEqual(directions["10.0.0.1>10.0.0.2"]["signed"], 4)
        self.assertEqual(directions["10.0.0.2>10.0.0.1"]["signed"], 2)

    def test_any_changed_octet_of_a_segment_is_found(self):
        captured = self.conversation()
        for offset in range(20, len(captured[3])):
            changed = bytearray(captured[3])
            changed[offset] ^= 1
            directions, _ = self.check(captured[:3] + [bytes(changed)])
            signed = sum(counts["signed"] for counts in directions.values())
            self.assertEqual(signed, 3, f"octet {offset}")

    def test_a_checksum_is_left_to_a_device_only_where_allowed(self):
        captured = self.conversation()
        segment = packets.Segment(packets.Packet(captured[3]))
        partial = ~packets.checksum(segment.packet.pseudo_header(len(segment.octets))) & 0xFFFF
        captured[3] = captured[3][:36] + struct.pack(">H", partial) + captured[3][38:]
        _, failures = self.check(captured)
        self.assertEqual(failures, ["10.0.0.1>10.0.0.2: 1 bad"])
        _, failures = self.check(captured, offloaded=True)
        self.assertEqual(failures, [])

    def test_a_replayed_syn_does_not_confuse_the_checker(self):
        captured = self.conversation()
        old = self.from_a(77, 0, packets.SYN, isns=(77, 0))
        directions, failures = self.check(captured[:3] + [old] + captured[3:])
        self.assertEqual(failures, [])
        self.assertEqual(directions["10.0.0.1>10.0.0.2"]["signed"], 5)

    def test_an_unsigned_segment_is_found(self):
        plain = tcp_packet(self.A, self.B, (40000, 179), 1, 1, packets.RST, b"")
        _, failures = self.check(self.conversation() + [plain])
        self.assertEqual(failures, ["10.0.0.1>10.0.0.2: 1 unsigned"])

    def test_a_connection_without_its_beginning_is_unknown(self):
        directions, failures = self.check(self.conversation()[2:])
        self.assertEqual(directions["10.0.0.1>10.0.0.2"]["unknown"], 3)
        self.assertTrue(failures)

    def test_key_ids_are_counted_without_a_key(self):
        plain = tcp_packet(self.A, self.B, (40000, 179), 1, 1, packets.RST, b"")
        other = bytearray(self.from_a(1, 1, packets.ACK))
        other[42] = 7
        with self.file(self.conversation() + [bytes(other), plain]) as name:
            counts = key_ids.report(name, 179)
        self.assertEqual(counts, {
            "10.0.0.1>10.0.0.2": {"signed": 5, "unsigned": 1, "with_data": 3,
                                  "key_ids": {1: 4, 7: 1}, "order": [1, 7]},
            "10.0.0.2>10.0.0.1": {"signed": 2, "unsigned": 0, "with_data": 0,
                                  "key_ids": {1: 2}, "order": [1]}})

    def test_other_expectations_can_fail(self):
        captured = self.conversation()
        for expectation in [("max_ip_length", 290), ("min_signed", 3),
                            ("expect_algorithm", "hmac-sha-1-96")]:
            self.assertTrue(self.check(captured, expectation)[1], expectation)


if __name__ == "__main__":
    unittest.main()
