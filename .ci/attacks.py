#!/usr/bin/env python3
"""Attacks on an echo server, and what an ordinary client feels of them.

    attacks.py PORT PID

Each row is one attack: while it lasts and once it is over, an ordinary client is answered as soon as
ever, and the server, which has nothing to do then, uses no CPU, no threads and little memory. The bounds
are far from what a busy machine does by itself, and far below what a fault does. Exits with 1 if a row
is out of them.
"""

import os
import socket
import sys
import time

from clients import connect, reset, send_some

# An ordinary client that is not served gives up after this.
PATIENCE_SECONDS = 3
ROUNDS = 15

MEDIAN_SECONDS_MAX = 0.1
WORST_SECONDS_MAX = 1.0
THREADS_MAX = 4
CPU_SHARE_MAX = 0.05
SETTLE_SECONDS_MAX = 10
# All swap buffers of the default options are 16 MiB, and 300 connections may hold 8 KiB more each.
MEMORY_MIB_MAX = 40

FLOOD = bytes(1 << 20)
QUIET_SECONDS = 0.3
FLOOD_SECONDS_MAX = 5
# So much that the server cannot send it back to one that does not read, and so little that the end, which
# comes after it, still reaches the server. Small segments make the server's send buffer small.
STUCK_BYTES = 800_000
SMALL_SEGMENT_BYTES = 536


class Server:
    """What Linux tells about a process."""

    def __init__(self, pid):
        self.directory = f"/proc/{pid}"
        self.threads_at_first = self.threads()
        self.memory_mib_at_first = self.memory_mib()

    def threads(self):
        return len(os.listdir(f"{self.directory}/task"))

    def memory_mib(self):
        with open(f"{self.directory}/statm") as statm:
            pages = int(statm.read().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") >> 20

    def cpu_seconds(self):
        with open(f"{self.directory}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def idle_cpu_share(self):
        """What it uses once it has settled: at most so long, what it was sent may keep it busy."""
        end = time.monotonic() + SETTLE_SECONDS_MAX
        while True:
            start, before = time.monotonic(), self.cpu_seconds()
            time.sleep(0.5)
            share = (self.cpu_seconds() - before) / (time.monotonic() - start)
            if share <= CPU_SHARE_MAX or time.monotonic() > end:
                return share


def waits(port):
    """How long an ordinary client waits, round by round, sorted; one that is not served ends it."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.monotonic()
        try:
            with connect(port) as client:
                client.settimeout(PATIENCE_SECONDS)
                client.sendall(b"hello")
                served = client.recv(5, socket.MSG_WAITALL) == b"hello"
        except OSError:
            served = False
        seconds.append(time.monotonic() - start if served else float("inf"))
        if not served:
            break
    return sorted(seconds)


def flood(clients, bytes_max=float("inf")):
    """Everybody sends, until that is so much or nothing can be sent any more."""
    left = dict.fromkeys(clients, bytes_max)
    quiet_since = time.monotonic()
    end = quiet_since + FLOOD_SECONDS_MAX
    while left and quiet_since + QUIET_SECONDS > time.monotonic() < end:
        for client in list(left):
            sent = send_some(client, FLOOD[: min(left[client], len(FLOOD))])
            left[client] -= sent
            if sent:
                quiet_since = time.monotonic()
            if not left[client]:
                del left[client]
        time.sleep(0.01)


def nothing(port):
    return []


def never_read(port, count):
    clients = [connect(port) for _ in range(count)]
    flood(clients)
    return clients


def half_close_and_never_read(port, count):
    clients = [connect(port, segment_bytes=SMALL_SEGMENT_BYTES) for _ in range(count)]
    flood(clients, STUCK_BYTES)
    for client in clients:
        client.shutdown(socket.SHUT_WR)
    return clients


def urgent_bytes_and_never_read(port, count):
    clients = [connect(port, segment_bytes=SMALL_SEGMENT_BYTES) for _ in range(count)]
    for client in clients:
        client.send(b"!", socket.MSG_OOB)
    flood(clients, STUCK_BYTES)
    for client in clients:
        client.send(b"!", socket.MSG_OOB)
    return clients


def one_byte_and_silence(port, count):
    clients = [connect(port) for _ in range(count)]
    for client in clients:
        client.send(b"a")
    return clients


def resets(port, count):
    for _ in range(count):
        client = connect(port)
        send_some(client, FLOOD[:200_000])
        reset(client)
    return []


# More than 256 clients that each hold a whole swap buffer, and more than 32 that each hold the window of
# a stream, are more than a server has with the default options.
ATTACKS = [
    ("nobody else", nothing, {}),
    ("40 never read", never_read, {"count": 40}),
    ("300 never read", never_read, {"count": 300}),
    ("50 half-close and never read", half_close_and_never_read, {"count": 50}),
    ("50 send urgent bytes and never read", urgent_bytes_and_never_read, {"count": 50}),
    ("800 send a byte and stay", one_byte_and_silence, {"count": 800}),
    ("500 resets", resets, {"count": 500}),
]


def is_served(seconds):
    return seconds[len(seconds) // 2] <= MEDIAN_SECONDS_MAX and seconds[-1] <= WORST_SECONDS_MAX


def row(server, port, name, attack, numbers):
    """One attack; true if it harms nobody."""
    clients = attack(port, **numbers)
    cpu_share = server.idle_cpu_share()
    during = waits(port)
    threads = server.threads() - server.threads_at_first
    memory_mib = server.memory_mib() - server.memory_mib_at_first
    for client in clients:
        client.close()
    afterwards = waits(port)
    good = (
        is_served(during)
        and is_served(afterwards)
        and threads <= THREADS_MAX
        and memory_mib <= MEMORY_MIB_MAX
        and cpu_share <= CPU_SHARE_MAX
    )
    print(
        f"   {'good' if good else 'BAD '} {name}: an ordinary client waits {told(during)}, afterwards "
        f"{told(afterwards)}; threads {threads:+}, memory {memory_mib:+} MiB, idle CPU {cpu_share:.0%}",
        flush=True,
    )
    return good


def told(seconds):
    if seconds[-1] == float("inf"):
        return "for ever"
    return f"{seconds[len(seconds) // 2] * 1000:.1f} ms (at most {seconds[-1] * 1000:.0f})"


def main(port, pid):
    server = Server(pid)
    results = []
    for name, attack, numbers in ATTACKS:
        try:
            results.append(row(server, port, name, attack, numbers))
        except OSError as error:
            print(f"   BAD  {name}: {error}; is the server gone?")
            return False
    return all(results)


if __name__ == "__main__":
    sys.exit(not main(int(sys.argv[1]), int(sys.argv[2])))
