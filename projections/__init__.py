"""What is true now: pure folds over the log, and the store they live in."""

from sandkeep.projections.checkpoints import Checkpoint, Checkpoints
from sandkeep.projections.projection import MemoryState, Projection, State, StateView, digest, fold
from sandkeep.projections.registry import Pending, Registry, Task, TaskState
from sandkeep.projections.store import ProjectionStore, ProjectionsUnavailable, Rebuilt
from sandkeep.projections.summary import Decision, Execution, Stats

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Decision",
    "Execution",
    "MemoryState",
    "Pending",
    "Projection",
    "ProjectionStore",
    "ProjectionsUnavailable",
    "Rebuilt",
    "Registry",
    "State",
    "StateView",
    "Stats",
    "Task",
    "TaskState",
    "digest",
    "fold",
]
