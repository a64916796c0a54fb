"""The projections that decisions are made from, which are advanced with every commit."""

from __future__ import annotations

from sandkeep.projections.caches import Caches
from sandkeep.projections.checkpoints import Checkpoints
from sandkeep.projections.conflicts import Conflicts
from sandkeep.projections.forks import Forks
from sandkeep.projections.images import Images
from sandkeep.projections.locks import Locks
from sandkeep.projections.network import Networks
from sandkeep.projections.projection import Projection
from sandkeep.projections.registry import Registry
from sandkeep.projections.resources import Resources


def transactional() -> tuple[Projection, ...]:
    """All of them, new."""
    return (*(Registry(), Checkpoints(), Locks(), Conflicts(), Forks(), Images(), Networks(), Resources(), Caches()),)
