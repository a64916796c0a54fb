"""What is true now: pure folds over the log, and the store they live in."""

from typing import TYPE_CHECKING

from sandkeep.events import late

if TYPE_CHECKING:
    from sandkeep.projections.caches import Caches, CacheUse
    from sandkeep.projections.changes import Change, Changes, compare
    from sandkeep.projections.checkpoints import Checkpoint, Checkpoints
    from sandkeep.projections.conflicts import Conflict, ConflictKind, Conflicts, Strategy
    from sandkeep.projections.forks import Fork, Forks
    from sandkeep.projections.images import ImageCounts, Images, ImageVersion
    from sandkeep.projections.listing import BadCursor, Filter, Page, Sort, list_tasks
    from sandkeep.projections.lmdb_state import ProjectionsUnavailable
    from sandkeep.projections.locks import Claim, Lock, Locks, Mode
    from sandkeep.projections.network import NetworkMode, NetworkPolicy, Networks, Traffic
    from sandkeep.projections.projection import MemoryState, Projection, State, StateView, digest, fold
    from sandkeep.projections.registry import Pending, Registry, Task, TaskState
    from sandkeep.projections.resources import Extension, Resources, Use
    from sandkeep.projections.search import Fit, Found, find_tasks
    from sandkeep.projections.store import BadMoment, ProjectionStore, Rebuilt
    from sandkeep.projections.summary import Decision, Execution, Stats
else:
    __getattr__, __dir__ = late.names(
        __name__,
        """
        caches:Caches,CacheUse changes:Change,Changes,compare checkpoints:Checkpoint,Checkpoints
        conflicts:Conflict,ConflictKind,Conflicts,Strategy forks:Fork,Forks
        images:ImageCounts,Images,ImageVersion listing:BadCursor,Filter,Page,Sort,list_tasks
        lmdb_state:ProjectionsUnavailable locks:Claim,Lock,Locks,Mode
        network:NetworkMode,NetworkPolicy,Networks,Traffic
        projection:MemoryState,Projection,State,StateView,digest,fold registry:Pending,Registry,Task,TaskState
        resources:Extension,Resources,Use search:Fit,Found,find_tasks store:BadMoment,ProjectionStore,Rebuilt
        summary:Decision,Execution,Stats
        """,
    )

__all__ = [
    "BadCursor",
    "BadMoment",
    "CacheUse",
    "Caches",
    "Change",
    "Changes",
    "Checkpoint",
    "Checkpoints",
    "Claim",
    "Conflict",
    "ConflictKind",
    "Conflicts",
    "Decision",
    "Execution",
    "Extension",
    "Filter",
    "Fit",
    "Fork",
    "Forks",
    "Found",
    "ImageCounts",
    "ImageVersion",
    "Images",
    "Lock",
    "Locks",
    "MemoryState",
    "Mode",
    "NetworkMode",
    "NetworkPolicy",
    "Networks",
    "Page",
    "Pending",
    "Projection",
    "ProjectionStore",
    "ProjectionsUnavailable",
    "Rebuilt",
    "Registry",
    "Resources",
    "Sort",
    "State",
    "StateView",
    "Stats",
    "Strategy",
    "Task",
    "TaskState",
    "Traffic",
    "Use",
    "compare",
    "digest",
    "find_tasks",
    "fold",
    "list_tasks",
]
