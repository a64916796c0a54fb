"""What all sandboxes on an engine have been promised, of whichever keep and user, and what they may have together.

The engine is the truth: a container counts, with the limits that it has now, from when it is made until it is removed
or has ended; no crash leaves that wrong. What is about to start, or to be given more, is *reserved* first: a file that
is locked (`flock`) until the engine knows of it, so that a reservation dies with its process. Both are counted and
reserved under one lock, so no two keeps are promised the same memory.

All of it lies in the *host folder*: `SANDKEEP_HOST`, or else the user's state folder (XDG Base Directory
Specification). Sandboxes of users who have another folder count once their containers are made.

`host.toml` in that folder says what sandboxes may have together, whatever keeps ask for:

    [budget]
    memory = "20GiB"    # by default the machine's but a tenth, or 1 GiB
    cpus = 16           # by default not counted: processors are shared, not used up
    pids = 20000        # by default nine tenths of what the kernel has
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import final

import docker.errors
import msgspec
from blake3 import blake3
from msgspec.structs import astuple, replace

from sandkeep.events.catalogue import Limits
from sandkeep.sandboxes import cgroup, intent, limits
from sandkeep.sandboxes.container import KEEP, TASK
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.errors import BadSettings, BudgetExhausted
from sandkeep.sandboxes.quantity import show_size

ENDED = ("exited", "dead", "removing")
"""The engine's words for the state of a container that uses nothing."""

_RESERVE_BYTES, _RESERVE_PART = 1 << 30, 10
_SHARED: dict[str, Callable[[int], str]] = {
    "memory_bytes": lambda number: f"{show_size(number)} of memory",
    "nano_cpus": lambda number: f"{number / 1e9:g} processors",
    "pids": lambda number: f"{number} processes",
}
_PID_MAX = Path("/proc/sys/kernel/pid_max")
_SHOWN = 5
_LONGEST_ID = 32


class Amount(msgspec.Struct, frozen=True):
    """What a sandbox may use of what sandboxes share; memory counts swap."""

    memory_bytes: int = 0
    nano_cpus: int = 0
    pids: int = 0

    def exceeds(self, other: Amount) -> bool:
        """Whether it is more of anything."""
        return any(mine > theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))


class Promise(msgspec.Struct, frozen=True):
    """What the sandbox of a task was promised, and in which keep; `container` is empty while it is about to start."""

    keep: str
    task: str
    amount: Amount
    container: str = ""


class TooMuch(BudgetExhausted):
    """More is asked for than there ever will be; waiting is of no use."""


def amount(found: Limits) -> Amount:
    """What a sandbox with these limits is promised."""
    return Amount(found.memory_bytes + found.swap_bytes, found.nano_cpus, found.pids)


def host_folder() -> Path:
    """Where what all keeps of this user share lies."""
    if given := os.environ.get("SANDKEEP_HOST"):
        return Path(given).absolute()
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "sandkeep"


@final
class Ledger:
    """The promises of one engine. Holds no state of its own."""

    def __init__(self, engine: Engine) -> None:
        """Ask the engine, once, who it is. Raises `EngineUnreachable`, and `BadSettings` if there is no host folder."""
        self._engine = engine
        self._folder = host_folder() / blake3(engine.facts.identity.encode()).hexdigest()[:16]
        self._reserved = self._folder / "reserved"
        self.queue = self._folder / "queue"
        """The tickets of those who wait; see `ticket`."""
        try:
            self._reserved.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadSettings(
                f"{self._folder} cannot be made: {error.strerror}; set SANDKEEP_HOST to a folder that you may write to"
            ) from error

    def most(self) -> Amount:
        """What all may have together; 0 of something that is not counted. Raises `BadSettings`."""
        setting = limits.load_host(host_folder())
        memory = self._engine.facts.memory_bytes
        default = memory - max(_RESERVE_BYTES, memory // _RESERVE_PART)
        return Amount(setting.memory or default, setting.nano_cpus or 0, setting.pids or self._pids())

    def promises(self, *, cpus: bool = True) -> list[Promise]:
        """What every sandbox has been promised, and what is reserved; sooner told without `cpus`. Needs the engine."""
        # In this order: what is reserved no more is known to the engine by now.
        reserved = list(self._reservations())
        found: dict[tuple[str, str], Promise] = {}
        for each in self._containers({(each.keep, each.task) for each in reserved}, cpus):
            _merge(found, each, sum)
        for each in reserved:
            # It is for a sandbox that may be there by now, or for more than that has.
            _merge(found, each, max)
        return list(found.values())

    def check(self, promise: Promise) -> None:
        """Refuse, with `BudgetExhausted`, what is more than there is beside all other sandboxes."""
        most = self.most()
        for name, show in _SHARED.items():
            if 0 < getattr(most, name) < getattr(promise.amount, name):
                raise TooMuch(
                    f"{show(getattr(promise.amount, name))} are more than all sandboxes of this machine may have,"
                    f" {show(getattr(most, name))}; give the task less, or raise it in {host_folder() / 'host.toml'}"
                )
        known = self.promises(cpus=bool(most.nano_cpus))
        others = [each for each in known if (each.keep, each.task) != (promise.keep, promise.task)]
        for name, show in _SHARED.items():
            limit, needed = getattr(most, name), getattr(promise.amount, name)
            held = sum(getattr(each.amount, name) for each in others)
            if 0 < limit < held + needed:
                raise BudgetExhausted(
                    f"of the {show(limit)} that all sandboxes of this machine may have, {show(max(0, limit - held))}"
                    f" are free and {show(needed)} needed; held by {_holders(others, name, promise.keep)}; complete one"
                    " of them, or try again later"
                )

    @contextlib.contextmanager
    def reserved(self, promise: Promise) -> Iterator[None]:
        """What is promised counts until the end of the block, by when the engine knows of it, or it came to nothing.

        Raises `BudgetExhausted`, and as `promises` does.
        """
        with contextlib.ExitStack() as stack:
            with intent.exclusive(self._folder / "lock"):
                intent.sweep(self._reserved, 0)  # those of the dead; none is made meanwhile
                self.check(promise)
                name = stack.enter_context(intent.held(self._reserved))
                (self._reserved / name).write_bytes(msgspec.json.encode(promise))
            yield

    def _reservations(self) -> Iterator[Promise]:
        for path in self._reserved.glob("*"):
            if not intent.abandoned(self._reserved, path.name):
                with contextlib.suppress(OSError, ValueError):  # it was given back meanwhile
                    yield msgspec.json.decode(path.read_bytes(), type=Promise)

    def _containers(self, reserved: set[tuple[str, str]], cpus: bool) -> Iterator[Promise]:
        """All but those that are reserved and only made yet: the engine tells nothing of one while it starts it."""
        with self._engine.connected() as client:
            for each in client.api.containers(all=True, filters={"label": KEEP}):
                container, labels, state = each["Id"], each["Labels"], each["State"]
                promise = Promise(labels[KEEP], labels.get(TASK, ""), Amount(), container)
                if state in ENDED or (state == "created" and (promise.keep, promise.task) in reserved):
                    continue
                # The kernel's files tell in a tenth of a millisecond what the engine does in one or two.
                live = state in ("running", "paused")
                group = cgroup.find(container, lambda: None) if live and not cpus else None
                sample = None if group is None else cgroup.read(group)
                if sample is not None:
                    taken = Amount(sample.memory_limit, 0, sample.pids_limit)
                else:
                    try:
                        held = client.api.inspect_container(container)["HostConfig"]
                    except docker.errors.NotFound:
                        continue
                    memory = max(held.get("Memory") or 0, held.get("MemorySwap") or 0)
                    taken = Amount(memory, held.get("NanoCpus") or 0, max(0, held.get("PidsLimit") or 0))
                yield replace(promise, amount=taken)

    def _pids(self) -> int:
        """By default; 0 if the engine's kernel is not known to be ours."""
        if self._engine.is_local:
            with contextlib.suppress(OSError, ValueError):
                return int(_PID_MAX.read_text()) * 9 // 10
        return 0


def _merge(found: dict[tuple[str, str], Promise], each: Promise, choose: Callable[[tuple[int, int]], int]) -> None:
    key = (each.keep, each.task)
    known = found.setdefault(key, replace(each, amount=Amount()))
    pairs = zip(astuple(known.amount), astuple(each.amount), strict=True)
    found[key] = replace(known, amount=Amount(*map(choose, pairs)))


def _holders(others: Iterable[Promise], name: str, keep: str) -> str:
    """Who holds most, by ids alone: they may be another user's."""
    holders = sorted(
        (each for each in others if getattr(each.amount, name)), key=lambda each: -getattr(each.amount, name)
    )
    shown = (
        f"task {_id(each.task)}{'' if each.keep == keep else f' of keep {_id(each.keep)}'}"
        f" {_SHARED[name](getattr(each.amount, name))}"
        for each in holders[:_SHOWN]
    )
    more = f" and {len(holders) - _SHOWN} more" if len(holders) > _SHOWN else ""
    return ", ".join(shown) + more


def _id(text: str) -> str:
    """An id from a label, which anybody may have written."""
    return text if text.isascii() and text.isalnum() and len(text) <= _LONGEST_ID else "?"
