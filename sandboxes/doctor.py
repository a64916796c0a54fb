"""A look at all that a keep needs: the engine, the keep itself, its steward, the image, the agents that are to use it;
and what this host cannot do.

Nothing is changed, but for what opening a keep does. Each *finding* says what is, and what to do about it if anything;
only some of them need it (`act`), the others are good to know.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from sandkeep.events import SandkeepError
from sandkeep.events.mounts import kind_of
from sandkeep.sandboxes import (
    caches,
    disk,
    engine_fitness,
    integrations,
    intent,
    machine,
    quantity,
    retention,
    settings,
    slot,
    steward,
)
from sandkeep.sandboxes.documents_keep import Finding
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.engine_fitness import GOOD_TO_KNOW
from sandkeep.sandboxes.errors import BadSettings, EngineUnreachable, EngineUnsupported
from sandkeep.sandboxes.incumbent import incumbent
from sandkeep.sandboxes.keep import Keep

LEAST_BYTES = 2 << 30
"""With less room on the keep's disk, a checkpoint or a long output may find none."""

_MANY = 0.8


def examine(path: Path, engine: Engine, opened: Keep | None = None) -> list[Finding]:
    """Everything that there is to say about the keep in `path`, perhaps `opened` already, the engine and this host."""
    runtime = ""
    with contextlib.suppress(SandkeepError):  # said below
        runtime = settings.load(path).sandboxes.runtime
    found = [*_host(), *_engine(engine, runtime)]
    try:
        with Keep.open(path) if opened is None else contextlib.nullcontext(opened) as keep:
            found += [*_keep(keep), *_steward(keep), *_sandboxes(keep, engine), *_machine(keep)]
    except SandkeepError as error:
        found.append(Finding("keep", str(error), "see docs/guides/recovery.md if it is damaged", True))
    return [*found, *(Finding(*said) for said in integrations.describe(path.absolute().parent))]


def _host() -> Iterator[Finding]:
    if shutil.which("git") is None:
        yield Finding("host", "there is no git, so no repository can be cloned", "install git", True)
    if shutil.which("mmdebstrap") is None:
        advice = "install mmdebstrap, unless the registry can be reached"
        yield Finding("host", "images cannot be made from packages, for want of mmdebstrap", advice)


def _engine(engine: Engine, runtime: str) -> Iterator[Finding]:
    try:
        facts = engine.facts
    except EngineUnsupported as error:
        yield Finding("engine", str(error), "install a newer one, or set DOCKER_HOST", True)
        return
    except SandkeepError as error:
        yield Finding("engine", str(error), "start Docker, or set DOCKER_HOST", True)
        return
    yield Finding(
        "engine",
        f"{facts.name} {facts.version}{' without root' * facts.rootless}, API {facts.api}, {facts.cpus} CPUs,"
        f" {facts.memory_bytes >> 20} MiB, cgroup v{facts.cgroup} ({facts.driver}), {facts.storage}, seccomp"
        f" {facts.seccomp or 'none'}, runtime {runtime or facts.runtime} of {' '.join(facts.runtimes)}",
    )
    for lack in engine_fitness.lacks(facts, runtime):
        yield Finding("engine", lack.what, lack.advice, lack.grade != GOOD_TO_KNOW)


def _keep(keep: Keep) -> Iterator[Finding]:
    head = keep.head()
    yield Finding("keep", f"{keep.path}: log, journal and projections open, {head.position} events")
    for load in (settings.load, retention.load):
        try:
            load(keep.path)
        except SandkeepError as error:
            yield Finding("keep", str(error), "correct keep.toml", True)
    readers, most = keep.log.readers()
    if readers > most * _MANY:
        yield Finding("keep", f"{readers} of {most} readers of the log", "end some of the processes that use it", True)
    room = shutil.disk_usage(keep.path)
    short, free = room.free < LEAST_BYTES, quantity.show_size(room.free)
    told = f"{free} of {quantity.show_size(room.total)} are free for the keep"
    yield Finding("disk", told, "make room for it" if short else "", short)
    yield from _disk(keep)
    if steward.abandoned_work(keep):
        advice = "run 'sandkeep steward', or any command in the task"
        yield Finding("keep", "something was cut off by a crash, and is not settled yet", advice)


def _disk(keep: Keep) -> Iterator[Finding]:
    where = kind_of(keep.path / "tasks") or "an unknown file system"
    if shutil.which(disk.MEASURE) is None:
        yield Finding("disk", "there is no du, so no workspace is held to its size", "install coreutils", True)
    else:
        yield Finding("disk", f"workspaces, on {where}: {disk.MEANS}")
    try:
        declared = caches.load(keep.path)
    except SandkeepError as error:
        yield Finding("caches", str(error), "correct keep.toml", True)
        return
    for name, each in sorted(declared.items()):
        taken = keep.caches.remembered(name)
        size = "not measured yet" if taken is None else quantity.show_size(taken)
        over = taken is not None and taken > each.size
        may = f"{caches.WRITE if each.writable else caches.READ}, {size} of {quantity.show_size(each.size)}"
        yield Finding("caches", f"{name}: {may}", "run 'sandkeep prune-caches'" if over else "")


def _steward(keep: Keep) -> Iterator[Finding]:
    found = incumbent(keep.path)
    if found is None:
        yield Finding(
            "steward", "none runs: idle sandboxes are not frozen, and none are started ahead", "run 'sandkeep steward'"
        )
        return
    yield Finding("steward", f"process {found.pid} is the steward")
    for duty, words in sorted(found.failing.items()):
        yield Finding("steward", f"its duty '{duty}' fails: {words}", "see to that; it tries again by itself", True)


def _sandboxes(keep: Keep, engine: Engine) -> Iterator[Finding]:
    try:
        containers = engine.containers(keep.id)
        made = next((each.tag for each in keep.images.present() if each.name == "base" and each.current), None)
    except EngineUnreachable:
        return  # that was said
    if made:
        yield Finding("images", f"{made} is there")
    else:
        yield Finding("images", "the base image is not made yet", "the first task does it, in about a minute")
    believed = {task.container for task in steward.housed(keep)}
    waiting = {found.container for name in slot.names(keep) if (found := slot.find(keep, name)) is not None}
    frozen = sum(each.status == "paused" for each in containers)
    yield Finding(
        "sandboxes", f"{len(believed)}, of which {frozen} are frozen, and {len(waiting)} that wait for a task"
    )
    orphans = [
        each
        for each in containers
        if (each.beside or each.container) not in believed | waiting and intent.abandoned(keep.intents, each.intent)
    ]
    if orphans:
        yield Finding("sandboxes", f"{len(orphans)} containers are nobody's", "run 'sandkeep steward', which ends them")
    lost = believed - {each.container for each in containers if each.status not in steward.ENDED}
    if lost:
        yield Finding("sandboxes", f"{len(lost)} have ended by themselves", "the next command starts another")


def _machine(keep: Keep) -> Iterator[Finding]:
    try:
        yield from (Finding(*said) for said in machine.describe(keep))
    except EngineUnreachable:
        return  # that was said
    except BadSettings as error:
        yield Finding("machine", str(error), "correct it", True)


def healthy(found: list[Finding]) -> bool:
    """Whether nothing needs to be done."""
    return not any(finding.act for finding in found)
