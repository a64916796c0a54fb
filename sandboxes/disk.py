"""How much of the disk a task takes, and what is done when that is too much.

No quota that every host has holds a folder to a size: Docker's is refused on most file systems, and project quotas and
loop files need a host that was prepared. So the kernel bounds each single file (`RLIMIT_FSIZE`), and the sum is
measured: workspace and spooled output, by du(1), which follows no link and counts what is allocated. A task that takes
more than it may has its sandbox ended, and begins nothing until it takes less.

`tick` does not measure each time. What was found is remembered in `run/disk`, with what was free on the disk then; a
task is measured again after a minute, or once so much less is free that the task could be near its limit. A measurement
that takes long is made less often.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events import Event, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.projections import StateView, Use, registry
from sandkeep.projections import resources as uses
from sandkeep.sandboxes import decider
from sandkeep.sandboxes.clock import BootTime, boot_clock

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

LEVELS = (80, 95, 100)
"""Percent of the limit that are said."""

_EASED = 10
_REST_NS = 60 * 10**9
_LEAST_NS = 10**9
_PART = 20
"""A measurement takes one part in so many of the time."""

MEANS = "the kernel limits each file, and 'du' measures the sum: beyond the limit the sandbox is ended"
"""What holds a workspace to its size. No host has better without being prepared for it."""

MEASURE = "du"

_PATIENCE_SECONDS = 60.0
_logger = logging.getLogger(__name__)


class Share(msgspec.Struct, frozen=True):
    """What a task may take of the disk, 0 for as much as there is; what was found the last time, if anybody looked; and
    what holds it to the limit."""

    limit: int
    bytes: int | None
    means: str


class Measured(msgspec.Struct, frozen=True):
    """What a task took of the disk, when, how long it took to find out, and what was free."""

    bytes: int
    boot: str
    at_ns: int
    took_ns: int
    free_bytes: int


def tick(keep: Keep) -> list[str]:
    """Measure those tasks with a live sandbox that are due, and see to those that take too much. Tells what was done.

    What fails for one is logged, and holds up no other.
    """
    done: list[str] = []
    with keep.projections.reading() as state:
        live = [use for use in uses.live(state) if use.limits is not None and use.limits.disk_bytes]
    for use in live:
        try:
            if due(keep, use, boot_clock()()):
                done += look(keep, use)
        except (SandkeepError, OSError, subprocess.SubprocessError) as error:
            _logger.warning("the disk use of task %s is not known: %s", use.task, error)
    return done


def look(keep: Keep, use: Use) -> list[str]:
    """Measure a task, record what it comes near to, and end its sandbox if it takes too much."""
    limit = (use.limits or use.asked or ev.Limits(0, 0, 0, 0)).disk_bytes
    if not limit:
        return []
    found = measure(keep, use.task)
    decided: list[Event] = []

    def decide(state: StateView) -> list[Event]:
        now = uses.find(state, use.task)
        decided[:] = [] if now is None else judge(now, found.bytes, limit, time.time_ns())
        return decided

    if judge(use, found.bytes, limit, time.time_ns()):
        keep.log.decide(registry.STREAM + use.task, decide, actor=keep.actor)
    done = [f"task {use.task}: {type(each).__name__} of its disk" for each in decided]
    if found.bytes >= limit and use.container is not None:
        with keep.working(use.task):
            keep.engine.remove(use.container)
            keep.decide(use.task, partial(decider.lose, event=ev.SandboxRemoved(use.container)))
        done.append(f"task {use.task}: it takes too much of the disk, and its sandbox was ended")
    return done


def judge(use: Use, used: int, limit: int, now_ns: int) -> list[Event]:
    """What there is to say of a task that takes `used` bytes, given what was said before."""
    percent, said = used * 100 // limit, use.neared("disk")
    level = max((each for each in LEVELS if each <= percent), default=0)
    container = use.container or ""
    if level > (said.percent if said is not None else 0):
        return [ev.LimitNeared(container, "disk", level, used, limit)]
    if said is None:
        return []
    # It may begin something as soon as there is room.
    rested = said.percent == LEVELS[-1] or now_ns - said.time_ns >= _REST_NS
    eased = percent < said.percent - (0 if said.percent == LEVELS[-1] else _EASED)
    return [ev.LimitEased(container, "disk", used, limit)] if eased and rested else []


def due(keep: Keep, use: Use, now: BootTime) -> bool:
    """Whether it is time to measure a task again."""
    return is_due(keep, use.task, 0 if use.limits is None else use.limits.disk_bytes, now)


def is_due(keep: Keep, name: str, limit: int, now: BootTime) -> bool:
    """Whether it is time to measure again what is remembered by this name."""
    last = remembered(keep, name)
    if last is None or last.boot != now.boot:
        return True
    since = now.ns - last.at_ns
    if since < max(_LEAST_NS, last.took_ns * _PART):
        return False
    gone = last.free_bytes - _free(keep)
    return since >= _REST_NS or gone * 10 >= limit - last.bytes


def remembered(keep: Keep, name: str) -> Measured | None:
    """What was found the last time, if it is known."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.msgpack.decode((_folder(keep) / name).read_bytes(), type=Measured)
    return None


def measure(keep: Keep, task_id: str) -> Measured:
    """What a task takes of the disk now, remembered. Raises `OSError` and `subprocess.SubprocessError`."""
    folders = [keep.path / "tasks" / task_id / "workspace", keep.path / "run" / "spool" / task_id]
    present = [os.fspath(folder) for folder in folders if folder.is_dir()]
    with measuring(keep, task_id) as found:
        if not present:
            return found(0)
        # It complains of files that vanish meanwhile, and its answer is good nevertheless.
        answer = subprocess.run(
            (MEASURE, "-skxc", "--", *present),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        return found(int(answer.stdout.split()[-2]) * 1024)


@contextlib.contextmanager
def measuring(keep: Keep, name: str) -> Iterator[Callable[[int], Measured]]:
    """While something is measured; what is given is called with how many bytes were found, to remember it."""
    now, free = boot_clock()(), _free(keep)

    def found(size: int) -> Measured:
        measured = Measured(size, now.boot, now.ns, boot_clock()().ns - now.ns, free)
        folder = _folder(keep)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = folder / f".{name}-{os.getpid()}"
        temporary.write_bytes(msgspec.msgpack.encode(measured))
        temporary.replace(folder / name)
        return measured

    yield found


def _free(keep: Keep) -> int:
    found = os.statvfs(keep.path / "tasks" if (keep.path / "tasks").is_dir() else keep.path)
    return found.f_bfree * found.f_frsize


def _folder(keep: Keep) -> Path:
    return keep.path / "run" / "disk"
