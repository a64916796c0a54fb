"""Agents that write, delete and rename beside each other, against a model that keeps every version of every path."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from sandkeep.events import catalogue as ev
from sandkeep.projections import Checkpoints, Conflicts, MemoryState, Registry, digest, fold
from sandkeep.sandboxes import Keep

from .agents import Team

AGENTS = ("ann", "bob", "eve")
PATHS = ("a", "b", "c")

Found = tuple[str, tuple[str, ...], tuple[str, ...], str | None, str | None]
"""Path, later agents, others, what was there, what is there."""


class Agents(RuleBasedStateMachine):
    """The model: what each look found, with who may have done it; nothing of it is ever forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.keep = Keep.init(Path(self.folder.name) / "keep", actor="tester")
        self.team = Team(self.keep)
        self.team.rules(("*", "ask"))
        self.number = 0
        self.time = 0
        self.running: dict[str, str] = {}
        self.told: dict[str, int] = {}
        self.now: dict[str, str] = {}
        self.seen: dict[str, str] | None = None
        self.past: dict[str, list[tuple[int, tuple[str, ...]]]] = {path: [] for path in PATHS}
        self.expected: list[Found] = []

    @rule(agent=st.sampled_from(AGENTS))
    def begin_or_end(self, agent: str) -> None:
        if agent in self.running:
            self.look()
            self.team.end(agent, self.running.pop(agent))
            self.told[agent] = self.time
        else:
            self.look()
            self.running[agent] = self.team.begin(agent)
            self.told.setdefault(agent, self.time)

    @rule(path=st.sampled_from(PATHS))
    def write(self, path: str) -> None:
        self.number += 1
        self.now[path] = f"{self.number}"
        self.team.put(path, self.now[path])

    @precondition(lambda self: self.now)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.now)))
        del self.now[path]
        (self.team.workspace / path).unlink()

    @precondition(lambda self: self.now)
    @rule(data=st.data(), to=st.sampled_from(PATHS))
    def rename(self, data: st.DataObject, to: str) -> None:
        path = data.draw(st.sampled_from(sorted(self.now)))
        self.now[to] = self.now.pop(path)
        (self.team.workspace / path).rename(self.team.workspace / to)

    def look(self) -> None:
        """What a look at this moment has to find."""
        self.time += 1
        before, self.seen = self.seen, dict(self.now)
        agents = tuple(sorted(self.running))
        for path in PATHS if before is not None else ():
            old, new = (before or {}).get(path), self.now.get(path)
            if old == new:
                continue
            unseen = {agent: self.unseen(agent, path) for agent in agents}
            if len(agents) == 1:
                collides = bool(unseen[agents[0]])
            else:
                collides = bool(agents) and all(any(a not in who for who in unseen[a]) for a in agents)
            if collides:
                names = {name for writes in unseen.values() for who in writes for name in who}
                others = tuple(sorted(names - set(agents))) or tuple(sorted(names))
                found = (path, agents, others, old, new)
                if found[:3] not in [each[:3] for each in self.expected]:
                    self.expected.append(found)
            self.past[path].append((self.time, agents))

    def unseen(self, agent: str, path: str) -> list[tuple[str, ...]]:
        """Who may have written `path` since the agent was told, or wrote it alone."""
        since = max([self.told.get(agent, 0), *(time for time, who in self.past[path] if who == (agent,))])
        return [who for time, who in self.past[path] if time > since and who not in ((), (agent,))]

    def content(self, version: ev.Version | None) -> str | None:
        return None if version is None else self.team.content(version).decode()

    def teardown(self) -> None:
        try:
            self.look()
            self.team.run("tester")
            found: list[Found] = [
                (each.path, each.agents, each.others, self.content(each.theirs), self.content(each.ours))
                for each in self.team.found()
            ]
            assert sorted(found, key=repr) == sorted(self.expected, key=repr)
            for each in self.team.found():
                one_sided = each.ours is None or each.theirs is None
                assert one_sided == (each.kind in ("delete-edit", "rename"))
            records = list(self.keep.log.read())
            overwritten = [c.before for r in records if isinstance(r.event, ev.PathsChanged) for c in r.event.changes]
            assert all(version is None or version.digest in self.keep.blobs for version in overwritten)
            self.projections_agree()
            assert self.keep.verify().ok
        finally:
            self.keep.close()
            self.folder.cleanup()

    def projections_agree(self) -> None:
        projections = (Registry(), Checkpoints(), Conflicts())
        state = MemoryState()
        fold(projections, self.keep.log.read(), state)
        with self.keep.projections.reading() as view:
            assert digest(projections, state) == digest(projections, view)
        assert self.keep.replay().same


TestAgents = Agents.TestCase
TestAgents.settings = settings(max_examples=25, stateful_step_count=25)
