"""Frames: how the agent of a sandbox is talked to, from both sides. See docs/reference/agent-protocol.md.

A frame is the size of its body (4 bytes, big-endian), a kind (1 byte: 0 for a JSON object, 1 for a command's input) and
the body.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is large, and every fork copies it
    from typing import Any

VERSION = 2
HEAD = struct.Struct(">IB")
JSON, DATA = 0, 1
MOST_REQUEST, MOST_FRAME = 4096, 1 << 20
CHUNK = 1 << 18


class Channel:
    """A connection, read a frame at a time and never further, so that it can be handed to another process."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.begun = b""
        self.follow = self.told = False
        self.told_of = 0
        sock.setblocking(False)

    def read(self, most: int) -> tuple[int, bytes] | None:
        """The next frame, or None if it has not come completely. Raises `OSError` at the end, `ValueError` if bad."""
        while True:
            size = kind = 0
            if len(self.begun) >= HEAD.size:
                size, kind = HEAD.unpack_from(self.begun)
                if size > most or kind not in (JSON, DATA):
                    raise ValueError("no such frame")
                if len(self.begun) == HEAD.size + size:
                    frame, self.begun = self.begun[HEAD.size :], b""
                    return kind, frame
            try:
                data = self.sock.recv(HEAD.size + size - len(self.begun))
            except BlockingIOError:
                return None
            if not data:
                raise ConnectionResetError("the caller is gone")
            self.begun += data

    def say(self, **message: Any) -> None:
        """Send a message. A caller that does not listen is forgotten: what it misses it finds in the folder."""
        body = json.dumps(message).encode()
        with contextlib.suppress(OSError):
            self.sock.send(HEAD.pack(len(body), JSON) + body)

    def hand(self, given: socket.socket, **message: Any) -> None:
        """Send a message, and with it a descriptor."""
        body = json.dumps(message).encode()
        with contextlib.suppress(OSError):
            socket.send_fds(self.sock, [HEAD.pack(len(body), JSON) + body], [given.fileno()])

    def say_grown(self, size: int) -> None:
        """Say that there is more output than when that was last said, unless the caller has not asked for more yet."""
        if self.follow and not self.told and self.told_of != size:
            self.told, self.told_of = True, size
            self.say(event="grew")


def received(control: socket.socket) -> tuple[bytes, list[int]]:
    """A message with the descriptors that came along, which no program is to inherit. Raises `OSError`."""
    message, found, _, _ = socket.recv_fds(control, MOST_REQUEST, 1)
    for each in found:
        os.set_inheritable(each, False)  # `recv_fds` passes on no flag that would do so at once
    return message, found


def created(path: str) -> int:
    """A new file to write to. Raises `OSError`, also if there is one."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


def write_record(folder: str, record: dict[str, Any]) -> None:
    """Write down what became of a command, so that it is there completely or not at all."""
    path, body = f"{folder}/{record['id']}", json.dumps(record).encode()
    with contextlib.suppress(OSError):
        file = created(f"{path}.new")
        try:
            complete = os.write(file, body) == len(body)
        finally:
            os.close(file)
        if complete:
            os.rename(f"{path}.new", f"{path}.end")


def check_id(name: Any) -> str:
    """The id of a command, which is a part of names of files. Raises `ValueError`."""
    if not (isinstance(name, str) and 0 < len(name) <= 64 and name.isalnum()):
        raise ValueError("no id")
    return name


def relay(folder: str) -> None:
    """Join our standard streams with the agent, for callers that cannot reach its socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{folder}/agent.sock")
        ways = {0: sock.fileno(), sock.fileno(): 1}
        while ways:
            for source in select.select(list(ways), [], [])[0]:
                data = os.read(source, CHUNK)
                if not data:
                    if source != 0:
                        return
                    sock.shutdown(socket.SHUT_WR)
                    del ways[0]
                while data:
                    data = data[os.write(ways[source], data) :]
