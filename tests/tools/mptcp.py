#!/usr/bin/python3
"""Sends a megabyte over a connection whose both ends ask for MPTCP, as Go
programs do by default: `mptcp.py serve ADDRESS PORT | connect ADDRESS PORT`."""

import socket
import sys

IPPROTO_MPTCP = 262
CONTENT = bytes(range(256)) * 4096


def main():
    role, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    end = socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP)
    end.settimeout(20)
    if role == "connect":
        end.connect((address, port))
        end.sendall(CONTENT)
        end.shutdown(socket.SHUT_WR)
        assert end.recv(2) == b"ok"
        return
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    end.bind((address, port))
    end.listen()
    print("listening", flush=True)
    connection, _ = end.accept()
    connection.settimeout(20)
    received = b""
    while piece := connection.recv(65536):
        received += piece
    assert received == CONTENT
    connection.sendall(b"ok")


if __name__ == "__main__":
    main()
