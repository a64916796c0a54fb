"""Processes of a sandbox: finding, ending and counting them, and the little that Python has no words for."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable

SETTLE_SECONDS = 10.0
_PATIENCE_SECONDS = 2.0
_SUBREAPER, _DUMPABLE, _DROP_BOUND = 36, 4, 24
_OOM_COUNTERS = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")

_prctl = ctypes.CDLL(None, use_errno=True).prctl


def adopt() -> None:
    """Become the parent of whatever descends from us and loses its own."""
    _prctl(_SUBREAPER, 1, 0, 0, 0)


def harden() -> None:
    """Let nobody trace or read us, and none of our children come by a capability that it was not given."""
    _prctl(_DUMPABLE, 0, 0, 0, 0)
    for capability in range(64):
        _prctl(_DROP_BOUND, capability, 0, 0, 0)


def descendants(root: int, spare: set[int]) -> set[int]:
    """All processes below `root`, the dead too; those in `spare` and what is below them left out."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(name)[1]), []).append(int(name))
    found: set[int] = set()
    left = [root]
    while left:
        for pid in children.get(left.pop(), ()):
            if pid not in spare:
                found.add(pid)
                left.append(pid)
    return found


def _stat(pid: str) -> list[bytes]:
    """The state of a process and its parent, as /proc has them. Raises `OSError`."""
    file = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    try:
        return os.read(file, 512).rpartition(b")")[2].split(None, 2)[:2]
    finally:
        os.close(file)


def stopped(pid: int) -> bool:
    """Whether a process was sent SIGSTOP or the like, and stands still."""
    with contextlib.suppress(OSError):
        return _stat(str(pid))[0] == b"T"
    return False


def sweep(root: int, spare: set[int], reap: Callable[[], object], user: int) -> bool:
    """End all processes below `root`. What is stopped cannot fork, so all are stopped before any is killed.

    If that does not come to an end, all processes of `user` are killed in one go. False if something is left even then.
    """
    begun = time.monotonic()
    while (taken := time.monotonic() - begun) < SETTLE_SECONDS:
        if taken > _PATIENCE_SECONDS:
            end_user(user)
        stopped: set[int] = set()
        while fresh := descendants(root, spare) - stopped:
            signalled(fresh, signal.SIGSTOP)
            stopped |= fresh
            if time.monotonic() - begun > _PATIENCE_SECONDS:
                break
        if not stopped:
            return True
        signalled(stopped, signal.SIGKILL)
        reap()
        time.sleep(0.0005)
    return False


def end_user(user: int) -> None:
    """Kill every process of a user at once. While we are that user its processes could end us, which ends them too."""
    os.setresuid(user, user, 0)
    with contextlib.suppress(OSError):
        os.kill(-1, signal.SIGKILL)
    os.setresuid(0, 0, 0)


def signalled(pids: set[int], number: int) -> None:
    """Send a signal to processes, if they are there."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def execute(argv: list[str], environment: dict[str, str]) -> str:
    """Become the program `argv[0]`, or return why that cannot be."""
    program, failure = argv[0], "command-not-found"
    folders = [""] if "/" in program else environment.get("PATH", os.defpath).split(":")
    for folder in folders:
        path = f"{folder or '.'}/{program}" if "/" not in program else program
        try:
            os.execve(path, argv, environment)
        except OSError as error:
            if error.errno == errno.ENOEXEC:  # a script that does not say for whom
                os.execve("/bin/sh", ["/bin/sh", path, *argv[1:]], environment)
            if error.errno == errno.E2BIG:
                failure = "too-long"
    return failure


def yield_memory() -> None:
    """Let the kernel end us before those who start us, if there is not enough memory."""
    with contextlib.suppress(OSError):
        file = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(file, b"500")
        os.close(file)


def resize(terminal: int, window: tuple[int, int]) -> None:
    """Give a terminal its rows and columns."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *window, 0, 0))


def oom_counter() -> int:
    """The kernel's file, open, that counts the processes killed for want of memory; -1 if there is none."""
    for path in _OOM_COUNTERS:
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY)
    return -1


def oom_kills(counter: int) -> int:
    """How many processes of the sandbox were killed for want of memory so far."""
    if counter < 0:
        return 0
    return int((os.pread(counter, 4096, 0).partition(b"oom_kill ")[2].split(None, 1) or [b"0"])[0])


def cpu_ns() -> int:
    """The processor time of all children that were buried so far, in nanoseconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((used.ru_utime + used.ru_stime) * 1e9)


def waiting(pipe: int) -> int:
    """How many bytes of a pipe nobody has read yet."""
    size = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, size)
    return int.from_bytes(size, sys.byteorder)


def woken() -> int:
    """A descriptor that can be read when a child has ended."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return reader


def emptied(reader: int) -> None:
    """Read what there is, and forget it."""
    with contextlib.suppress(BlockingIOError):
        while os.read(reader, 4096):
            pass
