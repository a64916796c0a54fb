"""The rules of conflicts: who collides with whom, of which kind it is, and what settles it. Pure functions.

*Whose change.* The workspace is looked at before and after each command, so between two looks the same commands ran.
One command: the change is its agent's. Several: it is one of theirs, and nobody can tell whose. None: it is nobody's,
and collides with nothing.

*A collision.* An agent has seen a path as it was at its base (see `projections.conflicts`), or as it last wrote it
alone. If it writes the path after another has, it collides; a write that may be another's counts as that. With a change
that is one of several agents', only what is certain counts: it collides if none of them has seen the last writes or can
have made them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from posixpath import basename

import msgspec

from sandkeep.events.catalogue import Change, Rule, Version
from sandkeep.projections.conflicts import ConflictKind, PathHistory, Strategy, Write

BRANCHES = ".git/refs/heads/"
"""What the paths of branches begin with; see `refs`."""

LOCK_FILES = frozenset(
    (
        "Cargo.lock",
        "Gemfile.lock",
        "Package.resolved",
        "Pipfile.lock",
        "bun.lock",
        "bun.lockb",
        "composer.lock",
        "conan.lock",
        "deno.lock",
        "flake.lock",
        "go.sum",
        "gradle.lockfile",
        "mix.lock",
        "npm-shrinkwrap.json",
        "package-lock.json",
        "packages.lock.json",
        "pdm.lock",
        "pnpm-lock.yaml",
        "poetry.lock",
        "pubspec.lock",
        "pylock.toml",
        "uv.lock",
        "yarn.lock",
    )
)
"""Files that package managers write; they are made anew, not merged."""

DEFAULT = Strategy.THREE_WAY
"""What settles a conflict that no rule matches."""


class Collision(msgspec.Struct, frozen=True):
    """A change that collides with what `others` wrote; `base` is what its agents had seen, if `based`."""

    change: Change
    others: tuple[str, ...]
    base: Version | None
    based: bool
    renamed: str


def collide(change: Change, agents: tuple[str, ...], bases: Mapping[str, int], known: PathHistory) -> Collision | None:
    """What the change of one of `agents` collides with; None if with nothing."""
    if not agents:
        return None
    seen = {agent: _seen(agent, bases, known) for agent in agents}
    blind = {agent: _unseen(agent, position, known) for agent, position in seen.items()}
    if len(agents) > 1 and not all(any(agent not in write.agents for write in blind[agent]) for agent in agents):
        return None
    writes = [write for write in known.writes if any(write in unseen for unseen in blind.values())]
    if not writes:
        return None
    since = min(seen.values())
    base = next(write for write in known.writes if write.position > since).before
    others = sorted({name for write in writes for name in write.agents} - set(agents)) or sorted(writes[-1].agents)
    renamed = change.renamed or (known.writes[-1].renamed if change.before is None else "")
    return Collision(change, tuple(others), base, since >= known.dropped, renamed)


def _seen(agent: str, bases: Mapping[str, int], known: PathHistory) -> int:
    own = (write.position for write in known.writes if write.agents == (agent,))
    return max(bases.get(agent, 0), *own, 0)


def _unseen(agent: str, position: int, known: PathHistory) -> list[Write]:
    return [write for write in known.writes if write.position > position and write.agents not in ((), (agent,))]


def kind(collision: Collision, overlaps: int) -> ConflictKind:
    """Of which kind a collision is; `overlaps` counts the regions of a text that both sides changed."""
    change = collision.change
    if change.path.startswith(BRANCHES):
        return ConflictKind.BRANCH
    if change.path.endswith("/"):
        return ConflictKind.SUBMODULE
    if collision.renamed:
        return ConflictKind.RENAME
    if change.before is None or change.after is None:
        return ConflictKind.DELETE_EDIT
    if basename(change.path) in LOCK_FILES:
        return ConflictKind.LOCK_FILE
    return ConflictKind.SAME_REGION if overlaps else ConflictKind.SAME_FILE


def strategy(path: str, rules: Iterable[Rule]) -> Strategy:
    """What the first rule that matches says; a pattern without a slash is matched against the name alone.

    That agents have workspaces of their own settles nothing that collides when these are merged.
    """
    for rule in rules:
        if rule.strategy == Strategy.OWN_WORKSPACE:
            continue
        if fnmatchcase(path if "/" in rule.pattern else basename(path), rule.pattern):
            return Strategy(rule.strategy)
    return DEFAULT


def separates(rules: Iterable[Rule]) -> bool:
    """Whether each agent that collaborates gets a workspace of its own."""
    return any(rule.strategy == Strategy.OWN_WORKSPACE for rule in rules)


def merge_mode(base: Version, ours: Version, theirs: Version) -> int:
    """The mode that both sides' changes lead to; ours, where both changed it."""
    return theirs.mode if ours.mode == base.mode else ours.mode
