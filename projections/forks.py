"""The own workspaces of agents: which task each is, whose, and whether it was merged.

A *fork* is a task whose workspace was made from a checkpoint of another task, for the agent that holds that task's lock
by a certain token. It has ended once it was merged or discarded, or is no more. What is left to be done with it after
that is to clean its task up; until then `ended` tells of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import msgspec

from sandkeep.events import Record
from sandkeep.events import catalogue as ev
from sandkeep.projections import registry
from sandkeep.projections.projection import State, StateView
from sandkeep.projections.registry import STREAM


class Fork(msgspec.Struct, frozen=True, array_like=True):
    """An own workspace: the task that it is, the one that it was forked from, and how it ended, if it has: "merged",
    "discarded" or "gone"."""

    task: str
    parent: str
    agent: str
    token: int
    checkpoint: str
    position: int
    time_ns: int
    ended: str = ""


_ENDED_AS = {"WorkspaceMerged": "merged", "WorkspaceDiscarded": "discarded"}
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Fork).decode


@final
class Forks:
    """The projection.

    Keys, each behind `forks/`: `task/<id>` holds the fork that this task is, `token/<parent>/<token>` the id of the
    last one made for a token; `open/<parent>/<position>` holds the id while it has not ended, `ended/<id>` is there
    when it has and was not cleaned up.
    """

    name = "forks"
    version = 1

    def apply(self, state: State, record: Record) -> None:
        # By its name first: this projection is given every record, and decoding an event costs more than all of this.
        if record.type not in _HANDLERS or not record.stream.startswith(STREAM):
            return
        _HANDLERS[record.type](state, record, record.stream.removeprefix(STREAM))


def _forked(state: State, record: Record, parent: str) -> None:
    event = record.event
    if isinstance(event, ev.WorkspaceForked) and find(state, event.task) is None:
        fork = Fork(event.task, parent, event.agent, event.token, event.checkpoint, record.position, record.time_ns)
        state.put(_key("task", fork.task), _encode(fork))
        state.put(_key("token", parent, str(fork.token)), fork.task.encode())
        state.put(_open_key(fork), fork.task.encode())


def _merged_or_discarded(state: State, record: Record, parent: str) -> None:
    event = record.event
    if isinstance(event, ev.WorkspaceMerged | ev.WorkspaceDiscarded):
        fork = find(state, event.task)
        if fork is not None and fork.parent == parent and not fork.ended:
            _end(state, fork, _ENDED_AS[record.type])
            state.put(_key("ended", fork.task), b"")


def _cleaned(state: State, record: Record, task: str) -> None:
    fork = find(state, task)
    if fork is not None:
        state.delete(_key("ended", task))
        if not fork.ended:
            _end(state, fork, "gone")


def _end(state: State, fork: Fork, how: str) -> None:
    state.put(_key("task", fork.task), _encode(msgspec.structs.replace(fork, ended=how)))
    state.delete(_open_key(fork))


_HANDLERS = {
    "WorkspaceForked": _forked,
    "WorkspaceMerged": _merged_or_discarded,
    "WorkspaceDiscarded": _merged_or_discarded,
    "TaskCleaned": _cleaned,
}


def find(state: StateView, task: str) -> Fork | None:
    """The fork that a task is, if it is one."""
    value = state.get(_key("task", task))
    return None if value is None else _decode(value)


def of_token(state: StateView, parent: str, token: int) -> Fork | None:
    """The last fork that was made of a task for who holds its lock by `token`."""
    task = state.get(_key("token", parent, str(token)))
    return None if task is None else find(state, task.decode())


def begun(state: StateView, parent: str) -> Iterator[Fork]:
    """The forks of a task that have not ended, oldest first, also those whose task is not made yet."""
    for _, task in state.scan(_key("open", parent)):
        fork = find(state, task.decode())
        if fork is not None:
            yield fork


def unmerged(state: StateView, parent: str) -> Iterator[Fork]:
    """The forks of a task that hold what was neither merged nor discarded, oldest first."""
    # Who died before the task was made has lost nothing.
    return (fork for fork in begun(state, parent) if registry.find(state, fork.task) is not None)


def ended(state: StateView) -> Iterator[Fork]:
    """The forks, of all tasks, that have ended and were not cleaned up."""
    prefix = b"forks/ended/"
    for key, _ in state.scan(prefix):
        fork = find(state, key.removeprefix(prefix).decode().rstrip("/"))
        if fork is not None:
            yield fork


def _open_key(fork: Fork) -> bytes:
    return _key("open", fork.parent) + fork.position.to_bytes(8, "big")


def _key(*parts: str) -> bytes:
    return f"forks/{'/'.join(parts)}/".encode()
