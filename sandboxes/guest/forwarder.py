"""Inside a sandbox: port 3128 of its loopback, relayed byte by byte to the egress proxy's unix socket.

One file that needs nothing but Python's standard library (3.9 or later). It decides nothing: whatever is sent here, the
proxy judges. It holds a lock on the file FORWARDER for as long as it serves, which is how the host knows.
Exit status: 3 if the port is taken.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import socket
import sys
import time

FOLDER = "/run/sandkeep-egress"
PROXY, FORWARDER = FOLDER + "/proxy.sock", FOLDER + "/forwarder"
PORT = 3128

PORT_TAKEN = 3
MOST = 256
RETRY_SECONDS, PATIENCE_SECONDS = 0.05, 10.0
BUFFER = 1 << 17
NO_PROXY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\nsandkeep: the egress proxy is not running\n"


class End:
    """One socket of a pair: what waits to be written to it, and which of its directions have ended."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.peer = self
        self.pending = bytearray()
        self.ended = self.shut = False

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
        self.waiting: list[tuple[socket.socket, float]] = []
        for each in listening:
            self.selector.register(each, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve for ever."""
        while True:
            for key, events in self.selector.select(RETRY_SECONDS if self.waiting else None):
                if key.data is None:
                    assert isinstance(key.fileobj, socket.socket)
                    self.accept(key.fileobj)
                elif key.data.socket.fileno() >= 0:  # not closed by its peer in this round
                    self.advance(key.data, events)
            waiting, self.waiting = self.waiting, []
            for client, deadline in waiting:
                self.connect(client, deadline)

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
        self.connect(client, time.monotonic() + PATIENCE_SECONDS)

    def connect(self, client: socket.socket, deadline: float) -> None:
        """Connect a client to the proxy; while that is being started anew, or is too busy, try again later."""
        proxy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        proxy.setblocking(False)
        number = proxy.connect_ex(PROXY)
        if number:
            proxy.close()
            if number != errno.ENOENT and time.monotonic() < deadline:
                self.waiting.append((client, deadline))
                return
            with contextlib.suppress(OSError), client:
                client.send(NO_PROXY)
            return
        ends = End(client), End(proxy)
        ends[0].peer, ends[1].peer = ends[1], ends[0]
        self.pairs += 1
        for end in ends:
            self.selector.register(end.socket, selectors.EVENT_READ, end)

    def advance(self, end: End, events: int) -> None:
        """Do what can be done for a socket now."""
        if events & selectors.EVENT_READ and not end.ended and len(end.peer.pending) < BUFFER:
            try:
                data = end.socket.recv(BUFFER)
                end.ended = not data
                end.peer.pending += data
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


def listen(family: int, address: str) -> socket.socket:
    """A listening socket on the loopback."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((address, PORT))
    listening.listen(MOST)
    listening.setblocking(False)
    return listening


def main() -> int:
    """Serve, unless the port is taken."""
    try:
        listening = [listen(socket.AF_INET, "127.0.0.1")]
    except OSError:
        return PORT_TAKEN
    with contextlib.suppress(OSError):  # there may be no IPv6
        listening.append(listen(socket.AF_INET6, "::1"))
    fcntl.flock(os.open(FORWARDER, os.O_RDONLY), fcntl.LOCK_EX)
    Forwarder(listening).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
