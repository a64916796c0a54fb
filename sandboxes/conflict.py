"""Conflicts: found by looking at a workspace before and after each command, settled by strategy or by choice.

A task is looked at once several agents have run commands in it, or rules were set for it; others pay nothing. Each look
compares the workspace with the last one (see `survey`), records what changed and whose it is, and what collides
(`collision`): decide. What a strategy then puts back or merges is written into the workspace: effect.
`ConflictResolved` says that it was: outcome. A process that dies before it leaves the conflict open, to be settled.

Everything here runs under `keep.working(task)`, so that looks of one task follow each other. A command may write a path
between our last look at it and our putting another content there; that is one system call, and what was lost then
was never seen by anybody.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import msgspec
from reactivex import Observable
from reactivex import operators as ops

from sandkeep.events import BadInput, BlobStore, Event, Record, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Change, Rule, Version
from sandkeep.projections import Conflict, ConflictKind, StateView, Strategy, TaskState, conflicts, registry
from sandkeep.sandboxes import collision, survey
from sandkeep.sandboxes.collision import Collision
from sandkeep.sandboxes.errors import ConflictNotFound, ConflictRefused
from sandkeep.sandboxes.manifest import Kind
from sandkeep.sandboxes.shadow import POINTER, Shadow
from sandkeep.sandboxes.survey import Run, Survey

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

MAX_RULES = 100
_MAX_PATTERN = 500
_EVENT_BYTES = 48 * 1024
_CHANGE_BYTES = 400
_FEW = 500
_CHOSEN = "chosen"
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


def begin(keep: Keep, task: str) -> None:
    """Look at a workspace before a command of ours begins. The caller is `working` on the task."""
    _Work(keep, task).look_or_log()


def end(keep: Keep, task: str, command: str) -> News | None:
    """Look at a workspace when our `command` has ended, before its outcome is stored, and tell what concerns us.

    None if only one agent works on the task. That looking fails is logged: the next look finds the same.
    """
    with keep.working(task):
        return _Work(keep, task, command).look_or_log()


@final
class TaskConflicts:
    """The conflicts of one task. Made by `Keep.conflicts`."""

    def __init__(self, keep: Keep, task: str) -> None:
        """Use `Keep.conflicts` instead."""
        self._keep = keep
        self._task = task

    def list(self, *, settled: bool = False) -> list[Conflict]:
        """The open conflicts, oldest first; also those that were `settled`, if asked for."""
        with self._keep.projections.reading() as state:
            return list((conflicts.conflicts if settled else conflicts.open_conflicts)(state, self._task))

    def live(self) -> Observable[Record]:
        """The records of this task's conflicts, detected and settled, in whatever process. See `Bus.live`."""
        stream, told = registry.STREAM + self._task, ("ConflictDetected", "ConflictResolved")

        def concerns(record: Record) -> bool:
            return record.stream == stream and record.type in told

        return self._keep.bus.live().pipe(ops.filter(concerns))

    def rules(self) -> tuple[Rule, ...]:
        """What settles conflicts: the first rule whose pattern matches; `three-way` where none does."""
        with self._keep.projections.reading() as state:
            return conflicts.rules(state, self._task) or ()

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Settle conflicts by these rules from now on; the task is looked at from now on, however few work on it.

        Raises `BadInput`, and `TaskRefused` if the task was cleaned up.
        """
        event = ev.ConflictPolicySet(tuple(map(check_rule, rules)))
        if len(event.rules) > MAX_RULES:
            raise BadInput(f"there are {len(event.rules)} rules, more than {MAX_RULES}; use fewer, with wider patterns")
        with self._keep.working(self._task):
            _Work(self._keep, self._task).store([event])

    def resolve(self, conflict: str, take: str | Path) -> Conflict:
        """Settle an open conflict: with "ours" (what the later agents wrote), "theirs" (what was there before),
        "merged" (both, if they do not overlap), or the content of the file at a path of the host.

        Raises `ConflictNotFound`, `ConflictRefused`, `BadInput`.
        """
        with self._keep.working(self._task):
            return _Work(self._keep, self._task).resolve(conflict, take)


def check_rule(rule: Rule) -> Rule:
    """The rule, if it is one. Raises `BadInput`."""
    if not (0 < len(rule.pattern) <= _MAX_PATTERN and rule.pattern.isprintable()):
        raise BadInput(f"a pattern has 1 to {_MAX_PATTERN} printable characters; shorten or reword it")
    if rule.strategy not in tuple(Strategy):
        raise BadInput(f"{rule.strategy[:40]!r} is no strategy; use one of {', '.join(Strategy)}")
    return rule


@final
class _Work:
    """One look at, or resolution in, one task."""

    def __init__(self, keep: Keep, task: str, ending: str | None = None) -> None:
        self._keep, self._task, self._ending = keep, task, ending
        self._stream = registry.STREAM + task
        self._folder = keep.path / "tasks" / task

    def look_or_log(self) -> News | None:
        try:
            return self.look()
        except (SandkeepError, OSError) as error:
            _logger.warning("what changed in task %s cannot be recorded now: %s", self._task, error)
            return None

    def look(self) -> News | None:
        with self._keep.projections.reading() as state:
            known = conflicts.bases(state, self._task)
            watched = len(known.keys() | {self._keep.actor}) > 1 or conflicts.rules(state, self._task) is not None
        if not watched:
            return None
        with Shadow(self._folder, self._keep.blobs) as self._shadow:
            return self._look(known)

    def _look(self, bases: dict[str, int]) -> News:
        before = self._shadow.load()
        ran, now = self._commands(before)
        files = self._shadow.look(before)
        self._now = msgspec.structs.replace(now, files=files)
        changed = survey.changes(before.files, files) if before else []
        authors = tuple(sorted({run.agent for run in ran.values()}))
        # What an agent was told by another of its commands, one that began before that cannot know.
        knew = {agent: min(run.base for run in ran.values() if run.agent == agent) for agent in authors}
        found = self._collisions(changed, authors, knew)
        events = self._changed_events(before.position if before else 0, changed, authors, tuple(sorted(ran)))
        events += [self._conflict_event(each, authors) for each in found]
        detected = [event for event in events if isinstance(event, ev.ConflictDetected)]
        self.store(events)
        self._shadow.save(self._now)
        for event in detected:
            self._settle(event)
        if changed:
            self._shadow.sweep(files.values())
        return self._news(bases, {event.conflict for event in detected})

    def _commands(self, before: Survey | None) -> tuple[dict[str, Run], Survey]:
        """The commands that ran since the survey `before`, and a survey of those that still run."""
        now = before or Survey(0, 0, {}, {}, {})
        ran, told, revision, ended = dict(now.running), dict(now.told), now.revision, {self._ending}
        for record in self._keep.log.read_stream(self._stream, revision):
            revision = record.revision
            if record.type in ("CommandRequested", "CommandExecuted", "CommandFailed"):
                event = record.event
                if isinstance(event, ev.CommandRequested):
                    ran[event.intent] = Run(record.actor, told.setdefault(record.actor, record.position))
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

    def _settle(self, event: ev.ConflictDetected) -> None:
        """Do what the conflict's strategy says, if it can be done."""
        taken = _TAKEN.get(event.strategy)
        if taken is None or (taken == "merged" and event.kind != ConflictKind.SAME_FILE):
            return
        try:
            self._put(event, event.conflict, event.strategy, taken)
        except ConflictRefused:
            return  # it stays open, as one does that cannot be merged
        except (SandkeepError, OSError) as error:
            _logger.warning("conflict %s of task %s stays open: %s", event.conflict, self._task, error)

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
