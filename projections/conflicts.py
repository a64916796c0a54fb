"""Who wrote what in the tasks that several agents work on, and the conflicts among them.

For each agent of a task its *base* is kept: the position up to which it has been told what others changed, which is
that of its last command's outcome, or of its first command. For each path that was changed while several agents worked
on the task, its last writes are kept; so what an agent knew of a path is what was there at its base. A path's history
is bounded, and all but the conflicts themselves goes when the task is cleaned up.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import final

import msgspec
from blake3 import blake3

from sandkeep.events import Record
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Rule, Version
from sandkeep.projections.projection import State, StateView
from sandkeep.projections.registry import STREAM

MAX_WRITES = 16
"""How many writes of a path are kept."""


class ConflictKind(enum.StrEnum):
    """What collides."""

    SAME_FILE = "same-file"
    SAME_REGION = "same-region"
    DELETE_EDIT = "delete-edit"
    RENAME = "rename"
    BRANCH = "branch"
    SUBMODULE = "submodule"
    LOCK_FILE = "lock-file"


class Strategy(enum.StrEnum):
    """How a conflict is settled."""

    REJECT = "reject"
    LAST_WRITER_WINS = "last-writer-wins"
    THREE_WAY = "three-way"
    OWN_WORKSPACE = "own-workspace"
    ASK = "ask"


class Write(msgspec.Struct, frozen=True, array_like=True):
    """A change of a path, by one of `agents`; by no command if there are none."""

    position: int
    agents: tuple[str, ...]
    before: Version | None
    after: Version | None
    renamed: str = ""


class PathHistory(msgspec.Struct, frozen=True, array_like=True):
    """The last writes of a path, oldest first; `dropped` is the position of the last that is not kept, or 0."""

    path: str
    writes: tuple[Write, ...] = ()
    dropped: int = 0


class Conflict(msgspec.Struct, frozen=True):
    """A conflict; open while nothing is `taken`. See `catalogue.ConflictDetected`."""

    id: str
    task: str
    kind: str
    path: str
    agents: tuple[str, ...]
    others: tuple[str, ...]
    strategy: str
    base: Version | None
    ours: Version | None
    theirs: Version | None
    based: bool
    renamed: str
    position: int
    time_ns: int
    taken: str = ""
    result: Version | None = None
    resolved_at: int = 0

    @property
    def concerned(self) -> tuple[str, ...]:
        """Every agent on either side."""
        return (*self.agents, *self.others)


_Base = tuple[str, int]
_encode = msgspec.msgpack.Encoder().encode
_decode_conflict = msgspec.msgpack.Decoder(Conflict).decode
_decode_history = msgspec.msgpack.Decoder(PathHistory).decode
_decode_base = msgspec.msgpack.Decoder(_Base).decode
_decode_rules = msgspec.msgpack.Decoder(tuple[Rule, ...]).decode


@final
class Conflicts:
    """The projection.

    Keys, each behind `conflicts/`: `agent/<task>/<digest>` an agent and its base, `path/<task>/<digest>` a path's
    history, `policy/<task>` the rules, `all/<task>/<position>` a conflict, and, while it is open,
    `open/<task>/<position>` and `concerns/<digest of agent>/<task>/<position>`.
    """

    name = "conflicts"
    version = 1

    def apply(self, state: State, record: Record) -> None:
        handler = _HANDLERS.get(record.type)
        if handler is not None and record.stream.startswith(STREAM):
            handler(state, record, record.stream.removeprefix(STREAM))


def _agent_seen(state: State, record: Record, task: str) -> None:
    key = _key("agent", task, _hash(record.actor))
    if (record.type == "CommandRequested") == (state.get(key) is None):
        state.put(key, _encode((record.actor, record.position)))


def _paths_changed(state: State, record: Record, task: str) -> None:
    event = record.event
    if isinstance(event, ev.PathsChanged):
        for change in event.changes:
            write = Write(record.position, event.agents, change.before, change.after, change.renamed)
            _add(state, task, change.path, write)


def _detected(state: State, record: Record, task: str) -> None:
    event = record.event
    if not isinstance(event, ev.ConflictDetected):
        return
    conflict = Conflict(
        id=event.conflict,
        task=task,
        kind=event.kind,
        path=event.path,
        agents=event.agents,
        others=event.others,
        strategy=event.strategy,
        base=event.base,
        ours=event.ours,
        theirs=event.theirs,
        based=event.based,
        renamed=event.renamed,
        position=record.position,
        time_ns=record.time_ns,
    )
    place = record.position.to_bytes(8, "big")
    state.put(_key("all", task) + place, _encode(conflict))
    state.put(_key("open", task) + place, b"")
    for agent in conflict.concerned:
        state.put(_key("concerns", _hash(agent), task) + place, b"")


def _resolved(state: State, record: Record, task: str) -> None:
    event = record.event
    if not isinstance(event, ev.ConflictResolved):
        return
    for conflict in list(open_conflicts(state, task)):
        if conflict.id == event.conflict:
            _close(state, conflict)
            done = msgspec.structs.replace(
                conflict, taken=event.taken or "nothing", result=event.result, resolved_at=record.position
            )
            state.put(_key("all", task) + conflict.position.to_bytes(8, "big"), _encode(done))
    if event.before != event.result:
        agents = () if event.strategy in tuple(Strategy) else (record.actor,)
        _add(state, task, event.path, Write(record.position, agents, event.before, event.result))


def _policy_set(state: State, record: Record, task: str) -> None:
    event = record.event
    if isinstance(event, ev.ConflictPolicySet):
        state.put(_key("policy", task), _encode(event.rules))


def _cleaned(state: State, record: Record, task: str) -> None:
    for conflict in list(open_conflicts(state, task)):
        _close(state, conflict)
    for prefix in (_key("agent", task), _key("path", task), _key("policy", task)):
        for key in [key for key, _ in state.scan(prefix)]:
            state.delete(key)


_HANDLERS = {
    "CommandRequested": _agent_seen,
    "CommandExecuted": _agent_seen,
    "PathsChanged": _paths_changed,
    "ConflictDetected": _detected,
    "ConflictResolved": _resolved,
    "ConflictPolicySet": _policy_set,
    "TaskCleaned": _cleaned,
}


def bases(state: StateView, task: str) -> dict[str, int]:
    """The agents of a task, and the position up to which each knows what others did."""
    return dict(_decode_base(value) for _, value in state.scan(_key("agent", task)))


def history(state: StateView, task: str, path: str) -> PathHistory:
    """What is kept of a path's writes."""
    value = state.get(_key("path", task, _hash(path)))
    return PathHistory(path) if value is None else _decode_history(value)


def histories(state: StateView, task: str) -> Iterator[PathHistory]:
    """Every path that was changed while several agents worked on the task, in no particular order."""
    for _, value in state.scan(_key("path", task)):
        yield _decode_history(value)


def rules(state: StateView, task: str) -> tuple[Rule, ...] | None:
    """The task's rules; None if none were ever set."""
    value = state.get(_key("policy", task))
    return None if value is None else _decode_rules(value)


def conflicts(state: StateView, task: str) -> Iterator[Conflict]:
    """All conflicts there ever were in a task, oldest first."""
    for _, value in state.scan(_key("all", task)):
        yield _decode_conflict(value)


def open_conflicts(state: StateView, task: str) -> Iterator[Conflict]:
    """The open conflicts of a task, oldest first."""
    for key, _ in state.scan(_key("open", task)):
        value = state.get(_key("all", task) + key[-8:])
        if value is not None:
            yield _decode_conflict(value)


def concerning(state: StateView, agent: str) -> Iterator[Conflict]:
    """The open conflicts that an agent has a side in, of all tasks."""
    prefix = _key("concerns", _hash(agent))
    for key, _ in state.scan(prefix):
        value = state.get(b"conflicts/all/" + key[len(prefix) :])
        if value is not None:
            yield _decode_conflict(value)


def _add(state: State, task: str, path: str, write: Write) -> None:
    known = history(state, task, path)
    writes = (*known.writes, write)
    dropped = writes[-MAX_WRITES - 1].position if len(writes) > MAX_WRITES else known.dropped
    state.put(_key("path", task, _hash(path)), _encode(PathHistory(path, writes[-MAX_WRITES:], dropped)))


def _close(state: State, conflict: Conflict) -> None:
    place = conflict.position.to_bytes(8, "big")
    state.delete(_key("open", conflict.task) + place)
    for agent in conflict.concerned:
        state.delete(_key("concerns", _hash(agent), conflict.task) + place)


def _key(*parts: str) -> bytes:
    return f"conflicts/{'/'.join(parts)}/".encode()


def _hash(name: str) -> str:
    # Names may be longer than a key, and hold what separates keys.
    return blake3(name.encode()).hexdigest(length=16)
