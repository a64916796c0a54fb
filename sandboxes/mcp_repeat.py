"""What became of a call whose server died: found in the log by the call's key, so that nothing is done twice.

A call that has stored nothing had no effect, and is made as if for the first time; so is one that had only prepared
something which is prepared already now (a sandbox was started, a claim in the queue is withdrawn). A command that
began is waited for, or reported with what it printed. For anything else that was begun, what crashed is settled first;
then it is told as it would have been, or it is an error that says what was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sandkeep.events import Record, SandkeepError, calls
from sandkeep.events import catalogue as ev
from sandkeep.projections import locks, registry
from sandkeep.sandboxes import documents, documents_work, joined
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.errors import CallInterrupted
from sandkeep.sandboxes.vocabulary_terms import Verb

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_PREPARED = (
    *(ev.SandboxRequested, ev.SandboxStarted, ev.SandboxFailed, ev.SandboxLost, ev.SandboxResumed),
    *(ev.LockRenewed, ev.LockExpired),
)
"""What a call may do again that has come no further."""

_ENDS = {
    "complete-task": (ev.TaskCompleted, ev.TaskFailed),
    "cleanup-task": (ev.TaskCleaned,),
    "pause-task": (ev.TaskPaused,),
    "reopen-task": (ev.TaskReopened,),
}
"""What a verb that answers with its task has stored when it is done."""


def again(door: Door, verb: Verb, arguments: dict[str, Any], key: str, since: int, run: Callable[[], Any]) -> Any:
    """The result of a call that was made before, with this key, when the log had come to position `since`. What is not
    done yet is done by `run`. Raises `CallInterrupted`, and what the verb raises."""
    keep = door.keep
    # Readers do not see what a process was killed in the midst of committing before somebody else begins to write.
    keep.log.decide("keep", lambda state: [], actor=keep.actor)
    made = calls.made(keep.log, key, since)
    begun = [record for record in made if not isinstance(record.event, _PREPARED)]
    if verb.name == "resume-task":  # it sees for itself whether there is still something to be done
        begun = []
    if verb.name == "attach":
        if (attached := _attached(door, begun, arguments)) is not None:
            return attached
        begun = []
    if not begun:
        with calls.call(f"{key}/{len(made)}"):
            return run()
    return _found(door, verb, begun)


def _found(door: Door, verb: Verb, begun: Sequence[Record]) -> Any:
    keep = door.keep
    last = begun[-1]
    task = last.stream.removeprefix(registry.STREAM)
    match verb.name:
        case "execute":
            asked = next((each.event for each in begun if isinstance(each.event, ev.CommandRequested)), None)
            if asked is not None and asked.background:
                for running in keep.task(task).running():
                    if running.id == asked.intent:
                        return documents.process(running)
            if asked is not None:
                result = joined.follow(keep, task, asked, door.output, door.stop)
                if result is not None:
                    return documents.ran(result, keep.blobs)
        case "create-task":
            _settled(keep, task)
            if any(isinstance(each.event, ev.WorkspacePrepared) for each in keep.task(task).history()):
                found = keep.task(task)
                return documents.made_task(found.state, str(found.workspace))
        case "checkpoint":
            for each in keep.task(task).checkpoints():
                if any(each.position == record.position for record in begun):
                    return documents.checkpoint(each)
        case name if name in _ENDS:
            _settled(keep, task)
            since = keep.log.read(begun[0].position - 1)
            if any(each.stream == last.stream and isinstance(each.event, _ENDS[name]) for each in since):
                return documents.task(keep.task(task).state)
    raise _interrupted(begun)


def _attached(door: Door, begun: Sequence[Record], arguments: dict[str, Any]) -> documents_work.Attached | None:
    """What an interrupted `attach` holds, if it was granted; else its place in the queue is given up."""
    for record in begun:
        if isinstance(asked := record.event, ev.LockRequested):
            task = record.stream.removeprefix(locks.STREAM)
            token = door.keep.locking.withdraw(task, asked.claim)
            if token is not None:
                return documents_work.Attached(task, asked.agent, asked.mode, token, asked.lease_ns / 1e9)
    for record in begun:  # a lock that was free is granted without a place in the queue
        if isinstance(granted := record.event, ev.LockGranted):
            task = record.stream.removeprefix(locks.STREAM)
            claim = door.keep.locking.check(task, record.position)
            if claim is not None and claim.id == granted.claim:
                return documents_work.Attached(task, claim.agent, claim.mode, record.position, claim.lease_ns / 1e9)
    return None


def _settled(keep: Keep, task: str) -> None:
    """Have what the crash left under way in a task settled."""
    if keep.task(task).state.pending:
        keep.reconcile(again=True)


def _interrupted(begun: Sequence[Record]) -> SandkeepError:
    done = ", ".join(dict.fromkeys(record.type for record in begun))
    return CallInterrupted(
        f"the server crashed while it did this; recorded are {done} at positions {begun[0].position} to"
        f" {begun[-1].position}; look at the task before you do it again"
    )
