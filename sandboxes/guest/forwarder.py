"""Inside a sandbox: port 3128 of its loopback, relayed byte by byte to the egress proxy's unix socket, and the places
of services, whose connections are relayed by way of tunnels that the proxy is asked for.

One file that needs nothing but Python's standard library (3.9 or later). It decides nothing: whatever is sent here, the
proxy judges. It holds a lock on the file FORWARDER for as long as it serves, and one on the file SERVICES that it
listens for, which is how the host knows. Another file of that name is followed within a moment.
Exit status: 3 if a port is taken.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import selectors
import socket
import struct
import sys
import time

FOLDER = "/run/sandkeep-egress"
PROXY, FORWARDER, SERVICES = FOLDER + "/proxy.sock", FOLDER + "/forwarder", FOLDER + "/services"
PORT = 3128

PORT_TAKEN = 3
MOST = 256
RETRY_SECONDS, PATIENCE_SECONDS, LOOK_SECONDS = 0.05, 10.0, 0.2
BUFFER = 1 << 17
NO_PROXY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\nsandkeep: the egress proxy is not running\n"
GRANTED = b"HTTP/1.1 200 "
MOST_BYTES = 1 << 16


class PortTaken(Exception):
    """A program in the sandbox has a port that we need."""


class End:
    """One socket of a pair: what waits to be written to it, and which of its directions have ended."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.peer = self
        self.answer: bytearray | None = None
        self.pending = bytearray()
        self.ended = self.shut = False

    def heard(self, data: bytes) -> bytes:
        """What of `data` is for the peer: all of it, but the proxy's answer to a service's request for a tunnel."""
        if self.answer is None:
            return data
        self.answer += data
        head, found, rest = self.answer.partition(b"\r\n\r\n")
        if not found and data:
            return b""
        self.answer = None
        if not found or not head.startswith(GRANTED):
            refuse(self.peer.socket)
            for each in (self, self.peer):
                each.fail()
            return b""
        return bytes(rest)

    def fail(self) -> None:
        """Neither read nor write any more. What its peer is owed is still written."""
        self.ended = self.shut = True
        self.pending.clear()

    def flush(self) -> None:
        """Write what can be written, and end with the peer."""
        try:
            if self.pending:
                del self.pending[: self.socket.send(self.pending)]
            if self.peer.ended and not self.pending and not self.shut:
                self.shut = True
                self.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self.fail()


class Forwarder:
    """All connections, on one thread."""

    def __init__(self, listening: list[socket.socket]) -> None:
        self.selector = selectors.DefaultSelector()
        self.pairs = 0
        self.waiting: list[tuple[socket.socket, str, float]] = []
        self.services: dict[socket.socket, str] = {}
        self.known = -1
        self.due = 0.0
        for each in listening:
            self.selector.register(each, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve for ever."""
        while True:
            if time.monotonic() >= self.due:
                self.look()
                self.due = time.monotonic() + LOOK_SECONDS
            for key, events in self.selector.select(RETRY_SECONDS if self.waiting else LOOK_SECONDS):
                if key.data is None:
                    assert isinstance(key.fileobj, socket.socket)
                    self.accept(key.fileobj)
                elif key.data.socket.fileno() >= 0:  # not closed by its peer in this round
                    self.advance(key.data, events)
            waiting, self.waiting = self.waiting, []
            for client, service, deadline in waiting:
                self.connect(client, service, deadline)

    def look(self) -> None:
        """Listen for the services that there are now. Raises `PortTaken`."""
        with contextlib.suppress(FileNotFoundError):
            if self.known >= 0 and os.path.samestat(os.stat(SERVICES), os.fstat(self.known)):
                return
            file = os.open(SERVICES, os.O_RDONLY)
            wanted = {
                (address, port): f"{name}:{port}" for address, port, name in json.loads(os.read(file, MOST_BYTES))
            }
            for listening in list(self.services):
                service = wanted.pop(listening.getsockname(), None)
                if service is None:
                    self.selector.unregister(listening)
                    del self.services[listening]
                    listening.close()
                else:
                    self.services[listening] = service
            for (address, port), service in wanted.items():
                listening = listen(socket.AF_INET, address, port)
                self.services[listening] = service
                self.selector.register(listening, selectors.EVENT_READ)
            if self.known >= 0:
                os.close(self.known)
            self.known = file
            fcntl.flock(file, fcntl.LOCK_EX)

    def accept(self, listening: socket.socket) -> None:
        """Take a connection and open one to the proxy for it."""
        try:
            client, _ = listening.accept()
        except OSError:
            time.sleep(0.05)  # out of descriptors, until some are closed
            return
        if self.pairs + len(self.waiting) >= MOST:
            client.close()
            return
        client.setblocking(False)
        self.connect(client, self.services.get(listening, ""), time.monotonic() + PATIENCE_SECONDS)

    def connect(self, client: socket.socket, service: str, deadline: float) -> None:
        """Connect a client to the proxy, or by it to a service; while that is being started anew, or is too busy, try
        again later."""
        proxy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        proxy.setblocking(False)
        number = proxy.connect_ex(PROXY)
        if number:
            proxy.close()
            if number != errno.ENOENT and time.monotonic() < deadline:
                self.waiting.append((client, service, deadline))
                return
            with contextlib.suppress(OSError), client:
                if service:
                    refuse(client)
                else:
                    client.send(NO_PROXY)
            return
        ends = End(client), End(proxy)
        ends[0].peer, ends[1].peer = ends[1], ends[0]
        if service:
            ends[1].pending += f"CONNECT {service} HTTP/1.1\r\nHost: {service}\r\n\r\n".encode()
            ends[1].answer = bytearray()
            ends[1].flush()
        self.pairs += 1
        for end in ends:
            self.selector.register(end.socket, selectors.EVENT_READ, end)

    def advance(self, end: End, events: int) -> None:
        """Do what can be done for a socket now."""
        if events & selectors.EVENT_READ and not end.ended and len(end.peer.pending) < BUFFER:
            try:
                data = end.socket.recv(BUFFER)
                end.ended = not data
                end.peer.pending += end.heard(data)
            except BlockingIOError:
                pass
            except OSError:
                end.fail()
        for each in (end, end.peer):
            each.flush()
        if end.shut and end.peer.shut:
            self.pairs -= 1
            for each in (end, end.peer):
                with contextlib.suppress(KeyError):
                    self.selector.unregister(each.socket)
                each.socket.close()
            return
        for each in (end, end.peer):
            self.watch(each)

    def watch(self, end: End) -> None:
        """Wait for what an end can do next."""
        reads = selectors.EVENT_READ if not end.ended and len(end.peer.pending) < BUFFER else 0
        events = reads | (selectors.EVENT_WRITE if end.pending else 0)
        known = self.selector.get_map().get(end.socket)
        if not events:
            if known is not None:
                self.selector.unregister(end.socket)
        elif known is None:
            self.selector.register(end.socket, events, end)
        elif known.events != events:
            self.selector.modify(end.socket, events, end)


def refuse(client: socket.socket) -> None:
    """Let a client see, when its connection is closed, that it was refused and did not just end."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def listen(family: int, address: str, port: int = PORT) -> socket.socket:
    """A listening socket on the loopback. Raises `PortTaken`."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address, port))
        listening.listen(MOST)
    except OSError as error:
        raise PortTaken from error
    listening.setblocking(False)
    return listening


def main() -> int:
    """Serve, unless the port is taken."""
    try:
        listening = [listen(socket.AF_INET, "127.0.0.1")]
        with contextlib.suppress(OSError, PortTaken):  # there may be no IPv6
            listening.append(listen(socket.AF_INET6, "::1"))
        fcntl.flock(os.open(FORWARDER, os.O_RDONLY), fcntl.LOCK_EX)
        Forwarder(listening).run()
    except PortTaken:
        return PORT_TAKEN
    return 0


if __name__ == "__main__":
    sys.exit(main())
