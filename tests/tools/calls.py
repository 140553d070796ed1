#!/usr/bin/python3
"""Makes the calls of a BGP daemon, one after the other, and tells what became of each.

ACTIONS: connect/ADDRESS/PORT (the connection is kept), unix/PATH, int80 (a system
call of the 32-bit ABI), listen/ADDRESS/PORT. Prints "ready", then, as soon as the
file given by --go exists, a line for each action: the action, "ok" or the errno's
name, milliseconds. With --hold it keeps its sockets until it is killed, and prints
"keys NUMBER MILLISECONDS" (Unix time) whenever the keys of its last listener change.
"""

import argparse
import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
import time

TCP_MD5SIG = 14
TCP_AO_ADD_KEY = 38
TCP_AO_GET_KEYS = 41
# struct tcp_ao_getsockopt: nkeys is at 272, after it a bit field whose bit 2 is get_all.
GET_KEYS = struct.Struct("=272xIH26x")
GET_ALL = 1 << 2
INTERVAL = 0.02


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def sockaddr_storage(address):
    packed = socket.inet_pton(family_of(address), address)
    if len(packed) == 4:
        return struct.pack("=HH4s120x", socket.AF_INET, 0, packed)
    return struct.pack("=HHI16sI100x", socket.AF_INET6, 0, 0, packed, 0)


def set_md5(sock, address):
    """A TCP-MD5 password: the kernel's struct tcp_md5sig."""
    secret = b"md5"
    sock.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, struct.pack(
        "=128sBBHI80s", sockaddr_storage(address), 0, 0, len(secret), 0, secret))


def endpoint(address, arguments):
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    sock.settimeout(arguments.patience)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if arguments.md5:
        set_md5(sock, arguments.md5)
    return sock


def int80():
    """getpid of the 32-bit ABI, by a few octets of machine code."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # mov eax, 20; int 0x80; ret
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    entry = ctypes.addressof(ctypes.c_char.from_buffer(code))
    answer = ctypes.CFUNCTYPE(ctypes.c_int)(entry)()
    if answer < 0:
        raise OSError(-answer, "int 0x80")
    if answer != os.getpid():
        raise OSError(errno.EPROTO, "not the process id")


def act(action, arguments, kept):
    verb, *rest = action.split("/", 1)
    if verb == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        kept.append(sock)
        sock.connect(rest[0])
    elif verb == "int80":
        int80()
    else:
        address, port = rest[0].split("/")
        sock = endpoint(address, arguments)
        kept.append(sock)
        if verb == "connect":
            sock.connect((address, int(port)))
        else:
            sock.bind((address, int(port)))
            sock.listen(1024)


def keys_of(sock):
    """How many keys a socket has."""
    value = ctypes.create_string_buffer(GET_KEYS.pack(1, GET_ALL), GET_KEYS.size)
    length = ctypes.c_uint32(GET_KEYS.size)
    libc = ctypes.CDLL(None, use_errno=True)
    code = libc.getsockopt(sock.fileno(), socket.IPPROTO_TCP, TCP_AO_GET_KEYS, value,
                           ctypes.byref(length))
    if code:
        number = ctypes.get_errno()
        if number == errno.ENOENT:
            return 0
        raise OSError(number, "TCP_AO_GET_KEYS")
    return GET_KEYS.unpack(value.raw)[0]


def hold(kept):
    last = None
    while True:
        number = keys_of(kept[-1])
        if number != last:
            last = number
            print("keys", number, round(time.time() * 1000), flush=True)
        time.sleep(INTERVAL)


def plain(count):
    """The cost of as many keys added by nothing but system calls, in milliseconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        secret = b"a secret of the tests"
        began = time.monotonic()
        for number in range(count):
            address = f"10.{1 + number // 500}.{number // 2 % 250}.9"
            sock.setsockopt(socket.IPPROTO_TCP, TCP_AO_ADD_KEY, struct.pack(
                "=128s64siIHBBBBBB80s", sockaddr_storage(address), b"hmac(sha1)", 0, 0, 0, 32,
                1 + number % 2 * 2, 2 + number % 2 * 2, 12, 0, len(secret), secret))
        return round((time.monotonic() - began) * 1000)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("actions", nargs="*")
    parser.add_argument("--go", help="file to wait for")
    parser.add_argument("--md5", help="set a TCP-MD5 password for this address first")
    parser.add_argument("--patience", type=float, default=5, help="seconds for each action")
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--plain-keys", type=int, help="add so many keys and tell the time")
    arguments = parser.parse_args()
    if arguments.plain_keys:
        print("plain", plain(arguments.plain_keys))
        return
    print("ready", flush=True)
    while arguments.go and not os.path.exists(arguments.go):
        time.sleep(INTERVAL)
    kept = []
    for action in arguments.actions:
        began = time.monotonic()
        try:
            act(action, arguments, kept)
            result = "ok"
        except TimeoutError:
            result = "timeout"
        except OSError as error:
            result = errno.errorcode.get(error.errno, str(error))
        print(action, result, round((time.monotonic() - began) * 1000), flush=True)
    print("done", flush=True)
    if arguments.hold:
        hold(kept)


if __name__ == "__main__":
    sys.exit(main())
