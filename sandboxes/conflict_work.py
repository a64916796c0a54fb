"""One look at a task's workspace: what changed, whose it is, what collides, and what a strategy makes of that.

A `Work` is used under `keep.working(task)`. See `conflict` for the whole.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import msgspec

from sandkeep.events import BadInput, BlobStore, Event, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Change, Version
from sandkeep.projections import Conflict, ConflictKind, StateView, Strategy, TaskState, conflicts, forks, registry
from sandkeep.sandboxes import collision, survey
from sandkeep.sandboxes.collision import Collision
from sandkeep.sandboxes.errors import ConflictNotFound, ConflictRefused
from sandkeep.sandboxes.manifest import Kind
from sandkeep.sandboxes.shadow import POINTER, Shadow
from sandkeep.sandboxes.survey import Run, Survey

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_EVENT_BYTES = 48 * 1024
_CHANGE_BYTES = 400
_FEW = 500
_CHOSEN = "chosen"
_RUNS = frozenset(
    ("CommandRequested", "CommandExecuted", "CommandFailed", "MergeRequested", "WorkspaceMerged", "MergeFailed")
)
"""What begins and ends, on a task's stream, something that changes the workspace."""

_TAKEN: dict[str, str] = {
    Strategy.REJECT: "theirs",
    Strategy.LAST_WRITER_WINS: "ours",
    Strategy.THREE_WAY: "merged",
}
_logger = logging.getLogger(__name__)


class News(msgspec.Struct, frozen=True):
    """What an agent is told with its command's result: how many paths each other agent has changed since it was last
    told, its open conflicts, and those that this command ended in, settled or not."""

    changed: dict[str, int]
    conflicts: tuple[Conflict, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.conflicts)

    def __str__(self) -> str:
        parts = [
            f"{count} {'path' if count == 1 else 'paths'} changed by {agent} since you last looked"
            for agent, count in sorted(self.changed.items())
        ]
        for each in self.conflicts:
            state = f"settled, {each.taken} taken" if each.taken else "open"
            parts.append(f"conflict {each.id} {state}: {each.kind} {each.path} with {', '.join(each.others)}")
        return "; ".join(parts)


@final
class Work:
    """One look at, or resolution in, one task."""

    def __init__(self, keep: Keep, task: str, ending: str | None = None) -> None:
        """Look at `task`, in which the command or merge `ending` has ended, though the log does not say so yet."""
        self._keep, self._task, self._ending = keep, task, ending
        self._stream = registry.STREAM + task
        self._folder = keep.path / "tasks" / task

    def look_or_log(self) -> News | None:
        """As `look`; that it fails is logged."""
        try:
            return self.look()
        except (SandkeepError, OSError) as error:
            _logger.warning("what changed in task %s cannot be recorded now: %s", self._task, error)
            return None

    def look(self, *, detecting: bool = True) -> News | None:
        """Record what changed since the last look, and what collides unless that is on record already; None if the task
        need not be looked at."""
        with self._keep.projections.reading() as state:
            known = conflicts.bases(state, self._task)
            watched = len(known.keys() | {self._keep.actor}) > 1 or conflicts.rules(state, self._task) is not None
        if not watched:
            return None
        with Shadow(self._folder, self._keep.blobs) as self._shadow:
            return self._look(known, detecting)

    def _look(self, bases: dict[str, int], detecting: bool) -> News:
        before = self._shadow.load()
        ran, now = self._commands(before)
        files = self._shadow.look(before)
        self._now = msgspec.structs.replace(now, files=files)
        changed = survey.changes(before.files, files) if before else []
        authors = tuple(sorted({run.agent for run in ran.values()}))
        # What an agent was told by another of its commands, one that began before that cannot know.
        knew = {agent: min(run.base for run in ran.values() if run.agent == agent) for agent in authors}
        found = self._collisions(changed, authors if detecting else (), knew)
        events = self._changed_events(before.position if before else 0, changed, authors, tuple(sorted(ran)))
        events += [self._conflict_event(each, authors) for each in found]
        detected = [event for event in events if isinstance(event, ev.ConflictDetected)]
        self.store(events)
        self._shadow.save(self._now)
        for event in detected:
            self._settle(event, event.conflict)
        if changed:
            self._shadow.sweep(files.values())
        return self._news(bases, {event.conflict for event in detected})

    def _commands(self, before: Survey | None) -> tuple[dict[str, Run], Survey]:
        """The commands that ran since the survey `before`, and a survey of those that still run."""
        now = before or Survey(0, 0, {}, {}, {})
        ran, told, revision, ended = dict(now.running), dict(now.told), now.revision, {self._ending}
        for record in self._keep.log.read_stream(self._stream, revision):
            revision = record.revision
            if record.type in _RUNS:
                event = record.event
                if isinstance(event, ev.CommandRequested):
                    ran[event.intent] = Run(record.actor, told.setdefault(record.actor, record.position))
                elif isinstance(event, ev.MergeRequested):
                    # What a merge writes is the agent's whose workspace it was, and knew no more than that did.
                    with self._keep.projections.reading() as state:
                        fork = forks.find(state, event.task)
                    if fork is not None:
                        ran[event.intent] = Run(fork.agent, fork.position)
                elif isinstance(event, ev.Outcome):
                    ended.add(event.intent)
                    if record.type == "CommandExecuted":
                        told[record.actor] = record.position
        runs = {intent: run for intent, run in ran.items() if intent not in ended}
        return ran, Survey(self._keep.head().position, revision, runs, told, {})

    def _collisions(self, changed: list[Change], authors: tuple[str, ...], bases: dict[str, int]) -> list[Collision]:
        with self._keep.projections.reading() as state:
            busy = {(each.path, each.concerned) for each in conflicts.open_conflicts(state, self._task)}
            histories = {change.path: conflicts.history(state, self._task, change.path) for change in changed}
        # A look that was recorded and then cut off is not recorded again.
        changed[:] = [
            change
            for change in changed
            if not (known := histories[change.path].writes) or known[-1].after != change.after
        ]
        found = [collision.collide(change, authors, bases, histories[change.path]) for change in changed]
        return [
            each
            for each in found
            if each is not None
            and (each.change.path, (*authors, *each.others)) not in busy
            and not self._advances(each)
        ]

    def _advances(self, each: Collision) -> bool:
        """Whether a branch only goes on from where the others had left it."""
        before, after = each.change.before, each.change.after
        if before is None or after is None or not each.change.path.startswith(collision.BRANCHES):
            return False
        return self._shadow.follows(after, before)

    def _changed_events(
        self, since: int, changed: list[Change], authors: tuple[str, ...], ran: tuple[str, ...]
    ) -> list[Event]:
        events: list[Event] = []
        kept = self._shadow.kept(change.before for change in changed)
        for part in _parts(changed):
            told = [msgspec.structs.replace(change, before=kept(change.before)) for change in part]
            events.append(ev.PathsChanged(authors, ran, since, tuple(told)))
        return events

    def _conflict_event(self, each: Collision, authors: tuple[str, ...]) -> Event:
        change = each.change
        kept = self._shadow.kept((each.base, change.before, change.after))
        merged = self._shadow.merged(each.base if each.based else None, change.after, change.before)
        with self._keep.projections.reading() as state:
            rules = conflicts.rules(state, self._task) or ()
        return ev.ConflictDetected(
            conflict=secrets.token_hex(6),
            kind=collision.kind(each, merged.overlaps if merged else 0),
            path=change.path,
            agents=authors,
            others=each.others,
            strategy=collision.strategy(change.path, rules),
            base=kept(each.base),
            ours=kept(change.after),
            theirs=kept(change.before),
            based=each.based,
            renamed=each.renamed,
        )

    def detect(self, found: list[Collision], agent: str) -> None:
        """Put on record what will collide when the changes of `agent` are written, before they are; once."""
        with self._keep.projections.reading() as state:
            busy = {(each.path, each.concerned) for each in conflicts.open_conflicts(state, self._task)}
        with Shadow(self._folder, self._keep.blobs) as self._shadow:
            fresh = [each for each in found if (each.change.path, (agent, *each.others)) not in busy]
            self.store([self._conflict_event(each, (agent,)) for each in fresh])

    def settle(self, agent: str, since: int) -> None:
        """Do what strategies say of the open conflicts of `agent` since a position, where nobody has gone on yet."""
        with self._keep.projections.reading() as state:
            found = [
                each
                for each in conflicts.open_conflicts(state, self._task)
                if each.agents == (agent,) and each.position > since
            ]
        with Shadow(self._folder, self._keep.blobs) as self._shadow:
            for each in found:
                present = self._now.files.get(each.path)
                if (present.version if present is not None else None) in (each.ours, each.theirs):
                    self._settle(each, each.id)

    def _settle(self, event: ev.ConflictDetected | Conflict, conflict: str) -> None:
        """Do what the conflict's strategy says, if it can be done."""
        taken = _TAKEN.get(event.strategy)
        if taken is None or (taken == "merged" and event.kind != ConflictKind.SAME_FILE):
            return
        try:
            self._put(event, conflict, event.strategy, taken)
        except ConflictRefused:
            return  # it stays open, as one does that cannot be merged
        except (SandkeepError, OSError) as error:
            _logger.warning("conflict %s of task %s stays open: %s", conflict, self._task, error)

    def _chosen(self, event: ev.ConflictDetected | Conflict, take: str | Path) -> Version | None:
        """What is to be at the path. Raises `ConflictRefused`, `BadInput`."""
        if take in ("ours", "theirs"):
            chosen = event.ours if take == "ours" else event.theirs
            if chosen is not None and not chosen.digest and chosen.kind in (Kind.FILE, Kind.LINK, POINTER):
                raise ConflictRefused(f"the content of {event.path!r} was not kept; take another")
            return chosen
        if take != "merged":
            like = event.ours or event.theirs
            digest, size = _given(Path(take), self._keep.blobs)
            return Version(Kind.FILE, digest, size, like.mode if like is not None and like.kind == Kind.FILE else 0o644)
        merged = self._shadow.merged(event.base, event.ours, event.theirs) if event.based else None
        if merged is None or merged.overlaps or event.ours is None or event.theirs is None or event.base is None:
            raise ConflictRefused(f"the two sides of {event.path!r} cannot be merged; take one of them, or give a file")
        mode = collision.merge_mode(event.base, event.ours, event.theirs)
        return Version(Kind.FILE, self._keep.blobs.put(merged.content), len(merged.content), mode)

    def _put(self, event: ev.ConflictDetected | Conflict, conflict: str, strategy: str, take: str | Path) -> None:
        """Make what is taken what is at the conflict's path, and record that."""
        path, present = event.path, self._now.files.get(event.path)
        before = present.version if present is not None else None
        result = before if take == "ours" and before == event.ours else self._chosen(event, take)
        if path.startswith(collision.BRANCHES) and before is not None and result is not None:
            # Git may have joined both sides since: what goes on from the one that is taken is not set back to it.
            result = before if self._shadow.follows(before, result) else result
        if before != result:
            before = self._shadow.kept((before,))(before)
            written = self._shadow.write(path, present, result)
            self._now.files.pop(path, None)
            if written is not None:
                self._now.files[path] = written
        taken = take if isinstance(take, str) else "file"
        self.store([ev.ConflictResolved(conflict, path, strategy, taken, before, result)])
        self._shadow.save(self._now)

    def resolve(self, prefix: str, take: str | Path) -> Conflict:
        self.look()
        with self._keep.projections.reading() as state:
            found = [each for each in conflicts.conflicts(state, self._task) if prefix and each.id.startswith(prefix)]
        if len(found) != 1:
            raise ConflictNotFound(
                f"{len(found) or 'no'} conflicts of task {self._task} have the id {prefix[:40]!r};"
                f" 'sandkeep conflicts {self._task}' lists them"
            )
        if found[0].taken:
            raise ConflictRefused(f"conflict {found[0].id} is settled already: {found[0].taken} was taken")
        if not (self._folder / "workspace").is_dir():
            raise ConflictRefused(f"task {self._task} has no workspace any more; its record says what was on each side")
        with Shadow(self._folder, self._keep.blobs) as self._shadow:
            now = self._shadow.load()
            if now is None:
                raise ConflictRefused(f"task {self._task} was never looked at; run a command in it, then try again")
            self._now = now
            self._put(found[0], found[0].id, _CHOSEN, take)
        with self._keep.projections.reading() as state:
            return next(each for each in conflicts.conflicts(state, self._task) if each.id == found[0].id)

    def store(self, events: list[Event]) -> None:
        """Append to the task's stream, unless the task has no use for it any more."""

        def decider(part: list[Event], state: StateView) -> list[Event]:
            task = registry.find(state, self._task)
            return part if task is not None and task.state is not TaskState.CLEANED else []

        for start in range(0, len(events), _FEW):
            part = events[start : start + _FEW]
            self._keep.log.decide(self._stream, partial(decider, part), actor=self._keep.actor)

    def _news(self, bases: dict[str, int], detected: set[str]) -> News:
        me = self._keep.actor
        changed: dict[str, int] = {}
        with self._keep.projections.reading() as state:
            for known in conflicts.histories(state, self._task):
                fresh = {name for write in known.writes if write.position > bases.get(me, 0) for name in write.agents}
                for name in fresh - {me}:
                    changed[name] = changed.get(name, 0) + 1
            mine = [
                each
                for each in conflicts.conflicts(state, self._task)
                if (not each.taken and me in each.concerned) or each.id in detected
            ]
        return News(changed, tuple(mine))


def _given(file: Path, blobs: BlobStore) -> tuple[str, int]:
    try:
        with file.open("rb") as source:
            if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
                raise BadInput(f"{str(file)!r} is no file; take ours, theirs or merged, or name a file")
            return blobs.put_stream(source, limit=survey.MAX_KEPT_BYTES)
    except OSError as error:
        raise BadInput(f"{str(file)!r} cannot be read: {error.strerror}; take ours, theirs or merged") from error


def _parts(changed: list[Change]) -> Iterator[list[Change]]:
    """The changes in lists that each fit into an event."""
    part: list[Change] = []
    size = 0
    for change in changed:
        needed = _CHANGE_BYTES + len(change.path.encode()) + len(change.renamed.encode())
        if part and size + needed > _EVENT_BYTES:
            yield part
            part, size = [], 0
        part.append(change)
        size += needed
    if part:
        yield part
