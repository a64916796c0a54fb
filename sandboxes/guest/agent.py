"""The agent of a sandbox, its PID 1: runs commands as the task's user, and is asked over a unix socket in a folder that
the task cannot enter. The protocol is docs/reference/agent-protocol.md. Nothing but the standard library, Python 3.9.

Each command that runs has a supervisor to itself (see `supervisor`), which was forked before it was needed and is
handed the caller's connection, so that no command's output delays another. Agent and supervisors are root without the
right to anything but to end processes and to become another user: the task's processes can neither signal, trace nor
read them.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable

from sandkeep.sandboxes.guest import filter
from sandkeep.sandboxes.guest.processes import emptied, harden, sweep, woken
from sandkeep.sandboxes.guest.supervisor import supervise
from sandkeep.sandboxes.guest.wire import MOST_REQUEST, VERSION, Channel, check_id, relay, write_record

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is large, and every fork copies it
    from typing import Any, NoReturn

SPARES = 2
BUSY_MS, IDLE_MS = 20, 1000
NOBODY = 65534
LOOPBACK = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}


class Job:
    """A supervisor as the agent sees it; a spare one until it has an id."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control
        self.id = ""
        self.begun = 0.0
        self.ended = False

    def say(self, conn: socket.socket | None = None, **message: Any) -> None:
        """Tell the supervisor something, and hand it a connection."""
        with contextlib.suppress(OSError):
            socket.send_fds(self.control, [json.dumps(message).encode()], [conn.fileno()] if conn else [])


class Agent:
    """PID 1: answers callers, hands commands to supervisors, keeps helpers going, and buries the dead."""

    def __init__(self, setting: dict[str, Any]) -> None:
        with open("/proc/self/environ", "rb") as file:
            pairs = (os.fsdecode(each).partition("=") for each in file.read().split(b"\0") if each)
            self.environment = {name: value for name, _, value in pairs}
        self.setting = setting
        self.wake = woken()
        self.callers: dict[int, Channel] = {}
        self.jobs: list[Job] = []
        self.helpers: dict[int, list[str]] = {}
        self.due: list[tuple[float, list[str]]] = []
        self.answers: dict[str, Callable[[Channel, dict[str, Any]], None]] = {
            "hello": self.hello,
            "list": self.list_jobs,
            "run": self.take,
            "attach": self.join,
            "end": self.end,
            "connect": self.connect,
        }
        self.refused: set[str] = set()
        with open(f"{setting['folder']}/sandbox") as file:
            self.sandbox = file.read()
        path = f"{setting['folder']}/agent.sock"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.setblocking(False)
        self.listener.bind(path)
        os.chmod(path, 0o666)  # who may come to it is said by the folders above
        self.listener.listen(128)
        for argv in setting["helpers"]:
            self.help(argv)

    def run(self) -> NoReturn:
        """Serve for ever. Supervisors are forked when nothing else is to be done, or none is left. Those that are more
        than needed are let go when there was nothing to be done for a while."""
        while True:
            ready = select.poll()
            for fd in (self.listener.fileno(), self.wake, *self.callers, *(job.control.fileno() for job in self.jobs)):
                ready.register(fd, select.POLLIN)
            spares = sum(not job.id for job in self.jobs)
            busy = any(job.id and not job.ended for job in self.jobs)
            if spares < SPARES:
                wait: int | None = BUSY_MS if spares and busy else 0
            elif self.due:
                wait = 500
            else:
                wait = IDLE_MS if spares > SPARES else None
            events = [fd for fd, _ in ready.poll(wait)]
            if not events and spares < SPARES and self.fork() is None:
                time.sleep(0.05)
            if not events and spares > SPARES:
                self.let_go()
            for argv in [argv for moment, argv in self.due if moment <= time.monotonic()]:
                self.help(argv)
            for fd in events:
                if fd == self.listener.fileno():
                    self.accept()
                elif fd == self.wake:
                    emptied(self.wake)
                    self.reap()
                elif fd in self.callers:
                    self.hear(self.callers[fd])
                else:
                    for job in [job for job in self.jobs if job.control.fileno() == fd]:
                        self.heed(job)

    def fork(self) -> Job | None:
        """Another supervisor, unless there are as many processes as there may be."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # nobody waits for a supervisor that does not listen
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            self.starved()
            return None
        if pid == 0:
            try:
                for each in (ours, self.listener, *(job.control for job in self.jobs)):
                    each.close()
                for caller in self.callers.values():
                    caller.sock.close()
                os.close(self.wake)
                supervise(theirs, self.setting, self.environment)
            finally:
                os._exit(0)
        theirs.close()
        self.jobs.append(Job(pid, ours))
        return self.jobs[-1]

    def let_go(self) -> None:
        """Let spare supervisors end that are too many."""
        for job in [job for job in self.jobs if not job.id][SPARES:]:
            self.jobs.remove(job)
            job.control.close()

    def help(self, argv: list[str]) -> None:
        """Start a helper, as a user of its own. Whenever it ends it is started again, a moment later."""
        self.due = [(moment, other) for moment, other in self.due if other != argv]
        try:
            pid = os.fork()
        except OSError:
            self.due.append((time.monotonic() + 1, argv))
            return
        if pid:
            self.helpers[pid] = argv
            return
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.execvpe(argv[0], argv, self.environment)
        finally:
            os._exit(127)

    def starved(self) -> None:
        """There can be no more processes: what commands that have ended left running has to give way."""
        self.let_go()
        for job in self.jobs:
            if job.ended:
                job.say(op="end", reason="starved")

    def accept(self) -> None:
        """Take a caller in, if it comes from outside of the sandbox or is root: the task is neither."""
        with contextlib.suppress(OSError):
            conn, _ = self.listener.accept()
            pid, uid, _ = struct.unpack("iII", conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if pid == 0 or uid == 0:
                self.callers[conn.fileno()] = Channel(conn)
            else:
                conn.close()

    def hear(self, caller: Channel) -> None:
        """Do what a caller asks for."""
        try:
            frame = caller.read(MOST_REQUEST)
            if frame is not None:
                said = json.loads(frame[1])
                if said["version"] != VERSION:
                    caller.say(event="failed", code="version", version=VERSION)
                    raise ValueError("a version that is not ours")
                self.answers[said["op"]](caller, said)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            self.drop(caller)

    def drop(self, caller: Channel) -> None:
        """Close a connection, or our end of one that a supervisor has now."""
        self.callers.pop(caller.sock.fileno(), None)
        caller.sock.close()

    def hello(self, caller: Channel, said: dict[str, Any]) -> None:
        """Who we are."""
        caller.say(event="hello", version=VERSION, sandbox=self.sandbox)

    def list_jobs(self, caller: Channel, said: dict[str, Any]) -> None:
        """What runs: the commands, and those that have ended and left something running."""
        caller.say(event="list", commands=[{"id": job.id, "ended": job.ended} for job in self.jobs if job.id])

    def take(self, caller: Channel, said: dict[str, Any]) -> None:
        """Hand a command to a supervisor. No id is run twice."""
        name = check_id(said["id"])
        if said["sandbox"] != self.sandbox:
            caller.say(event="failed", code="other-sandbox")
        elif name in self.refused or any(job.id == name for job in self.jobs) or self.record(name):
            caller.say(event="failed", code="known")
        else:
            job = next((job for job in self.jobs if not job.id), None) or self.fork()
            if job is None:
                caller.say(event="failed", code="no-process")
            else:
                beside = [other for other in self.jobs if other.id and not other.ended]
                for other in beside:
                    other.say(op="beside")
                job.id, job.begun = name, time.monotonic()
                job.say(caller.sock, op="run", id=name, alone=not beside)
        self.drop(caller)

    def join(self, caller: Channel, said: dict[str, Any]) -> None:
        """Tell a caller what becomes of a command."""
        self.pass_on(caller, said, {"op": "attach", "follow": said.get("follow", False)})

    def end(self, caller: Channel, said: dict[str, Any]) -> None:
        """End a command, or what is left of one. One that was never begun never will be."""
        self.pass_on(caller, said, {"op": "end", "reason": str(said["reason"])})
        if not any(job.id == said["id"] for job in self.jobs):
            self.refused.add(said["id"])

    def connect(self, caller: Channel, said: dict[str, Any]) -> None:
        """Hand a caller a connection to a port of our loopback. It may still be in the making: we wait for nothing."""
        family, address = LOOPBACK[said["family"]]
        port = said["port"]
        if not 0 < port < 65536:
            raise ValueError("no port")
        with socket.socket(family, socket.SOCK_STREAM) as made:
            made.setblocking(False)
            if made.connect_ex((address, port)) in (0, errno.EINPROGRESS):
                caller.hand(made, event="connected")
            else:
                caller.say(event="failed", code="refused")

    def pass_on(self, caller: Channel, said: dict[str, Any], message: dict[str, Any]) -> None:
        """Pass a caller on to the supervisor of a command, or tell it what was written down."""
        name = check_id(said["id"])
        job = next((job for job in self.jobs if job.id == name), None)
        if job is not None:
            job.say(caller.sock, **message)
        else:
            caller.say(**(self.record(name) or {"event": "unknown"}))
        self.drop(caller)

    def record(self, name: str) -> dict[str, Any] | None:
        """What was written down about a command that has ended."""
        with contextlib.suppress(OSError, ValueError), open(f"{self.setting['folder']}/{name}.end") as file:
            found: dict[str, Any] = json.load(file)
            return found
        return None

    def heed(self, job: Job) -> None:
        """Take note of what a supervisor says."""
        with contextlib.suppress(OSError):
            while True:
                message = job.control.recv(MOST_REQUEST, socket.MSG_DONTWAIT)
                if not message:
                    return  # it is about to be buried
                event = json.loads(message)["event"]
                if event == "ended":
                    job.ended = True
                elif event == "free":
                    job.id, job.ended = "", False
                else:
                    self.starved()

    def reap(self) -> None:
        """Bury the dead. A supervisor that was killed leaves its processes to us: they end with it."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.helpers:
                self.due.append((time.monotonic() + 0.5, self.helpers.pop(pid)))
            for job in [job for job in self.jobs if job.pid == pid]:
                self.heed(job)
                self.jobs.remove(job)
                job.control.close()
                if job.id and not job.ended:
                    self.lose(job)

    def lose(self, job: Job) -> None:
        """Settle a command whose supervisor was killed."""
        ours = {other.pid for other in self.jobs} | set(self.helpers)
        swept = sweep(os.getpid(), ours, self.reap, self.setting["uid"])
        sizes = {"out": 0, "err": 0}
        for name in sizes:
            with contextlib.suppress(OSError):
                sizes[name] = os.stat(f"{self.setting['folder']}/{job.id}.{name}").st_size
        taken = int((time.monotonic() - job.begun) * 1e9)
        write_record(
            self.setting["folder"],
            {"event": "ended", "id": job.id, "exit": 137, "reason": "lost", "swept": swept, "oom": False}
            | {"duration_ns": taken, "cpu_ns": 0, "full": [], **sizes},
        )


def main() -> None:
    """`agent.py SETTING` is the agent, `agent.py relay FOLDER` a way to it."""
    if sys.argv[1] == "relay":
        relay(sys.argv[2])
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    os.umask(0o022)
    harden()
    filter.install()  # for all that will ever run here
    gc.freeze()
    Agent(json.loads(sys.argv[1])).run()
