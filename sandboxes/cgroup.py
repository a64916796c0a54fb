"""What the kernel says of a container: its control group's files, of version 1 and 2 (cgroups(7)).

Reading them costs a tenth of a millisecond where the engine's statistics cost a second. They are there when the engine
runs on this machine, and are written to by root only. Page cache is not counted as used: the kernel takes it back
before it would end anything for want of memory.

Where the kernel can do it, a container is *guarded*: what hits the limit is held instead of ended at once, so that
somebody can answer. Version 1 holds it until the limit is raised or the guard is taken away (`memory.oom_control`),
version 2 slows it down more and more (`memory.high`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import msgspec

ROOT = Path("/sys/fs/cgroup")

GUARD_PERCENTS = ((512 << 20, 95), (0, 90))
"""Where version 2 begins to slow down, from which limit on. How much slower each page comes grows with the square of
the part by which `memory.high` is exceeded (Linux, mm/memcontrol.c, `calculate_high_delay`); so of a small limit, 5 %
are gone before anybody has looked. Measured on Linux 6.1, a program that takes all it gets has had 64 MiB after 1.4 s,
and with 10 % after 6 s; 512 MiB with 5 % after 7 s."""

_UNLIMITED = 1 << 60
_PAGE = 1 << 16
_PROC = Path("/proc")
_FREEZE_SECONDS = 0.5


class Group(msgspec.Struct, frozen=True):
    """The folders of a container's control group; all the same in version 2."""

    version: int
    memory: Path
    cpu: Path
    cpuacct: Path
    pids: Path


class Sample(msgspec.Struct, frozen=True):
    """What a container uses now. `memory_bytes` cannot be reclaimed, and counts swap, as its limit does; 0 is no limit.

    `held` says that something in it waits for memory now, `guarded` that it would be held.
    """

    memory_bytes: int
    memory_limit: int
    pids: int
    pids_limit: int
    cpu_ns: int
    throttled_ns: int
    oom_kills: int
    held: bool = False
    guarded: bool = False


def find(container: str, pid: Callable[[], int | None]) -> Group | None:
    """The group of a container: where Docker makes it, or else where the process `pid` gives, its first, says it is.

    None if its files are not here.
    """
    group = _usual(container, ROOT)
    if group is None and (first := pid()) is not None:
        group = _of_process(first, container, ROOT)
    return group if group is not None and group.memory.is_dir() else None


def read(group: Group) -> Sample | None:
    """What the container uses; None if it is gone."""
    try:
        return _read_1(group) if group.version == 1 else _read_2(group)
    except (OSError, ValueError, KeyError):  # ENODEV, or files that vanish while they are read
        return None


def guard(group: Group, on: bool) -> bool:
    """Hold what runs out of memory in the container, or let the kernel end it; false if that may not be set."""
    try:
        if group.version == 1:
            (group.memory / "memory.oom_control").write_text("1" if on else "0")
        else:
            high = _high(_number(group.memory / "memory.max"))
            (group.memory / "memory.high").write_text(str(high) if on and high else "max")
    except OSError:
        return False
    return True


def freeze(group: Group) -> bool:
    """Hold every process of the container still, within a millisecond or two. False if one cannot be: the kernel holds
    it already, for want of memory. Raises `OSError` if the freezer is not ours."""
    folder, name, frozen, is_frozen = _freezer(group)
    (folder / name).write_text(frozen)
    until = time.monotonic() + _FREEZE_SECONDS
    while is_frozen not in (folder / (name if group.version == 1 else "cgroup.events")).read_text():
        if time.monotonic() > until:
            thaw(group)
            return False
    return True


def thaw(group: Group) -> None:
    """Let a container go on, if it is there and was held by `freeze`. One that the engine paused goes on too."""
    folder, name, _, _ = _freezer(group)
    with contextlib.suppress(OSError):
        (folder / name).write_text("THAWED" if group.version == 1 else "0")


def _freezer(group: Group) -> tuple[Path, str, str, str]:
    """The folder and file of the freezer, what freezes, and how it says that all are frozen."""
    if group.version == 2:
        return group.memory, "cgroup.freeze", "1", "frozen 1"
    return ROOT / "freezer" / group.memory.relative_to(ROOT / "memory"), "freezer.state", "FROZEN", "FROZEN"


@lru_cache(maxsize=1024)
def _usual(container: str, root: Path) -> Group | None:
    for name in (f"docker/{container}", f"system.slice/docker-{container}.scope"):
        if (root / name / "memory.current").exists():
            folder = root / name
            return Group(2, folder, folder, folder, folder)
        if (root / "memory" / name).is_dir():
            return Group(1, *(root / each / name for each in ("memory", "cpu", "cpuacct", "pids")))
    return None


def _of_process(pid: int, container: str, root: Path) -> Group | None:
    """The group that a process is in. The number may be another's, on another machine, so the name has to fit."""
    found: dict[str, Path] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError, ValueError):
        for line in (_PROC / str(pid) / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if container in path and ".." not in path.split("/"):
                for each in controllers.split(","):
                    found[each] = root / each / path.lstrip("/")
    if "" in found and not {"memory", "cpu", "pids"} <= found.keys():
        folder = root / found[""].relative_to(root)
        return Group(2, folder, folder, folder, folder)
    names = ("memory", "cpu", "cpuacct", "pids")
    return Group(1, *(found[name] for name in names)) if all(name in found for name in names) else None


def _read_1(group: Group) -> Sample:
    memory = group.memory
    stat = _fields(memory / "memory.stat")
    oom = _fields(memory / "memory.oom_control")
    swap = (memory / "memory.memsw.usage_in_bytes").exists()
    used = _number(memory / ("memory.memsw.usage_in_bytes" if swap else "memory.usage_in_bytes"))
    limit = _number(memory / ("memory.memsw.limit_in_bytes" if swap else "memory.limit_in_bytes"))
    return Sample(
        max(0, used - stat["total_inactive_file"] - stat["total_active_file"]),
        limit,
        _number(group.pids / "pids.current"),
        _number(group.pids / "pids.max"),
        _number(group.cpuacct / "cpuacct.usage"),
        _fields(group.cpu / "cpu.stat").get("throttled_time", 0),
        oom.get("oom_kill", 0),
        bool(oom["under_oom"]),
        bool(oom["oom_kill_disable"]),
    )


def _read_2(group: Group) -> Sample:
    folder = group.memory
    stat, cpu = _fields(folder / "memory.stat"), _fields(folder / "cpu.stat")
    used, limit = _number(folder / "memory.current"), _number(folder / "memory.max")
    guarded = limit > 0 and _number(folder / "memory.high") == _high(limit)  # or it is of another limit
    if limit and (folder / "memory.swap.current").exists():
        used += _number(folder / "memory.swap.current")
        limit += _number(folder / "memory.swap.max")
    return Sample(
        max(0, used - stat["inactive_file"] - stat["active_file"]),
        limit,
        _number(folder / "pids.current"),
        _number(folder / "pids.max"),
        cpu["usage_usec"] * 1000,
        cpu.get("throttled_usec", 0) * 1000,
        _fields(folder / "memory.events").get("oom_kill", 0),
        False,
        guarded,
    )


def _high(limit: int) -> int:
    """Where version 2 slows down; a multiple of all page sizes, so that it is read as it was written."""
    percent = next(percent for least, percent in GUARD_PERCENTS if limit >= least)
    return limit * percent // 100 // _PAGE * _PAGE


def _number(path: Path) -> int:
    """The number in a file; 0 for a limit that is none."""
    text = path.read_text().strip()
    number = _UNLIMITED if text == "max" else int(text)
    return number if number < _UNLIMITED else 0


def _fields(path: Path) -> dict[str, int]:
    """The lines `name number` of a file."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
