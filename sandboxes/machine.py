"""What the doctor says of the machine that sandboxes share: what it has and what of that is promised, by which means
limits are held, and whether its clocks can be trusted."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sandkeep.sandboxes import cgroup, disk, monitor, ticket
from sandkeep.sandboxes.ledger import Amount, Ledger, Promise, host_folder
from sandkeep.sandboxes.quantity import show_size

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

Said: TypeAlias = tuple[str, str, str, bool]
"""An area, what was found, what to do about it if anything, and whether it should be done."""

SKEW_SECONDS = 5.0
"""How far apart clocks may be before it is said."""

_HOST_TOML = "complete some tasks, or say in {} that they may have more"
_MEMINFO = Path("/proc/meminfo")
_LEAST_PART = 20


def describe(keep: Keep) -> Iterator[Said]:
    """All that there is to say of the machine of an open keep's engine. Raises what asking that, and reading settings,
    raises."""
    with keep.engine.connected() as client:
        asked = time.time()
        info: Mapping[str, Any] = client.info()
        answered = time.time()
    ledger = Ledger(keep.engine)
    promises, most = ledger.promises(), ledger.most()
    yield from shares(keep.id, promises, most, keep.engine.facts.memory_bytes, _available(keep))
    if ticket.waiting(ledger.queue, 1.0):
        yield "machine", "sandboxes wait until there is room for them", "see to 'sandkeep top' of each keep", False
    images = sum(each.size for each in keep.images.present())
    live = monitor.live(keep)
    taken = sum(found.bytes for use in live if (found := disk.remembered(keep, use.task)) is not None)
    yield (
        "disk",
        f"tasks with a sandbox take {show_size(taken)}, as last measured, and our images {show_size(images)}",
        "",
        False,
    )
    yield from means(info, _watched(keep, [use.container for use in live if use.container]), os.geteuid() == 0)
    yield from clocks(str(info.get("SystemTime", "")), asked, answered, keep.head().time_ns / 1e9)


def shares(keep: str, promises: list[Promise], most: Amount, memory: int, available: int | None) -> Iterator[Said]:
    """Who was promised what of a machine with so much memory; by keep."""
    held: dict[str, list[Promise]] = {}
    for each in promises:
        held.setdefault(each.keep, []).append(each)
    sums = {name: sum(each.amount.memory_bytes for each in found) for name, found in held.items()}
    promised = sum(sums.values())
    whole = show_size(memory) + (f", {show_size(available)} of it available now" if available is not None else "")
    over = promised > most.memory_bytes
    yield (
        "machine",
        f"{whole}; of the {show_size(most.memory_bytes)} that sandboxes may have, {show_size(promised)} are promised",
        _HOST_TOML.format(host_folder() / "host.toml") if over else "",
        over,
    )
    for name in sorted(held, key=lambda name: -sums[name]):
        whose = "this keep" if name == keep else f"keep {name[:16]!a}"
        pids = sum(each.amount.pids for each in held[name])
        cpus = sum(each.amount.nano_cpus for each in held[name]) / 1e9
        count = f"{len(held[name])} sandbox{'es' * (len(held[name]) != 1)}"
        what = f"{count}, {show_size(sums[name])}, {cpus:g} processors, {pids} processes"
        yield "machine", f"{whose} was promised: {what}", "", False
    if available is not None and available * _LEAST_PART < memory:
        yield "machine", f"{show_size(available)} of memory are left", "end what takes it, or some sandboxes", True


def means(info: Mapping[str, Any], watched: bool | None, root: bool) -> Iterator[Said]:
    """By which means limits are held, as the engine and the kernel have them; `watched` is whether control groups of
    sandboxes are found here, None if there is no sandbox to tell by."""
    version = str(info.get("CgroupVersion", "1"))
    if watched is False:
        yield (
            "limits",
            f"cgroup v{version}: held by the kernel, but not found here, so that nothing is seen before it kills",
            "run 'sandkeep steward' where the engine runs",
            False,
        )
    elif root:
        way = "held until somebody answers" if version == "1" else "slowed down before it is ended"
        yield "limits", f"cgroup v{version}: what runs short of memory is {way}", "", False
    else:
        yield (
            "limits",
            f"cgroup v{version}: what runs short of memory in less than a second is ended, since we are not root",
            "run 'sandkeep steward' as root to have it held",
            False,
        )
    if not info.get("SwapLimit", True):
        yield "limits", "the kernel limits no swap", "boot with swapaccount=1, or switch swap off", False
    if not info.get("CpuCfsQuota", True):
        yield "limits", "the kernel limits no processors", "use one with CONFIG_CFS_BANDWIDTH", False


def clocks(engine: str, asked: float, answered: float, last: float) -> Iterator[Said]:
    """What is wrong with the time: of the engine, that said `engine` between two moments of this machine, and of the
    log's `last` event. Leases and patience are measured by the boot clock, and are right whatever this says."""
    with contextlib.suppress(ValueError):
        there = datetime.datetime.fromisoformat(engine).timestamp()
        ahead = max(asked - there, there - answered)
        if ahead > SKEW_SECONDS:
            yield (
                "clocks",
                f"the engine's clock and ours are {ahead:.0f} s apart: times of files, and certificates, mislead",
                "set both by NTP; restart the engine's virtual machine, if it has one",
                True,
            )
    if last - answered > SKEW_SECONDS:
        yield (
            "clocks",
            f"the last event is {last - answered:.0f} s in the future: the clock was set back, and events have that"
            " time until it has caught up",
            "set the clock by NTP, if it is wrong now",
            True,
        )


def _watched(keep: Keep, containers: list[str]) -> bool | None:
    """Whether the control groups of sandboxes are found here; None without any."""
    engine = keep.engine
    return None if not containers else cgroup.find(containers[0], lambda: engine.init_pid(containers[0])) is not None


def _available(keep: Keep) -> int | None:
    """Memory that can be had on the engine's machine, if that is ours."""
    if keep.engine.is_local:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
            # In a virtual machine, the engine's is another.
            if int(fields["MemTotal"].split()[0]) * 1024 == keep.engine.facts.memory_bytes:
                return int(fields["MemAvailable"].split()[0]) * 1024
    return None
