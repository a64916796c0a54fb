"""The monitor: looks at every live sandbox, records what it comes near to, and sees to those that run short of memory.

`tick` is called about once a second, by whoever stewards the keep, and holds no state: what was said is in the log.
That a sandbox nears a limit is said at 80 % and at 95 %, and that it does no more when it is 10 points below, a minute
later at the earliest; so a sandbox that swings cannot fill the log. At 95 % of its memory, or when the kernel holds it
at its limit, more is asked for (see `pressure`).

Several may tick; one at a time does, and the others go away.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events import Event, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.projections import StateView, Use, registry
from sandkeep.projections import resources as uses
from sandkeep.sandboxes import cgroup, limits, pressure, resources
from sandkeep.sandboxes.cgroup import Group, Sample
from sandkeep.sandboxes.clock import boot_clock
from sandkeep.sandboxes.quantity import show_size

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

LEVELS = (80, 95)
"""Percent of a limit that are said."""

SHORT = LEVELS[-1]
"""Percent of the memory at which more is asked for."""

_EASED = 10
_REST_NS = 60 * 10**9
_GROWN_PERCENT = 125
_STALE_SECONDS = 15.0
_NOTHING = ev.SandboxMeasured("", 0, 0, 0, 0, 0)
_logger = logging.getLogger(__name__)


class Watched(msgspec.Struct, frozen=True):
    """A live sandbox, and what it uses now; None if this machine cannot tell."""

    use: Use
    sample: Sample | None


def tick(keep: Keep) -> list[str]:
    """Look at all live sandboxes once, and tell what was done, a line each. What fails for one is logged, and holds up
    no other. Raises `BadSettings`."""
    done: list[str] = []
    with _alone(keep) as descriptor:
        if descriptor is None:
            return done
        relief = limits.load(keep.path).relief
        for use in live(keep):
            try:
                done += _look(keep, use, relief)
            except SandkeepError as error:
                _logger.warning("the sandbox of task %s was not seen to: %s", use.task, error)
        os.utime(descriptor)
    return done


def release(keep: Keep) -> None:
    """Guard no sandbox any more, unless somebody ticks: what is held would be held until its time is up."""
    with _alone(keep) as descriptor:
        # One that is in the future is from before the clock was set back.
        if descriptor is None or 0 <= time.time() - os.fstat(descriptor).st_mtime < _STALE_SECONDS:
            return
        for use in live(keep):
            group, found = _group(keep, use), _read(keep, use)
            if group is not None and found is not None and found.guarded:
                cgroup.guard(group, on=False)


def live(keep: Keep) -> list[Use]:
    """The tasks whose sandboxes live, or that have one that waits for memory."""
    with keep.projections.reading() as state:
        return list(uses.live(state))


def watched(keep: Keep) -> list[Watched]:
    """All live sandboxes and what they use, those that use most memory first; see `sample`."""
    found = [Watched(use, sample(keep, use)) for use in live(keep) if use.container is not None]
    return sorted(found, key=lambda each: -(each.sample.memory_bytes if each.sample is not None else 0))


def measure(keep: Keep, task_id: str) -> None:
    """Put on record what the task's sandbox has used; before it is removed."""
    use = resources.of(keep, task_id)
    found = _read(keep, use)
    if found is not None:
        event = measured(use, found)
        keep.log.decide(registry.STREAM + task_id, lambda state: [event], actor=keep.actor)


def judge(use: Use, sample: Sample, now_ns: int, request: ev.ExtensionRequested | None) -> list[Event]:
    """What there is to say of a sandbox, given what was said before; `request` is what it asks for if it runs short."""
    if use.container is None:
        return []
    events: list[Event] = []
    amounts = {"memory": (sample.memory_bytes, sample.memory_limit), "pids": (sample.pids, sample.pids_limit)}
    for resource, (used, limit) in amounts.items():
        percent = 100 if resource == "memory" and sample.held else used * 100 // limit if limit else 0
        said = use.neared(resource)
        level = max((each for each in LEVELS if each <= percent), default=0)
        if level > (said.percent if said is not None else 0):
            events.append(ev.LimitNeared(use.container, resource, level, used, limit))
            if resource == "memory" and level == SHORT and request is not None and use.extension is None:
                events.append(request)
        elif said is not None and percent < said.percent - _EASED and now_ns - said.time_ns >= _REST_NS:
            events.append(ev.LimitEased(use.container, resource, used, limit))
    before, now = use.measured or _NOTHING, measured(use, sample)
    peaks = ((now.memory_bytes, before.memory_bytes), (now.pids, before.pids))
    grown = any(after * 100 > most * _GROWN_PERCENT for after, most in peaks)
    if grown or now.oom_kills > before.oom_kills:
        events.append(now)
    return events


def measured(use: Use, sample: Sample) -> ev.SandboxMeasured:
    """The sample as it is recorded: with the most that was seen of what is not a sum."""
    before = use.measured or _NOTHING
    memory, pids = max(before.memory_bytes, sample.memory_bytes), max(before.pids, sample.pids)
    return ev.SandboxMeasured(use.container or "", memory, pids, sample.cpu_ns, sample.throttled_ns, sample.oom_kills)


def sample(keep: Keep, use: Use) -> Sample | None:
    """What the sandbox of a task uses now; the engine is asked where its files are missing, which takes a second."""
    found = _read(keep, use)
    if found is None and use.container is not None:
        with contextlib.suppress(SandkeepError):
            return keep.engine.statistics(use.container)
    return found


def _group(keep: Keep, use: Use) -> Group | None:
    container = use.container
    return None if container is None else cgroup.find(container, lambda: keep.engine.init_pid(container))


def _look(keep: Keep, use: Use, relief: limits.Relief) -> list[str]:
    group, sample = _group(keep, use), _read(keep, use)
    done: list[str] = []
    if group is not None and sample is not None:
        request = pressure.request(use, sample, relief, boot_clock()()) if use.extension is None else None
        if judge(use, sample, time.time_ns(), request):
            decided: list[Event] = []
            decision = partial(_decide, use.task, use.container, sample, request, decided)
            keep.log.decide(registry.STREAM + use.task, decision, actor=keep.actor)
            done += [_words(use.task, event) for event in decided if not isinstance(event, ev.SandboxMeasured)]
        done += pressure.advance(keep, use.task, relief)
        now = resources.of(keep, use.task)
        # What was told no runs into the limit as it would without us, until there is room again.
        near = now.neared("memory")
        wanted = now.extension is not None or near is None or near.percent < SHORT
        if now.container == use.container and wanted != sample.guarded:
            cgroup.guard(group, on=wanted)
        return done
    return pressure.advance(keep, use.task, relief)


def _decide(
    task: str,
    container: str | None,
    sample: Sample,
    request: ev.ExtensionRequested | None,
    decided: list[Event],
    state: StateView,
) -> list[Event]:
    use = uses.find(state, task)
    found = use is not None and use.container == container
    decided[:] = judge(use, sample, time.time_ns(), request) if use is not None and found else []
    return decided


def _words(task: str, event: Event) -> str:
    match event:
        case ev.LimitNeared():
            size = show_size if event.resource != "pids" else str
            return f"task {task}: {event.percent} % of its {event.resource}, {size(event.used)} of {size(event.limit)}"
        case ev.ExtensionRequested():
            return f"task {task}: it needs {show_size(event.wanted_bytes)} of memory"
        case _:
            return f"task {task}: {type(event).__name__}"


def _read(keep: Keep, use: Use) -> Sample | None:
    group = _group(keep, use)
    return None if group is None else cgroup.read(group)


@contextlib.contextmanager
def _alone(keep: Keep) -> Iterator[int | None]:
    """The descriptor of the monitor's lock, held until the end of the block; None if another has it."""
    path = keep.path / "run" / "monitor.lock"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        yield None
    finally:
        os.close(descriptor)
