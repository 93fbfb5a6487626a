#!/usr/bin/env python3
"""Clients of the example servers that end in unusual ways. Each check fails with an exception.

    clients.py echo PORT        for servers that send back what they get
    clients.py push PORT        for servers that send lines

Half-closed clients get all that they are owed; clients that reset, at any moment, and more clients than
the server has descriptors for end nothing but themselves.
"""

import random
import socket
import struct
import sys

SECONDS_MAX = 30
HALF_CLOSE_BYTES = 3_000_000
CHUNK_BYTES = 65_536
# Little, so that a server's writes soon wait for whoever does not read.
RECEIVE_BUFFER_BYTES = 16_384


def connect(port, segment_bytes=None):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    if segment_bytes:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
    client.settimeout(SECONDS_MAX)
    client.connect(("127.0.0.1", port))
    return client


def reset(client):
    """Closes with a reset, whatever is on its way."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def send_some(client, data):
    """Sends what can be sent without waiting. Returns how much that was; a lost connection takes none."""
    client.setblocking(False)
    sent = 0
    try:
        while sent < len(data):
            sent += client.send(data[sent:])
    except OSError:
        pass
    client.settimeout(SECONDS_MAX)
    return sent


def read_to_end(client):
    parts = []
    while part := client.recv(CHUNK_BYTES):
        parts.append(part)
    return b"".join(parts)


def echo_after_half_close(port):
    """Reads only when it cannot send, and shuts down its writing: the rest comes all the same."""
    data = random.randbytes(HALF_CLOSE_BYTES)
    back = b""
    with connect(port) as client:
        sent = 0
        while sent < len(data):
            sent += send_some(client, data[sent:])
            if sent < len(data):
                part = client.recv(CHUNK_BYTES)
                assert part, f"the end after {len(back)} bytes, of {sent} sent"
                back += part
        client.shutdown(socket.SHUT_WR)
        back += read_to_end(client)
    assert back == data, f"{len(back)} of {len(data)} bytes came back"


def echo_as_usual(port):
    with connect(port) as client:
        client.sendall(b"hello")
        back = b""
        while len(back) < 5:
            part = client.recv(5 - len(back))
            assert part, "the end instead of an echo"
            back += part
        assert back == b"hello", back


def push_after_half_close(port):
    with connect(port) as client:
        client.shutdown(socket.SHUT_WR)
        read_lines(client)


def push_as_usual(port):
    with connect(port) as client:
        read_lines(client)


def read_lines(client):
    lines = client.makefile("rb")
    for _ in range(3):
        assert lines.readline().startswith(b"line "), "no line"


def storm_of_resets(port):
    """Resets at all moments: unread, half sent, half echoed, with requests of the server pending."""
    clients = []
    for _ in range(1500):
        client = connect(port)
        send_some(client, bytes(random.choice([0, 5, 20_000, 300_000, 1_000_000])))
        clients.append(client)
        if len(clients) > 16:
            victim = clients.pop(random.randrange(len(clients)))
            # Without linger, it is a reset if there is something unread.
            random.choice([reset, socket.socket.close])(victim)
    for client in clients:
        reset(client)


def crowd(port):
    """More than the server can accept; the backlog has the rest."""
    clients = [connect(port) for _ in range(200)]
    for client in clients:
        client.close()


CHECKS = {
    "echo": [echo_after_half_close, storm_of_resets, crowd, echo_after_half_close, echo_as_usual],
    "push": [push_after_half_close, storm_of_resets, crowd, push_as_usual],
}


if __name__ == "__main__":
    for check in CHECKS[sys.argv[1]]:
        check(int(sys.argv[2]))
