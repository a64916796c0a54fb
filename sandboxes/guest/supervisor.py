"""The supervisor of one command: the process that starts it, owns its pipes, and ends all that it started.

It is the subreaper of the command, so what the command starts stays below it, however it forks. Output goes to files in
the agent's folder as it comes, and what became of the command to another one; both stay until somebody has stored them.
When its time is up, or it wrote too much, or a caller says so, all below is stopped and then killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import termios
import time

from sandkeep.sandboxes.guest.processes import (
    SETTLE_SECONDS,
    adopt,
    emptied,
    execute,
    oom_counter,
    oom_kills,
    resize,
    stopped,
    sweep,
    waiting,
    woken,
    yield_memory,
)
from sandkeep.sandboxes.guest.wire import CHUNK, DATA, MOST_FRAME, Channel, created, received, write_record

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is large, and every fork copies it
    from typing import Any, NoReturn

NICE, HELD_SECONDS = 19, 0.05
PIPE, SETPIPE_SZ = 1 << 16, 1031


class Supervisor:
    """One command, from its request to the end of the last process that it started."""

    def __init__(self, control: socket.socket, setting: dict[str, Any], environment: dict[str, str]) -> None:
        adopt()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.control = control
        self.setting = setting
        self.environment = environment
        self.wake = woken()
        self.callers: list[Channel] = []
        self.readers: dict[int, str] = {}
        self.files: dict[str, int] = {}
        self.sizes = {"out": 0, "err": 0}
        self.full: set[str] = set()
        self.grown: set[int] = set()
        self.input, self.typed, self.typed_all = -1, b"", False
        self.status: int | None = None
        self.alone, self.killed, self.swept, self.done = True, False, True, False
        self.reason, self.id, self.pid = "", "", 0
        self.counter = oom_counter()
        gc.disable()
        self.prepare()

    def serve(self) -> None:
        """Wait for a command, run it, tell what came of it, and stay while anything is left of it."""
        message, (conn,) = received(self.control)
        self.control.setblocking(False)
        job = json.loads(message)
        self.id, self.alone = job["id"], job["alone"]
        self.giver = caller = Channel(socket.socket(fileno=conn))
        self.callers.append(caller)
        until = time.monotonic() + SETTLE_SECONDS
        try:
            while (frame := caller.read(MOST_FRAME)) is None:
                if time.monotonic() > until:
                    raise TimeoutError("the caller does not say what to run")
                select.select([conn], [], [], 1)
        except (OSError, ValueError):  # it left, and nothing was begun
            self.report("ended")
            return
        spec = json.loads(frame[1])
        self.limit, self.terminal, caller.follow = spec["limit"], spec.get("window"), spec.get("follow", False)
        oom, begun = oom_kills(self.counter), time.monotonic()
        failure = self.start(spec)
        if failure:
            self.report("ended")
            self.tell(event="failed", code=failure)
            return
        self.tell(event="started", pid=self.pid)
        deadline = begun + spec["timeout"]
        while self.status is None and not self.reason:
            left = deadline - time.monotonic()
            if left <= 0:
                self.reason = "timeout"
            else:
                self.turn(left)
        if self.reason:
            self.swept = sweep(os.getpid(), set(), self.reap, self.setting["uid"])
        self.collect()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.heed()
        status = 9 if self.status is None else self.status
        self.ended = {
            "event": "ended",
            "id": self.id,
            "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status),
            "reason": self.reason,
            "swept": self.swept,
            "oom": oom_kills(self.counter) > oom and (self.alone or self.killed),
            "duration_ns": int((time.monotonic() - begun) * 1e9),
            "cpu_ns": int((used.ru_utime + used.ru_stime) * 1e9),
            "out": self.sizes["out"],
            "err": self.sizes["err"],
            "full": sorted(self.full),
        }
        write_record(self.setting["folder"], self.ended)
        self.done = True
        self.tell(**self.ended)
        for each in self.callers:
            each.sock.close()
        self.callers = []
        if self.input >= 0:
            os.close(self.input)
            self.input = -1
        self.report("ended")
        self.reason = ""
        while self.reap():  # what it left running goes on, and what that writes is dropped
            self.turn(3600)
            if self.reason:
                sweep(os.getpid(), set(), self.reap, self.setting["uid"])

    def prepare(self) -> bool:
        """Fork the process that will become the command; false if there are too many processes."""
        given, out, err = os.pipe(), os.pipe(), os.pipe()
        go, ready = socket.socketpair()
        try:
            self.pid = os.fork()
        except OSError:
            for fd in (*given, *out, *err):
                os.close(fd)
            return False
        if self.pid == 0:
            go.close()
            self.become(ready, [given[0], out[1], err[1]])
        ready.close()
        for fd in (given[0], out[1], err[1]):
            os.close(fd)
        self.go, self.input, self.readers = go, given[1], {out[0]: "out", err[0]: "err"}
        return True

    def start(self, spec: dict[str, Any]) -> str:
        """Start the command. Returns why it could not be, or nothing."""
        until = time.monotonic() + 2
        self.reap()
        if self.status is not None:  # the kernel ended it while it waited
            self.pid, self.status, self.killed = 0, None, False
        while not self.pid and not self.prepare():
            if time.monotonic() > until:
                return "no-process"
            self.report("starved")
            time.sleep(HELD_SECONDS)
        shown: list[int] = []
        if self.terminal:
            for fd in (*self.readers, self.input):
                os.close(fd)
            # As the task's user, so that the terminal is its own.
            os.seteuid(self.setting["uid"])
            master, slave = os.openpty()
            os.seteuid(0)
            resize(master, self.terminal)
            shown = [slave]
            self.readers, self.input = {master: "out"}, os.dup(master)
        elif not spec["stdin"]:
            os.close(self.input)
            self.input = -1
        for fd in (*self.readers, *([self.input] if self.input >= 0 else [])):
            os.set_blocking(fd, False)
        message = json.dumps([spec["argv"], spec["cwd"], spec["env"], spec["stdin"]]).encode()
        try:
            socket.send_fds(self.go, [struct.pack("I", len(message))], shown)
            self.go.sendall(message)
            while not select.select([self.go], [], [], HELD_SECONDS)[0] and not self.reason:
                if stopped(self.pid):  # before it was the program: what ended commands left running gives way
                    self.report("starved")
                    time.sleep(HELD_SECONDS)
                    os.kill(self.pid, signal.SIGCONT)
                self.heed()
                if time.monotonic() > until + spec["timeout"]:
                    self.reason = "timeout"
            failure = "" if self.reason else self.go.recv(64).decode()
        except OSError:  # it was killed, which only the kernel could do
            failure = "no-memory"
        self.go.close()
        for fd in shown:
            os.close(fd)
        return failure

    def become(self, ready: socket.socket, shown: list[int]) -> NoReturn:
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
            os.setgid(self.setting["gid"])
            os.setuid(self.setting["uid"])
            failure = "no-such-folder"
            os.chdir(folder)
            failure = execute(argv, {**self.environment, **changes})
        finally:
            ready.send(failure.encode())
            os._exit(127)

    def turn(self, seconds: float) -> None:
        """Wait until something happens, and deal with it."""
        ready = select.poll()
        for fd in (self.wake, self.control.fileno(), *self.readers):
            ready.register(fd, select.POLLIN)
        if len(self.typed) < CHUNK:  # who types faster than the command reads has to wait, one who has left too
            for each in self.callers:
                ready.register(each.sock.fileno(), select.POLLIN)
        if self.input >= 0 and self.typed:
            ready.register(self.input, select.POLLOUT)
        for fd, _ in ready.poll(min(seconds, 3600) * 1000 + 1):
            if fd == self.wake:
                emptied(self.wake)
                self.reap()
            elif fd == self.control.fileno():
                self.heed()
            elif fd in self.readers:
                self.take(fd, CHUNK)
            elif fd == self.input:
                self.write_input()
        for each in list(self.callers):
            self.hear(each)

    def heed(self) -> None:
        """Do what the agent says."""
        while True:
            try:
                message, conns = received(self.control)
            except BlockingIOError:
                return
            if not message:
                os._exit(0)
            said = json.loads(message)
            for conn in conns:
                caller = Channel(socket.socket(fileno=conn))
                caller.follow = said.get("follow", False)
                if self.done:
                    caller.say(**self.ended)
                    caller.sock.close()
                else:
                    self.callers.append(caller)
            if said["op"] == "beside":
                self.alone = False
            elif said["op"] == "end":
                self.reason = said["reason"]

    def hear(self, caller: Channel) -> None:
        """Do what a caller says."""
        try:
            while len(self.typed) < CHUNK:
                frame = caller.read(MOST_FRAME)
                if frame is None:
                    return
                kind, body = frame
                if kind == DATA:
                    self.typed += body or (b"\x04" if self.terminal else b"")
                    self.typed_all = not body
                    self.write_input()
                    continue
                said = json.loads(body)
                if said["op"] == "more":
                    caller.told = False
                    # What came between its last look and this would be told with the next output, which may not come.
                    caller.say_grown(sum(self.sizes.values()))
                elif said["op"] == "end":
                    self.reason = said["reason"]
                elif said["op"] == "window" and self.terminal:
                    self.terminal = said["window"]
                    resize(self.input, self.terminal)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            caller.sock.close()
            self.callers.remove(caller)
            if caller is self.giver and self.input >= 0 and not self.typed_all:
                self.reason = self.reason or "abandoned"  # what a command makes of half its input is worth nothing

    def write_input(self) -> None:
        """Give the command what it can take of its input."""
        if self.input < 0:
            self.typed = b""
            return
        try:
            while self.typed:
                self.typed = self.typed[os.write(self.input, self.typed[:CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:  # it has closed its input, and what it did not want is dropped
            self.typed, self.typed_all = b"", True
        if self.typed_all and not self.terminal:
            os.close(self.input)
            self.input = -1

    def take(self, fd: int, most: int) -> int:
        """Move up to `most` bytes from a pipe to the command's file, and return how many there were."""
        name = self.readers[fd]
        try:
            data = os.read(fd, most)
        except BlockingIOError:
            return 0
        except OSError:  # a terminal that nobody has open any more
            data = b""
        if not data:
            os.close(fd)
            del self.readers[fd]
            return 0
        if self.done:
            return len(data)
        if len(data) >= PIPE and fd not in self.grown:
            self.grown.add(fd)
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, SETPIPE_SZ, 1 << 20)
        try:
            if name not in self.files:
                self.files[name] = created(f"{self.setting['folder']}/{self.id}.{name}")
            kept = data[: self.limit - self.sizes[name]]
            self.sizes[name] += (written := os.write(self.files[name], kept))  # less, if there is no more room
            full = written < len(data)
        except OSError:  # the disk is full
            full = True
        if full:
            self.full.add(name)
            self.reason = self.reason or "output"
        for caller in self.callers:
            caller.say_grown(sum(self.sizes.values()))
        return len(data)

    def collect(self) -> None:
        """Take what the command has written and nobody has read. What it left running may go on writing for ever."""
        for fd in list(self.readers):
            if self.terminal:
                os.set_blocking(fd, False)
                while select.select([fd], [], [], 0.02)[0] and self.take(fd, CHUNK):
                    pass
                continue
            size = waiting(fd)
            while size > 0 and fd in self.readers:
                size -= self.take(fd, min(size, CHUNK)) or size

    def reap(self) -> bool:
        """Bury the dead. False if nothing is left below us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and not self.reason:
                self.killed = True
            if pid == self.pid:
                self.status = status
                self.killed = self.killed or (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 137)

    def report(self, event: str) -> None:
        """Tell the agent that the command has "ended", or is "starved" of processes."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps({"event": event}).encode())

    def tell(self, **message: Any) -> None:
        """Tell all callers."""
        for each in self.callers:
            each.say(**message)
