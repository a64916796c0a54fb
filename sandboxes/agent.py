"""Talking to the agent of a sandbox: the host's side of docs/reference/agent-protocol.md.

A `Connection` is used by one thread, for one command or for questions. What the agent says is the sandbox's word: it is
decoded by type and never trusted with a name or a size. Errors: a connection that breaks is `Broken`, which who waits
for a command deals with, since the command does not depend on it; what the agent will not do is `Refused`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, final

import msgspec

from sandkeep.sandboxes import spool, workspace
from sandkeep.sandboxes.errors import SandboxGone
from sandkeep.sandboxes.guest.wire import CHUNK, DATA, HEAD, JSON, VERSION
from sandkeep.sandboxes.spool import Ended

HELLO_SECONDS = 0.5
"""How long an agent that does not answer is given before the engine is asked about its container."""

RELAY_SECONDS = 5.0
"""How long it is given by way of the engine, which has to start a program for that."""

STOPPED = "stopped"
"""Why a command was ended that somebody stopped."""

_ANSWER_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_AGAIN_SECONDS = 0.02
_MOST_MESSAGE = 1 << 20

Window = tuple[int, int]
"""Rows and columns of a terminal."""


class Broken(Exception):
    """The connection to the agent broke, or the agent said what makes no sense."""


class Refused(Exception):
    """The agent cannot do that; `code` says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Spec(msgspec.Struct, frozen=True):
    """A command for the agent. `stdin` says that input follows; with a `window` it gets a terminal of that size."""

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    timeout: float
    limit: int
    stdin: bool = False
    follow: bool = False
    window: Window | None = None


class Left(msgspec.Struct, frozen=True):
    """A command that the agent knows: it runs, or has `ended` and left something running."""

    id: str
    ended: bool


class Message(msgspec.Struct, frozen=True):
    """What the agent says: which fields it has depends on `event`."""

    event: str
    code: str = ""
    sandbox: str = ""
    version: int = 0
    commands: tuple[Left, ...] = ()


_message = msgspec.json.Decoder(Message)
_ended = msgspec.json.Decoder(Ended)


@final
class Connection:
    """A connection to the agent of one sandbox. Use as a context manager."""

    def __init__(self, sock: socket.socket, sandbox: str) -> None:
        self.sock = sock
        self._sandbox = sandbox
        self._begun, self._out = bytearray(), bytearray()
        self._source: BinaryIO | None = None
        self._source_fd: int | None = None
        sock.setblocking(False)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *details: object) -> None:
        self.sock.close()

    def hello(self, seconds: float) -> bool:
        """Whether the agent of the sandbox that we mean answers in time. Raises `Broken`."""
        self._ask("hello")
        message = self._expect("hello", seconds)
        return message is not None and (message.version, message.sandbox) == (VERSION, self._sandbox)

    def commands(self) -> tuple[Left, ...]:
        """The commands that run, or have ended and left something running. Raises `Broken`."""
        self._ask("list")
        message = self._expect("list", _ANSWER_SECONDS)
        if message is None:
            raise Broken("it does not answer")
        return message.commands

    def run(self, command: str, spec: Spec) -> None:
        """Have a command run. What comes of it is told by `next`."""
        self._ask("run", id=command, sandbox=self._sandbox)
        self.send(msgspec.json.encode(spec))

    def attach(self, command: str, *, follow: bool = False) -> None:
        """Be told what becomes of a command."""
        self._ask("attach", id=command, follow=follow)

    def end(self, command: str, reason: str) -> None:
        """Have a command ended, and be told what became of it. One that has not begun never will."""
        self._ask("end", id=command, reason=reason)

    def dial(self, port: int, family: Literal[4, 6], seconds: float) -> socket.socket:
        """A connection to a port of the sandbox's loopback, made within so many seconds. Raises `Broken`, `Refused` and
        `OSError`."""
        self._ask("connect", port=port, family=family)
        ready = select.poll()
        ready.register(self.sock, select.POLLIN)
        if not ready.poll(seconds * 1000):
            raise Broken("it does not answer")
        data, given, _, _ = socket.recv_fds(self.sock, CHUNK, 1, socket.MSG_CMSG_CLOEXEC)
        self._begun += data
        made = [_adopted(each) for each in given]
        try:
            if self._expect("connected", seconds) is None or not made or made[0] is None:
                raise Broken("it hands over no connection")
            _await_made(made[0], seconds)
        except BaseException:
            for each in made:
                if each is not None:
                    each.close()
            raise
        return made[0]

    def say(self, **message: Any) -> None:
        """Tell the command's supervisor something."""
        self.send(msgspec.json.encode(message))

    def send(self, body: bytes, kind: int = JSON) -> None:
        """Send a frame, as far as the agent takes it now; `next` sends the rest, and finds if it took none."""
        self._out += HEAD.pack(len(body), kind) + body
        self._flush()

    def feed(self, source: BinaryIO) -> None:
        """Give the command `source` as its input, while `next` is called. Nothing is read faster than it is taken."""
        self._source = source
        with contextlib.suppress(OSError, AttributeError):
            self._source_fd = source.fileno()

    def next(self, seconds: float) -> Message | Ended | None:
        """What the agent says next; None if nothing comes in time. Raises `Broken`, and `Refused`."""
        deadline = time.monotonic() + seconds
        while True:
            if len(self._begun) >= HEAD.size:
                size, _ = HEAD.unpack_from(self._begun)
                if size > _MOST_MESSAGE:
                    raise Broken("it says too much")
                if len(self._begun) >= HEAD.size + size:
                    body = bytes(self._begun[HEAD.size : HEAD.size + size])
                    del self._begun[: HEAD.size + size]
                    return _read(body)
            if not self._turn(deadline - time.monotonic()):
                return None

    def _turn(self, seconds: float) -> bool:
        """Send, receive or read input, whichever can be done first; false if nothing can in time."""
        ready = select.poll()
        ready.register(self.sock, select.POLLIN | (select.POLLOUT if self._out else 0))
        if self._source is not None and not self._out:
            if self._source_fd is None:
                self._give(self._source.read(CHUNK))
                return True
            ready.register(self._source_fd, select.POLLIN)
        events = ready.poll(max(seconds, 0) * 1000)
        for fd, event in events:
            if fd == self._source_fd:
                self._give(os.read(fd, CHUNK))
            elif event & select.POLLOUT:
                self._flush()
            else:
                try:
                    data = self.sock.recv(CHUNK)
                except OSError as error:
                    raise Broken(str(error)) from error
                if not data:
                    raise Broken("it hung up")
                self._begun += data
        return bool(events)

    def _give(self, data: bytes) -> None:
        self.send(data, DATA)
        if not data:
            self._source = None
            self._source_fd = None

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            # Why it hung up may be waiting to be read.
            self._out.clear()
            self._source, self._source_fd = None, None

    def _ask(self, op: str, **details: Any) -> None:
        self.say(version=VERSION, op=op, **details)

    def _expect(self, event: str, seconds: float) -> Message | None:
        message = self.next(seconds)
        if message is not None and (isinstance(message, Ended) or message.event != event):
            raise Broken("it says something else")
        return message


def _adopted(descriptor: int) -> socket.socket | None:
    """What an agent has handed over, if it is a socket of the kind that it was asked for."""
    try:
        given = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        return None
    if given.family in (socket.AF_INET, socket.AF_INET6) and given.type == socket.SOCK_STREAM:
        return given
    given.close()
    return None


def _await_made(connection: socket.socket, seconds: float) -> None:
    ready = select.poll()
    ready.register(connection, select.POLLOUT)
    if not ready.poll(seconds * 1000):
        raise TimeoutError(errno.ETIMEDOUT, "nobody takes the connection")
    number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))


def _read(body: bytes) -> Message | Ended:
    try:
        message = _message.decode(body)
        if message.event == "ended":
            return _ended.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Broken("it makes no sense") from error
    if message.event == "failed":
        raise Refused(message.code)
    return message


def connect(folder: Path, sandbox: str) -> Connection | None:
    """A connection to the agent whose spool is `folder`; None if there is none, or it is the task that listens there.

    The folder is gone through by descriptor, since the address of a socket holds no more than 107 bytes.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.settimeout(HELLO_SECONDS)
            sock.connect(f"/proc/self/fd/{descriptor}/agent.sock")
        finally:
            os.close(descriptor)
        _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid == workspace.owner()[0]:
            raise PermissionError(errno.EPERM, "that is not the agent")
    except OSError:
        sock.close()
        return None
    return Connection(sock, sandbox)


def greet(folder: Path, sandbox: str, seconds: float = HELLO_SECONDS) -> Connection | None:
    """As `connect`, to an agent that has answered."""
    connection = connect(folder, sandbox)
    if connection is not None:
        with contextlib.suppress(Broken, Refused):
            if connection.hello(seconds):
                return connection
        connection.sock.close()
    return None


Reconnect = Callable[[], Connection | None]


def wait(
    connection: Connection,
    files: spool.Spool,
    command: str,
    seconds: float,
    pump: Callable[[], None] | None,
    reconnect: Reconnect,
    window: Callable[[], Window] | None = None,
    stop: threading.Event | None = None,
    reason: str = "",
) -> Ended | None:
    """Wait until a command has ended; None if nothing is heard for `seconds`, and `SandboxGone` if nobody knows.

    A connection that breaks is made again: the command does not depend on it. If the connection was made to end it, for
    a `reason`, so is the next one: an agent hangs up on who comes while its supervisor does not listen. Once `stop` is
    set it is ended, with all that it started. Raises `Refused`.
    """
    deadline = time.monotonic() + seconds
    size = None if window is None else window()
    longest, told = (math.inf if window is None and stop is None else _LOOK_SECONDS), False
    while True:
        try:
            left = deadline - time.monotonic()
            message = connection.next(min(left, longest))
            if stop is not None and stop.is_set() and not told:
                connection.say(op="end", reason=STOPPED)
                told = True
            if window is not None and size != (size := window()):
                connection.say(op="window", window=size)
            if isinstance(message, Ended) or (message is None and time.monotonic() >= deadline):
                return message
            if message is None:
                continue
            if message.event == "unknown":
                break
            if message.event == "grew" and pump is not None:
                connection.say(op="more")
                pump()
        except Broken:
            if (ended := written(files, command)) is not None:
                return ended
            if time.monotonic() >= deadline:
                return None
            time.sleep(_AGAIN_SECONDS)
            again = reconnect()
            if again is None:
                break
            connection.sock.close()
            connection, told = again, False
            if reason:
                connection.end(command, reason)
            else:
                connection.attach(command, follow=pump is not None)
    if (ended := written(files, command)) is not None:
        return ended
    raise SandboxGone("the sandbox ended while the command ran; run it again in a new one")


def written(files: spool.Spool, command: str) -> Ended | None:
    """What was written down about a command, if it makes sense."""
    try:
        ended = files.ended()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return ended if ended is not None and ended.id == command else None
