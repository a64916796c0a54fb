"""What is true now: pure folds over the log, and the store they live in."""

from sandkeep.projections.checkpoints import Checkpoint, Checkpoints
from sandkeep.projections.conflicts import Conflict, ConflictKind, Conflicts, Strategy
from sandkeep.projections.projection import MemoryState, Projection, State, StateView, digest, fold
from sandkeep.projections.registry import Pending, Registry, Task, TaskState
from sandkeep.projections.store import ProjectionStore, ProjectionsUnavailable, Rebuilt

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Conflict",
    "ConflictKind",
    "Conflicts",
    "MemoryState",
    "Pending",
    "Projection",
    "ProjectionStore",
    "ProjectionsUnavailable",
    "Rebuilt",
    "Registry",
    "State",
    "StateView",
    "Strategy",
    "Task",
    "TaskState",
    "digest",
    "fold",
]
