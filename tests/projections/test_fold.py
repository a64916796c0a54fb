"""However the state came about, it is the fold of the log; and the past is the fold of the log's beginning."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import MemoryState, StateView, Task, TaskState, digest, fold
from sandkeep.projections.registry import find

from ..events import strategies
from .support import PROJECTIONS, Keep, created
from .support import keep as opened


class Refused(Exception):
    pass


def decide(command: str, task: Task | None, intent: str) -> list[Event]:
    """What a command on a task leads to: one life cycle, kept by the deciders."""
    if command == "create":
        return [] if task else [ev.TaskCreated("make x", "Fix the fixed", None, "image", tags=("fix", "tag"))]
    if task is None:
        raise Refused
    match command, task.state:
        case "start", TaskState.CREATED | TaskState.ACTIVE if task.container is None:
            limits = ev.Limits(1, 1, 1, 1)
            return [ev.SandboxRequested(intent, "image", limits), ev.SandboxStarted(intent, f"c {intent}")]
        case "lose", _ if task.container is not None:
            return [ev.SandboxLost(task.container, "gone")]
        case "pause", TaskState.ACTIVE:
            return [ev.PauseRequested(intent), ev.TaskPaused(intent)]
        case "resume", TaskState.PAUSED:
            return [ev.ResumeRequested(intent), ev.TaskResumed(intent)]
        case "request", TaskState.ACTIVE:
            return [ev.CommandRequested(intent, ("ls",), "/", (), 1)]
        case "outcome", _ if task.pending:
            return [ev.CommandExecuted(task.pending[0].intent, len(intent) % 2, 1, False, ev.Output(0), ev.Output(0))]
        case "checkpoint", TaskState.ACTIVE | TaskState.PAUSED:
            return [ev.CheckpointCreated(intent, "digest", 1, 2, "label")]
        case "complete", TaskState.ACTIVE if not task.pending:
            return [ev.TaskCompleted("done")]
        case "tag", _:
            return [ev.TaskTagged(("fixed", "fresh"), ("tag",))]
        case "untag", _:
            return [ev.TaskTagged(("tag",), ("fixed", "fresh", "fix"))]
        case "fail", TaskState.CREATED | TaskState.ACTIVE:
            return [ev.TaskFailed("reason")]
        case "clean", TaskState.COMPLETED | TaskState.FAILED:
            return [ev.CleanupRequested(intent), ev.TaskCleaned(intent)]
    raise Refused


COMMANDS = st.tuples(
    st.sampled_from(["a", "b", "ab"]),
    st.sampled_from(["create", "start", "lose", "pause", "resume", "request", "outcome"])
    | st.sampled_from(["checkpoint", "complete", "fail", "clean", "tag", "untag"]),
)
STREAMS = st.sampled_from(["task/a", "task/b", "lock/a", "lock/a", "lock/b", "keep", "image/a"])


def check(keep: Keep) -> None:
    """`fold(log)`, the state in use, a rebuilt one, and every past state agree."""
    records = list(keep.log.read())
    state = MemoryState()
    for position in range(len(records) + 1):
        fold(PROJECTIONS, records[position - 1 : position], state)
        with keep.store.as_of(position) as past:
            assert digest(PROJECTIONS, past) == digest(PROJECTIONS, keep.store.refold(position))
            assert digest(PROJECTIONS, past) == digest(PROJECTIONS, state)
    folded, incremental, rebuilt = digest(PROJECTIONS, state), keep.digest(), keep.store.rebuild()
    assert folded == incremental == rebuilt.before == rebuilt.after == keep.digest()
    assert rebuilt.position == len(records)


def run(keep: Keep, task: str, command: str) -> None:
    def decider(state: StateView) -> list[Event]:
        return decide(command, find(state, task), f"{len(task)} {keep.log.head().position}")

    with contextlib.suppress(Refused):
        keep.log.decide(f"task/{task}", decider, actor="me")


@settings(max_examples=60)
@given(st.lists(COMMANDS, max_size=25), st.integers(0, 25))
def test_after_any_history_of_commands_the_state_is_the_fold_of_the_log(
    commands: list[tuple[str, str]], reopen_at: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with opened(Path(folder)) as keep:
            for task, command in commands[:reopen_at]:
                run(keep, task, command)
        with opened(Path(folder)) as keep:
            for task, command in commands[reopen_at:]:
                run(keep, task, command)
            check(keep)


@given(st.lists(COMMANDS, max_size=40), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_however_many_records_are_folded_at_a_time_the_state_is_the_same(
    commands: list[tuple[str, str]], sizes: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as keep:
        for task, command in commands:
            run(keep, task, command)
        facts = list(keep.log.read())
        single, batched = MemoryState(), MemoryState(MemoryState())
        for record in facts:
            for projection in PROJECTIONS:
                projection.apply(single, record)
        begin = 0
        for size in itertools.cycle(sizes):
            if begin >= len(facts):
                break
            fold(PROJECTIONS, facts[begin : begin + size], batched)
            begin += size
        assert list(single.scan(b"")) == list(batched.scan(b""))
        assert digest(PROJECTIONS, single) == keep.digest()


@settings(max_examples=40)
@given(st.lists(st.tuples(STREAMS, strategies.events(), st.booleans()), max_size=15))
def test_after_any_events_at_all_the_state_is_the_fold_of_the_log(facts: list[tuple[str, Event, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as keep:
        for stream, event, deciding in [("task/a", created("a"), True), *facts]:
            if deciding:
                keep.log.decide(stream, lambda state, event=event: [event], actor="me")  # type: ignore[misc]
            else:
                keep.log.append(stream, [event], actor="me")
        check(keep)
