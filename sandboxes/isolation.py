"""Is a sandbox closed? Every way out is tried from inside it, while the host listens where it should not be heard.

The host's listeners are on all its addresses, TCP and UDP, and on an abstract unix socket. That nothing came to them is
a finding of its own, whatever the sandbox says; so a probe that lies or was lied to is found out where it matters most.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import secrets
import selectors
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, final

import msgspec

from sandkeep.sandboxes import caches, execution
from sandkeep.sandboxes.errors import IsolationUnknown
from sandkeep.sandboxes.guest import probe

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep
    from sandkeep.sandboxes.task import Task

_PROBE = Path(probe.__file__).read_text()
_TIMEOUT_SECONDS = 180.0
_BOTH = (socket.AF_INET, socket.AF_INET6)
_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


class Attempt(msgspec.Struct, frozen=True):
    """A way out that was tried, and what was seen."""

    way: str
    what: str
    open: bool
    seen: str


class Isolation(msgspec.Struct, frozen=True):
    """What was found of a task's sandbox. It is closed if no way is open."""

    task: str
    closed: bool
    attempts: tuple[Attempt, ...]

    @property
    def ok(self) -> bool:
        """Whether it is closed."""
        return self.closed


def check(keep: Keep, task: Task | None = None) -> Isolation:
    """Try all ways out of the sandbox of `task`, or of one that is made for this and removed.

    Raises what running a command does, and `IsolationUnknown` if the sandbox gives no account.
    """
    if task is not None:
        return _check(keep, task)
    made = keep.create_task("isolation check")
    try:
        return _check(keep, made)
    finally:
        made.complete("checked")
        made.clean_up()


def _check(keep: Keep, task: Task) -> Isolation:
    with _Listeners() as listeners:
        task.start_sandbox()
        container = str(task.state.container)
        asked = json.dumps(listeners.asked() | _mounted(keep, task.id, container))
        line = [*keep.engine.python(container), "-I", "-S", "-c", _PROBE, asked]
        result = task.execute(line, timeout=_TIMEOUT_SECONDS)
        heard = sorted(listeners.heard)
    said = execution.content(result.stdout, keep.blobs) if result.exit_code == 0 else b""
    try:
        attempts = msgspec.json.decode(said, type=tuple[Attempt, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IsolationUnknown(
            f"the sandbox of task {task.id} gave no account of itself (exit status {result.exit_code}); try again"
        ) from error
    missing = {way for way, _ in probe.WAYS} - {each.way for each in attempts}
    attempts += tuple(Attempt(way, "not tried", True, "the sandbox does not tell") for way in sorted(missing))
    attempts += (Attempt("heard on the host", "from the sandbox", bool(heard), ", ".join(heard) or "nothing"),)
    return Isolation(task.id, not any(each.open for each in attempts), attempts)


def _addresses() -> list[str]:
    """The addresses of this machine but those of the loopback, and the gateway that engines mostly have."""
    found = {"172.17.0.1"}
    with contextlib.suppress(OSError), open("/proc/net/fib_trie") as trie:
        lines = trie.read().splitlines()
        leaves = (line.split()[-1] for line, below in itertools.pairwise(lines) if "/32 host LOCAL" in below)
        found.update(each for each in leaves if not each.startswith("127."))
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as interfaces:
        for line in interfaces:
            address = ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))
            if not (address.is_loopback or address.is_link_local):
                found.add(str(address))
    return sorted(found)


def _mounted(keep: Keep, task: str, container: str) -> dict[str, list[str]]:
    """What a sandbox has mounted beside what all have: its caches, and what is empty and covers its image's volumes."""
    with keep.engine.connected() as client:
        empty = client.api.inspect_container(container)["HostConfig"]["Tmpfs"]
    return {"caches": [f"{caches.MOUNT}/{each.name}" for each in keep.caches.of(task)], "empty": sorted(empty or ())}


@final
class _Listeners:
    """The host's listeners, each on a free port; `heard` is what came to them. A context manager."""

    def __init__(self) -> None:
        self._word, self._name = secrets.token_hex(8), f"sandkeep-{secrets.token_hex(8)}"
        self.heard: set[str] = set()
        self._sockets: list[socket.socket] = []
        self._tcp = self._listen(socket.SOCK_STREAM)
        self._udp = self._listen(socket.SOCK_DGRAM)
        abstract = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        abstract.bind("\0" + self._name)
        abstract.listen()
        self._sockets.append(abstract)
        self._wake, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="sandkeep-isolation", daemon=True)

    def __enter__(self) -> _Listeners:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._end.close()
        self._thread.join()
        for each in (self._wake, *self._sockets):
            each.close()

    def asked(self) -> dict[str, object]:
        """What the probe has to know."""
        ports = {"tcp": self._tcp, "udp": self._udp}
        return {"hosts": _addresses(), "abstract": self._name, "word": self._word, **ports}

    def _listen(self, kind: socket.SocketKind) -> int:
        port = 0
        for family in _BOTH:
            with contextlib.suppress(OSError):  # there may be no IPv6
                listening = socket.socket(family, kind)
                self._sockets.append(listening)
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listening.bind((_ANY[family], port))
                port = listening.getsockname()[1]
                if kind == socket.SOCK_STREAM:
                    listening.listen()
        return int(port)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in (self._wake, *self._sockets):
                each.setblocking(False)
                selector.register(each, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._wake:
                        return
                    assert isinstance(key.fileobj, socket.socket)
                    with contextlib.suppress(OSError):
                        self._hear(key.fileobj)

    def _hear(self, listening: socket.socket) -> None:
        if listening.type == socket.SOCK_DGRAM:
            data, sender = listening.recvfrom(512)
            self.heard.add(f"a datagram from {sender[0]}")
            listening.sendto(data, sender)
            return
        connection, sender = listening.accept()
        with connection:
            self.heard.add(f"a connection from {sender[0] if sender else 'a unix socket'}")
            connection.send(self._word.encode())
