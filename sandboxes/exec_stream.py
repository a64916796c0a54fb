"""The streams of execs: waited for until they end, and, where an agent's socket cannot be reached through the mounted
folder (Docker Desktop), the way to it.

The agent's own program runs in it as a relay, and the engine carries the frames. That is slower and costs an exec for
each connection; what is said is the same. Output does not come this way: it lies in the mounted spool.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import docker

from sandkeep.events import SandkeepError
from sandkeep.sandboxes.engine_errors import errors
from sandkeep.sandboxes.errors import SandboxGone

_HEAD = struct.Struct(">BxxxI")
_STDOUT = 1
_CHUNK = 1 << 16
_SETTLE_SECONDS = 10.0
_SILENCE_SECONDS = 2.0


def attach(
    api: docker.APIClient, container: str, argv: Sequence[str], status: Callable[[], str | None]
) -> socket.socket:
    """A socket that speaks through a program of root's in a container, until either ends or the container does,
    whose `status` the engine tells."""
    with errors(container):
        execution = api.exec_create(container, list(argv), stdin=True, user="0")["Id"]
        stream = api.exec_start(execution, socket=True)
    # The SDK wraps the socket in what it has read the head of the answer from.
    attached = cast(socket.socket, getattr(stream, "_sock", stream))
    attached.settimeout(None)
    return join(attached, partial(_lives, status))


def run(
    api: docker.APIClient,
    container: str,
    argv: Sequence[str],
    environment: Mapping[str, str],
    deadline: float,
    tick: Callable[[], bool],
    tick_seconds: float,
    alive: Callable[[], bool],
) -> int | None:
    """Run a program in a container until its stream ends, and return its exit status; None if it was not waited for any
    longer. What it writes is dropped. Raises `SandboxGone` if the container is not `alive` then."""
    with errors(container):
        execution = str(api.exec_create(container, list(argv), environment=dict(environment))["Id"])
        connection = cast(socket.SocketIO, api.exec_start(execution, socket=True))
    try:
        # What `tick` raises is not the engine's fault.
        if not wait_for_end(connection.fileno(), deadline, tick, tick_seconds):
            return None
    finally:
        connection.close()
    with errors(container):
        settled = time.monotonic() + _SETTLE_SECONDS
        while (found := api.exec_inspect(execution))["Running"] and time.monotonic() < settled:
            time.sleep(0.005)
        if not alive() or found["Running"]:
            raise SandboxGone("the sandbox ended while the command ran; run it again in a new one")
        return int(found["ExitCode"])


def join(engine: socket.socket, alive: Callable[[], bool]) -> socket.socket:
    """A socket that speaks through the attached stream of an exec; the engine's end is closed with it.

    Where gVisor ends a whole container for want of memory, the stream does not end: so in a silence it is asked whether
    there is still somebody to speak.
    """
    ours, theirs = socket.socketpair()
    for way in (partial(_up, engine, theirs), partial(_down, engine, theirs, alive)):
        threading.Thread(target=way, name="sandkeep-relay", daemon=True).start()
    return ours


def _lives(status: Callable[[], str | None]) -> bool:
    with contextlib.suppress(SandkeepError):
        return status() in ("running", "paused")
    return True  # nobody can tell now


def _up(engine: socket.socket, theirs: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := theirs.recv(_CHUNK):
            engine.sendall(data)
    with contextlib.suppress(OSError):
        engine.shutdown(socket.SHUT_WR)


def _down(engine: socket.socket, theirs: socket.socket, alive: Callable[[], bool]) -> None:
    """The engine puts a head before each piece: the number of the stream, and the size."""
    with contextlib.suppress(OSError, EOFError), engine:
        while True:
            stream, size = _HEAD.unpack(_exactly(engine, _HEAD.size, alive))
            data = _exactly(engine, size, alive)
            if stream == _STDOUT:
                theirs.sendall(data)
    with contextlib.suppress(OSError):
        theirs.shutdown(socket.SHUT_RDWR)  # to close it alone tells nobody while the other way reads from it
    theirs.close()


def _exactly(engine: socket.socket, size: int, alive: Callable[[], bool]) -> bytes:
    data, poller = b"", select.poll()
    poller.register(engine, select.POLLIN)
    while len(data) < size:
        while not poller.poll(_SILENCE_SECONDS * 1000):
            if not alive():
                raise EOFError
        more = engine.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def wait_for_end(connection: int, deadline: float, tick: Callable[[], bool], tick_seconds: float) -> bool:
    """Read the connection until its end (true), the deadline, or until `tick` says no."""
    poller = select.poll()
    poller.register(connection, select.POLLIN | select.POLLHUP)
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        if poller.poll(min(remaining, tick_seconds) * 1000):
            with errors():
                if not os.read(connection, 65536):
                    return True
        elif not tick():
            return False
