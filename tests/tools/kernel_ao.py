#!/usr/bin/python3
"""One end of TCP sessions, over the kernel's own TCP-AO where keys are given.

CASES is a JSON list; each case is a session: local, remote, port, and keys, a
list of (send_id, recv_id, algorithm, secret, include_options), which is empty
for plain TCP.
`serve` and `connect` go through the same list, one session after the other:
the client sends octets both ends know, the server sends others back. Prints
"listening" as soon as all listeners are there, then a line for each session;
the server's ends with a JSON list of the keys: KeyIDs and segments verified.
"""

import argparse
import hashlib
import ipaddress
import json
import socket
import struct
import sys
import time

import socket_keys

TCP_AO_ADD_KEY = 38
TCP_AO_KEYF_EXCLUDE_OPT = 1 << 1
# Between two parts of what is sent slowly, in seconds.
INTERVAL = 0.05
# name: (the kernel's name, octets of the MAC)
ALGORITHMS = {
    "hmac-sha-1-96": (b"hmac(sha1)", 12),
    "aes-128-cmac-96": (b"cmac(aes128)", 12),
    "hmac-sha-256-96": (b"hmac(sha256)", 12),
    "hmac-sha-256-128": (b"hmac(sha256)", 16),
}


def add_key(sock, remote, key):
    """Adds an MKT for `remote`: the kernel's struct tcp_ao_add."""
    ip = ipaddress.ip_address(remote)
    if ip.version == 4:
        address = struct.pack("=HH4s", socket.AF_INET, 0, ip.packed)
    else:
        address = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, ip.packed, 0)
    name, mac_length = ALGORITHMS[key["algorithm"]]
    flags = 0 if key["include_options"] else TCP_AO_KEYF_EXCLUDE_OPT
    secret = key["secret"].encode()
    sock.setsockopt(socket.IPPROTO_TCP, TCP_AO_ADD_KEY, struct.pack(
        "=128s64siIHBBBBBB80s", address, name, 0, 0, 0, ip.max_prefixlen,
        key["send_id"], key["recv_id"], mac_length, flags, len(secret), secret))


def endpoint(case, port, patience):
    """A socket bound to the case's local address."""
    family = socket.AF_INET6 if ":" in case["local"] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(patience)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((case["local"], port))
    return sock


def stream(case, sender, octets):
    """What `sender` sends in a session."""
    label = f"{sender} {sorted((case['local'], case['remote']))}"
    return hashlib.shake_128(label.encode()).digest(octets)


def send(sock, octets, seconds):
    """Sends all octets, spread evenly over so many seconds."""
    parts = max(1, round(seconds / INTERVAL))
    size = -(-len(octets) // parts)
    for begin in range(0, len(octets), size):
        sock.sendall(octets[begin:begin + size])
        if seconds:
            time.sleep(INTERVAL)


def receive(sock, wanted):
    """Receives exactly `wanted`."""
    received = bytearray()
    while len(received) < len(wanted):
        part = sock.recv(65536)
        if not part:
            raise OSError(f"cut off after {len(received)} octets")
        received += part
    if received != wanted:
        raise OSError("the octets arrived changed")


def serve(cases, arguments):
    """The passive end. Cases with the same local address share a listener."""
    listeners = {}
    for case in cases:
        place = (case["local"], case["port"])
        if place not in listeners:
            listeners[place] = endpoint(case, case["port"], arguments.patience)
        for key in case["keys"]:
            add_key(listeners[place], case["remote"], key)
    for listener in listeners.values():
        listener.listen()
    print("listening", flush=True)
    for case in cases:
        sock, peer = listeners[case["local"], case["port"]].accept()
        with sock:
            if peer[0] != case["remote"]:
                raise OSError(f"{peer[0]} instead of {case['remote']}")
            sock.settimeout(arguments.patience)
            receive(sock, stream(case, "client", arguments.octets))
            send(sock, stream(case, "server", arguments.octets), arguments.seconds)
            if sock.recv(1):
                raise OSError("more octets than were sent")
            keys = socket_keys.keys_of(sock.fileno()) if case["keys"] else []
        print("served", case["remote"], json.dumps(keys), flush=True)


def connect(cases, arguments):
    """The active end."""
    for case in cases:
        with endpoint(case, 0, arguments.patience) as sock:
            # The kernel begins with the one added last; this lets it be the first of the list.
            for key in reversed(case["keys"]):
                add_key(sock, case["remote"], key)
            sock.connect((case["remote"], case["port"]))
            send(sock, stream(case, "client", arguments.octets), arguments.seconds)
            receive(sock, stream(case, "server", arguments.octets))
        print("connected", case["local"], flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("role", choices=["serve", "connect"])
    parser.add_argument("cases", help="JSON file")
    parser.add_argument("--octets", type=int, default=100_000, help="in each direction")
    parser.add_argument("--seconds", type=float, default=0, help="spread each direction over them")
    parser.add_argument("--patience", type=float, default=30, help="seconds for each step")
    arguments = parser.parse_args()
    with open(arguments.cases, encoding="utf-8") as file:
        cases = json.load(file)
    try:
        (serve if arguments.role == "serve" else connect)(cases, arguments)
    except OSError as error:
        sys.exit(f"{arguments.role}: {error}")


main()
