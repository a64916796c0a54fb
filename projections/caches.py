"""Which caches the tasks of a keep have, and how much each is used.

What a task has is forgotten when it is cleaned up: until then it may be reopened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import msgspec

from sandkeep.events import Record
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import CacheChoice
from sandkeep.projections.projection import State, StateView
from sandkeep.projections.registry import STREAM as TASK

STREAM = "cache/"


class CacheUse(msgspec.Struct, frozen=True, array_like=True):
    """How many tasks were ever given a cache, and when the last sandbox that sees it was asked for; how often, and how
    many bytes in all, were removed from it."""

    name: str
    tasks: int = 0
    used_ns: int = 0
    pruned: int = 0
    pruned_bytes: int = 0


_TASK, _NAME = b"caches/task/", b"caches/name/"
_LARGEST = 2**63 - 1
_encode = msgspec.msgpack.Encoder().encode
_decode_choices = msgspec.msgpack.Decoder(tuple[CacheChoice, ...]).decode
_decode_use = msgspec.msgpack.Decoder(CacheUse).decode


@final
class Caches:
    """The projection. Its keys are `caches/task/<task>` and `caches/name/<cache>`."""

    name = "caches"
    version = 1

    def apply(self, state: State, record: Record) -> None:
        if record.type not in _TYPES:
            return
        replace = msgspec.structs.replace
        if record.stream.startswith(STREAM):
            if isinstance(event := record.event, ev.CachePruned):
                use = _use(state, record.stream.removeprefix(STREAM))
                removed = min(use.pruned_bytes + event.bytes, _LARGEST)
                _put(state, replace(use, pruned=use.pruned + 1, pruned_bytes=removed))
            return
        task = record.stream.removeprefix(TASK)
        match record.event:
            case ev.CachesChosen(chosen):
                state.put(_TASK + task.encode(), _encode(chosen))
                for each in chosen:
                    use = _use(state, each.name)
                    _put(state, replace(use, tasks=use.tasks + 1))
            case ev.SandboxRequested():
                for each in choices(state, task):
                    _put(state, replace(_use(state, each.name), used_ns=record.time_ns))
            case ev.TaskCleaned():
                state.delete(_TASK + task.encode())


_TYPES = frozenset(("CachesChosen", "CachePruned", "SandboxRequested", "TaskCleaned"))


def choices(state: StateView, task: str) -> tuple[CacheChoice, ...]:
    """The caches that a task was given."""
    value = state.get(_TASK + task.encode())
    return () if value is None else _decode_choices(value)


def given(state: StateView) -> Iterator[tuple[str, tuple[CacheChoice, ...]]]:
    """The tasks that are not cleaned up and have caches, with these."""
    for key, value in state.scan(_TASK):
        yield key.removeprefix(_TASK).decode(), _decode_choices(value)


def uses(state: StateView) -> Iterator[CacheUse]:
    """Every cache that a task was ever given, by name."""
    for _, value in state.scan(_NAME):
        yield _decode_use(value)


def _use(state: StateView, name: str) -> CacheUse:
    value = state.get(_NAME + name.encode())
    return CacheUse(name) if value is None else _decode_use(value)


def _put(state: State, use: CacheUse) -> None:
    state.put(_NAME + use.name.encode(), _encode(use))
