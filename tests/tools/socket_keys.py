#!/usr/bin/python3
"""Asks the kernel which TCP-AO keys are on the TCP sockets of another process.

Prints a JSON list: for each socket whether it listens, and its keys, each with
send_id, recv_id, current, rnext and the segments verified with it (good, bad).
"""

import ctypes
import errno
import json
import os
import socket
import struct
import sys

TCP_AO_GET_KEYS = 41
# struct tcp_ao_getsockopt: address, algorithm and key (272 octets), nkeys, a bit field
# (is_current, is_rnext, get_all), sndid, rcvid, 4 octets, ifindex, pkt_good, pkt_bad.
KEY = struct.Struct("=272xIHBB8xQQ")
IS_CURRENT, IS_RNEXT, GET_ALL = 1, 2, 4
MOST_KEYS = 256
SYS_PIDFD_GETFD = 438

libc = ctypes.CDLL(None, use_errno=True)


def keys_of(descriptor):
    """The keys of a TCP socket."""
    empty = KEY.pack(MOST_KEYS, GET_ALL, 0, 0, 0, 0)
    value = ctypes.create_string_buffer(empty, KEY.size * MOST_KEYS)
    length = ctypes.c_uint32(KEY.size)
    if libc.getsockopt(descriptor, socket.IPPROTO_TCP, TCP_AO_GET_KEYS, value,
                       ctypes.byref(length)):
        number = ctypes.get_errno()
        if number == errno.ENOENT:
            return []
        raise OSError(number, "TCP_AO_GET_KEYS: " + os.strerror(number))
    count = KEY.unpack_from(value)[0]
    keys = []
    for index in range(count):
        _, flags, send_id, recv_id, good, bad = KEY.unpack_from(value, index * KEY.size)
        keys.append({"send_id": send_id, "recv_id": recv_id, "current": bool(flags & IS_CURRENT),
                     "rnext": bool(flags & IS_RNEXT), "good": good, "bad": bad})
    return keys


def sockets_of(process):
    """The TCP sockets of a process, one after the other."""
    pidfd = os.pidfd_open(process)
    for name in os.listdir(f"/proc/{process}/fd"):
        try:
            if not os.readlink(f"/proc/{process}/fd/{name}").startswith("socket:"):
                continue
        except FileNotFoundError:
            continue
        descriptor = libc.syscall(SYS_PIDFD_GETFD, pidfd, int(name), 0)
        if descriptor < 0:
            continue
        with socket.socket(fileno=descriptor) as sock:
            inet = sock.family in (socket.AF_INET, socket.AF_INET6)
            if inet and sock.type == socket.SOCK_STREAM:
                yield sock


def main():
    told = []
    for sock in sockets_of(int(sys.argv[1])):
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        told.append({"listens": bool(listens), "keys": keys_of(sock.fileno())})
    print(json.dumps(told))


if __name__ == "__main__":
    main()
