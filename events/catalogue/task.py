"""The events of a task: its workspace, sandbox, commands, checkpoints and memory."""

from __future__ import annotations

from sandkeep.events.catalogue.common import Failure, Intent, Limits, Outcome, Output
from sandkeep.events.schema import Event, event


@event(version=1)
class TaskCreated(Intent, frozen=True):
    """A task exists; its workspace is about to be prepared from `source`, a git repository, or from nothing.

    Whoever acted owns it unless `owner` names another; `parent` is the id of the task that it is a part of. Its sandbox
    has these `limits`, or those that the keep's settings say when it is started.
    """

    title: str
    source: str | None
    image: str
    owner: str | None = None
    tags: tuple[str, ...] = ()
    parent: str | None = None
    limits: Limits | None = None


@event(version=1)
class TaskTagged(Event, frozen=True):
    """The task was given the tags `added`, and those in `removed` were taken from it."""

    added: tuple[str, ...]
    removed: tuple[str, ...]


@event(version=1)
class WorkspacePrepared(Outcome, frozen=True):
    """The workspace is there, at `commit` of its source unless that has none."""

    commit: str | None


@event(version=1)
class WorkspaceFailed(Failure, frozen=True):
    """There is no workspace; the task fails with it."""


@event(version=1)
class CommitsPublished(Event, frozen=True):
    """The task's commits up to `commit` are the `branch` of the `repository`, which was at `before`, empty if it is
    new."""

    repository: str
    branch: str
    commit: str
    before: str


@event(version=1)
class TaskCompleted(Event, frozen=True):
    """The work was done."""

    summary: str


@event(version=1)
class TaskFailed(Event, frozen=True):
    """The work was given up, or never began."""

    reason: str


@event(version=1)
class TaskReopened(Event, frozen=True):
    """The task had ended, and goes on in the workspace that it had, for a `reason`."""

    reason: str


@event(version=1)
class PauseRequested(Intent, frozen=True):
    """The task's sandbox is about to be frozen."""


@event(version=1)
class TaskPaused(Outcome, frozen=True):
    """The task's sandbox is frozen; no command runs."""


@event(version=1)
class ResumeRequested(Intent, frozen=True):
    """The task's sandbox is about to be thawed."""


@event(version=1)
class TaskResumed(Outcome, frozen=True):
    """The task goes on."""


@event(version=1)
class SandboxRequested(Intent, frozen=True):
    """A container is about to be started from the image with the id `image`; `tags` are those that the task has."""

    image: str
    limits: Limits
    tags: tuple[str, ...] = ()


@event(version=1)
class SandboxStarted(Outcome, frozen=True):
    """The container runs."""

    container: str


@event(version=1)
class SandboxFailed(Failure, frozen=True):
    """No container runs for this intent."""


@event(version=1)
class SandboxLost(Event, frozen=True):
    """The container ended or vanished without our doing."""

    container: str
    reason: str


@event(version=1)
class SandboxRemoved(Event, frozen=True):
    """The container was removed, because the task has no more use for it."""

    container: str


@event(version=1)
class SandboxPauseRequested(Intent, frozen=True):
    """The container has had nothing to do for a while, and is about to be frozen until the next command."""


@event(version=1)
class SandboxPaused(Outcome, frozen=True):
    """The container is frozen. The task is not: its next command thaws it."""

    container: str


@event(version=1)
class SandboxPauseFailed(Failure, frozen=True):
    """The container could not be frozen."""


@event(version=1)
class SandboxResumed(Event, frozen=True):
    """The container goes on, because there is a command for it."""

    container: str


@event(version=1)
class SandboxStopRequested(Intent, frozen=True):
    """The task's container is about to be removed; its workspace stays."""


@event(version=1)
class SandboxStopped(Outcome, frozen=True):
    """The task has no container until its next command."""


@event(version=1)
class SandboxStopFailed(Failure, frozen=True):
    """The container could not be removed."""


@event(version=1)
class CommandRequested(Intent, frozen=True):
    """A command is about to run. Of its environment only the names are kept, because values may be secrets.

    `secrets` names those that are. `stdin` is what it is given to read, if that was known before. What runs in the
    `background` is waited for by nobody, and what runs in a `terminal` has somebody at the keyboard.
    """

    argv: tuple[str, ...]
    cwd: str
    env: tuple[str, ...]
    timeout_ns: int
    secrets: tuple[str, ...] = ()
    stdin: Output | None = None
    background: bool = False
    terminal: bool = False


@event(version=1)
class CommandExecuted(Outcome, frozen=True):
    """The command ran and ended, or was ended with all that it had started.

    `cpu_ns` is the processor time that it and the children it waited for used; 0 if that is not known. `oom_killed`
    says that the kernel ended a process of it for want of memory. `reason` is why it was ended: `timeout`, `output` (it
    wrote too much), `stopped` (somebody asked for it), `abandoned` (its caller died), `lost` (nobody knows); or empty.
    """

    exit_code: int
    duration_ns: int
    timed_out: bool
    stdout: Output
    stderr: Output
    cpu_ns: int = 0
    oom_killed: bool = False
    reason: str = ""


@event(version=1)
class CommandFailed(Failure, frozen=True):
    """The command could not be started, or what became of it is not known."""


@event(version=1)
class CheckpointCreated(Event, frozen=True):
    """The workspace was recorded; `digest` is that of its root manifest, `torn` names what would not hold still.

    `commands` ran at that moment, of whose processes nothing is kept; the sandbox stood still for `frozen_ns`. `image`
    holds what lies outside the workspace, if that was asked for.
    """

    checkpoint: str
    digest: str
    files: int
    bytes: int
    label: str
    torn: tuple[str, ...] = ()
    commands: int = 0
    frozen_ns: int = 0
    image: str = ""


@event(version=1)
class RestoreRequested(Intent, frozen=True):
    """The workspace is about to be set back to `checkpoint`; `undo` is the checkpoint of what it was before.

    If `paths` are given, only they are, and what is below them.
    """

    checkpoint: str
    undo: str
    paths: tuple[str, ...] = ()


@event(version=1)
class CheckpointRestored(Outcome, frozen=True):
    """The workspace is what `digest` says.

    With a `position`, that of the checkpoint, the task went back there whole: what came after belongs to a branch that
    was left, its tags are `tags`, `decided` is what had been decided there last, and its next sandbox starts from
    `image`, if there is one. Without, only files did.
    """

    checkpoint: str
    digest: str
    position: int = 0
    tags: tuple[str, ...] = ()
    decided: tuple[str, ...] = ()
    image: str = ""


@event(version=1)
class RestoreFailed(Failure, frozen=True):
    """The workspace was not, or only in part, set back."""


@event(version=1)
class DecisionRecorded(Event, frozen=True):
    """Whoever acted decided `text`, for `reason` and against `alternatives`."""

    text: str
    reason: str = ""
    alternatives: tuple[str, ...] = ()


@event(version=1)
class MemoryRepaired(Event, frozen=True):
    """Pages of the task's memory folder were not what had been written there, and were made anew from the log.

    `damage` has a line for each; what was there lies in the folder `quarantine` of that name, if anything was.
    """

    damage: tuple[str, ...]
    quarantine: str | None


@event(version=1)
class CleanupRequested(Intent, frozen=True):
    """The task's container and workspace are about to be removed."""


@event(version=1)
class TaskCleaned(Outcome, frozen=True):
    """Nothing is left of the task but its record and its checkpoints."""


@event(version=1)
class PauseFailed(Failure, frozen=True):
    """The sandbox could not be frozen."""


@event(version=1)
class ResumeFailed(Failure, frozen=True):
    """The sandbox could not be thawed."""


@event(version=1)
class CleanupFailed(Failure, frozen=True):
    """Something of the task could not be removed."""
