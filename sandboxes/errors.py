"""What this room refuses or fails at. See `events.errors` for the base and the exit statuses."""

from __future__ import annotations

from sandkeep.events import BadInput, SandkeepError


class KeepNotFound(BadInput):
    """There is no keep in that folder."""

    code = "keep-not-found"


class KeepExists(SandkeepError):
    """There is a keep in that folder already."""

    code = "keep-exists"


class KeepFormat(SandkeepError):
    """The keep was made by another version of the library, or its keep.toml is damaged."""

    code = "keep-format"


class BadSettings(SandkeepError):
    """What keep.toml says cannot be meant."""

    code = "bad-settings"


class BadLimits(BadInput):
    """What was asked for cannot be a sandbox's limits."""

    code = "bad-limits"


class BadId(BadInput):
    """What was given cannot be an id."""

    code = "bad-id"


class TaskNotFound(BadInput):
    """The keep has no such task."""

    code = "task-not-found"


class CheckpointNotFound(BadInput):
    """The task has no such checkpoint."""

    code = "checkpoint-not-found"


class CheckpointGone(BadInput):
    """The checkpoint has expired."""

    code = "checkpoint-gone"


class ConflictNotFound(BadInput):
    """The task has no such conflict."""

    code = "conflict-not-found"


class NotARepository(BadInput):
    """The source is not the top folder of a git repository that can be cloned."""

    code = "not-a-repository"


class OutsideWorkspace(BadInput):
    """The path leads out of the workspace."""

    code = "outside-workspace"


class PathNotFound(BadInput):
    """Nothing is at that path, and nothing was."""

    code = "path-not-found"


class ImageNotFound(BadInput):
    """The engine has no such image and cannot pull it."""

    code = "image-not-found"


class BadTimeout(BadInput):
    """A timeout must be more than nothing, and finite."""

    code = "bad-timeout"


class TaskRefused(SandkeepError):
    """The task's state does not allow that."""

    code = "task-refused"


class TaskBusy(SandkeepError):
    """Something else is under way in the task."""

    code = "task-busy"


class LockHeld(SandkeepError):
    """Another holds the lock, or is before us in its queue."""

    code = "lock-held"


class Deadlock(SandkeepError):
    """To wait for the lock would close a circle of agents that wait for each other."""

    code = "deadlock"


class LockNotHeld(SandkeepError):
    """Nobody holds the lock, so there is nothing to break."""

    code = "lock-not-held"


class PolicyDenied(SandkeepError):
    """A policy of the keep does not allow that."""

    code = "policy-denied"


class NetworkUnavailable(SandkeepError):
    """The way out of a sandbox that its policy allows cannot be opened."""

    code = "network-unavailable"


class IsolationUnknown(SandkeepError):
    """A sandbox gave no account of what is open to it."""

    code = "isolation-unknown"


class BudgetExhausted(SandkeepError):
    """The sandboxes that live have been promised so much memory that this one cannot have what it needs."""

    code = "budget-exhausted"


class ExtensionOpen(SandkeepError):
    """The sandbox stands still until somebody says whether it may have more memory."""

    code = "extension-open"


class ExtensionNotFound(SandkeepError):
    """The task's sandbox waits for no more memory."""

    code = "extension-not-found"


class DiskFull(SandkeepError):
    """The task's workspace takes more of the disk than it may."""

    code = "disk-full"


class KeyUnavailable(SandkeepError):
    """The keep's audit key cannot be read, or is not the one that its log names."""

    code = "key-unavailable"


class MemoryUnavailable(SandkeepError):
    """There is no memory folder, or it cannot be written."""

    code = "memory-unavailable"


class EngineUnreachable(SandkeepError):
    """No Docker engine answers."""

    code = "engine-unreachable"


class EngineFailed(SandkeepError):
    """The Docker engine refused or failed."""

    code = "engine-failed"


class EngineUnsupported(SandkeepError):
    """Sandboxes would not work on that engine, or not as they were asked for."""

    code = "engine-unsupported"


class CommandNotFound(SandkeepError):
    """The image has no such program."""

    code = "command-not-found"


class SandboxGone(SandkeepError):
    """The sandbox ended while something was running in it."""

    code = "sandbox-gone"


class CheckpointRefused(SandkeepError):
    """The workspace cannot be recorded completely, so nothing was recorded."""

    code = "checkpoint-refused"


class CheckpointNeeded(SandkeepError):
    """The checkpoint may not expire: it was asked to be kept, or something is made of it."""

    code = "checkpoint-needed"


class RestoreRefused(SandkeepError):
    """The workspace cannot be set back like that, and was not touched."""

    code = "restore-refused"


class RestoreIncomplete(SandkeepError):
    """The workspace is not what the checkpoint says; nothing of what it was before is lost."""

    code = "restore-incomplete"


class WorkspaceNotFound(BadInput):
    """The task has no such own workspace that is not merged."""

    code = "workspace-not-found"


class WorkspaceUnmerged(SandkeepError):
    """What an agent did in its own workspace would be lost."""

    code = "workspace-unmerged"


class MergeIncomplete(SandkeepError):
    """An own workspace was only merged in part; nothing of either side is lost."""

    code = "merge-incomplete"


class ConflictRefused(SandkeepError):
    """The conflict cannot be settled like that; nothing was changed."""

    code = "conflict-refused"


class CallInterrupted(SandkeepError):
    """The server crashed while it did what it was asked to; what was recorded stands, and nothing is done again."""

    code = "call-interrupted"


class ImageBuildFailed(SandkeepError):
    """The image could not be made."""

    code = "image-build-failed"


class ImageToolMissing(ImageBuildFailed):
    """No registry can be reached, and the tool that could do without one is not installed."""

    code = "image-tool-missing"


class BadImage(BadInput):
    """That is no image, or no folder to make one from, that is taken."""

    code = "bad-image"


class ConfigRefused(SandkeepError):
    """An agent's configuration cannot be changed safely, and was not touched."""

    code = "config-refused"


class ClientNotFound(BadInput):
    """No agent that we know how to install for is here."""

    code = "client-not-found"


class PublishRefused(SandkeepError):
    """The task's commits cannot become that branch, and the repository's branches are as before."""

    code = "publish-refused"
