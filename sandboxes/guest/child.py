"""The process that becomes a command: forked before there is one, so that the command need not wait for it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import termios

from sandkeep.sandboxes.guest.processes import execute, yield_memory

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is large, and every fork copies it
    from typing import Any, NoReturn

NICE = 19


class Child:
    """A process that waits to be told what to run, and our ends of its pipes. It is root until it runs something, so
    what runs in the sandbox cannot touch it."""

    def __init__(self, pid: int, go: socket.socket, given: int, out: int, err: int) -> None:
        self.pid = pid
        self.go = go
        self.input, self.out, self.err = given, out, err

    @classmethod
    def forked(cls, setting: dict[str, Any], environment: dict[str, str]) -> Child | None:
        """A new one; None if there are too many processes."""
        given, out, err = os.pipe(), os.pipe(), os.pipe()
        go, ready = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:
            for fd in (*given, *out, *err):
                os.close(fd)
            return None
        if pid == 0:
            go.close()
            _become(ready, [given[0], out[1], err[1]], setting, environment)
        ready.close()
        for fd in (given[0], out[1], err[1]):
            os.close(fd)
        return cls(pid, go, given[1], out[0], err[0])

    def tell(self, spec: dict[str, Any], shown: list[int]) -> None:
        """Have it become a command, on the terminal that is `shown` if there is one. `go` then ends, or says why it
        could not. Raises `OSError` if it was killed."""
        message = json.dumps([spec["argv"], spec["cwd"], spec["env"], spec["stdin"]]).encode()
        socket.send_fds(self.go, [struct.pack("I", len(message))], shown)
        self.go.sendall(message)

    def close(self) -> None:
        """Let go of one that was killed while it waited."""
        self.go.close()
        for fd in (self.input, self.out, self.err):
            os.close(fd)


def _become(ready: socket.socket, shown: list[int], setting: dict[str, Any], environment: dict[str, str]) -> NoReturn:
    """Wait for a command, and turn this process into it."""
    failure = "no-process"
    try:
        os.setsid()
        yield_memory()
        os.nice(NICE)
        signal.set_wakeup_fd(-1)
        for caught in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD):
            signal.signal(caught, signal.SIG_DFL)
        os.setgroups([])
        size, terminals, _, _ = socket.recv_fds(ready, 4, 1)
        if not size:
            os._exit(0)  # nothing was to be run
        (left,), message = struct.unpack("I", size), b""
        while left > len(message):
            message += ready.recv(left - len(message))
        argv, folder, changes, stdin = json.loads(message)
        if terminals:
            fcntl.ioctl(terminals[0], termios.TIOCSCTTY, 0)
            os.set_inheritable(terminals[0], False)
            shown = [*terminals] * 3
        elif not stdin:
            shown[0] = os.open("/dev/null", os.O_RDONLY)
        for number, fd in enumerate(shown):
            os.dup2(fd, number)
        os.setgid(setting["gid"])
        os.setuid(setting["uid"])
        failure = "no-such-folder"
        os.chdir(folder)
        failure = execute(argv, {**environment, **changes})
    finally:
        ready.send(failure.encode())
        os._exit(127)
