"""A keep: one directory with a log, its projections, blobs and task folders, and the door to all of them.

    keep.toml      identity and format version          keys/    audit signing key, mode 0600
    log/           the log: the truth                   run/     locks and spools of what is under way
    projections/   a cache of what is true now          tasks/   workspaces and memory folders
    blobs/         content by digest                    subscriptions/  how far each has come
    caches/        what tasks share, as keep.toml says

A `Keep` may be used by several threads, and any number of processes may open the same keep; one process opens it once.
It must be closed. A forked child may only close it, and open it anew. The Docker engine is only asked for when
something needs it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Unpack, final

from sandkeep.events import BadInput, BlobStore, Event, LmdbLog, Receipt, Record, SandkeepError, late, notary
from sandkeep.events import catalogue as ev
from sandkeep.events.durable import sync_folder
from sandkeep.events.log import Head
from sandkeep.events.mounts import refuse_network
from sandkeep.events.names import check_actor
from sandkeep.projections import NetworkMode, ProjectionStore, TaskState, conflicts, locks, registry
from sandkeep.projections.transactional import transactional
from sandkeep.sandboxes import intent, view
from sandkeep.sandboxes.description import check_tags, check_title
from sandkeep.sandboxes.errors import KeepExists
from sandkeep.sandboxes.expiry import GRACE_SECONDS
from sandkeep.sandboxes.identity import FORMAT, default_actor, folder_of, identify, write
from sandkeep.sandboxes.seen import SeenStore
from sandkeep.sandboxes.text import quiet
from sandkeep.sandboxes.view import Moment, View

if TYPE_CHECKING:
    from sandkeep.events.bus import Bus
    from sandkeep.events.note import VerifierKey
    from sandkeep.events.subscription import Handler, Subscription
    from sandkeep.projections import Changes, Conflict, Lock, Rebuilt, StateView
    from sandkeep.sandboxes import audit, own_workspace, pool, resources, steward, system, workspace
    from sandkeep.sandboxes.audit import Exported
    from sandkeep.sandboxes.cache_store import CacheStore
    from sandkeep.sandboxes.conflict import TaskConflicts
    from sandkeep.sandboxes.duties import Steward
    from sandkeep.sandboxes.engine import Engine
    from sandkeep.sandboxes.fork_task import Asked, fork
    from sandkeep.sandboxes.growth import Growth
    from sandkeep.sandboxes.images import ImageStore
    from sandkeep.sandboxes.locks import LockManager
    from sandkeep.sandboxes.network import TaskNetwork, check_policy
    from sandkeep.sandboxes.network_policy import policy_events
    from sandkeep.sandboxes.own_workspace import OwnWorkspaces
    from sandkeep.sandboxes.task import Task
    from sandkeep.sandboxes.task_checkpoints import TaskCheckpoints
    from sandkeep.sandboxes.task_resources import TaskResources
    from sandkeep.sandboxes.trailing import Trailing
    from sandkeep.sandboxes.verification import KeepReport, referenced, verify_keep
else:  # what a question about tasks has no use for
    globals().update(late.bound("sandkeep.events", "bus:Bus subscription:Subscription"))
    _LISTED = """
    audit own_workspace pool resources steward system workspace cache_store:CacheStore conflict:TaskConflicts
    duties:Steward engine:Engine fork_task:fork growth:Growth images:ImageStore locks:LockManager
    network:TaskNetwork,check_policy network_policy:policy_events own_workspace:OwnWorkspaces task:Task
    task_checkpoints:TaskCheckpoints task_resources:TaskResources trailing:Trailing
    verification:referenced,verify_keep
    """
    globals().update(late.bound("sandkeep.sandboxes", _LISTED))

_logger = logging.getLogger(__name__)

_RECONCILE_SECONDS = 30.0

PUBLISH_EVERY = 1000
"""How many new events make a keep publish a checkpoint when it is closed."""


@final
class Keep:
    """An open keep. Made by `Keep.init` and `Keep.open`; a context manager that closes itself."""

    images = late.once(ImageStore)
    caches = late.once(CacheStore)
    locking = late.once(LockManager)
    trailing = late.once(Trailing)

    def __init__(self, path: Path, identity: str, actor: str | None) -> None:
        """Use `Keep.init` or `Keep.open` instead."""
        self.path = path
        self.id = identity
        self.actor = actor or default_actor()
        self.blobs = BlobStore(path / "blobs")
        self.seen = SeenStore(path / "run" / "seen")
        self.intents = path / "run" / "intents"
        self._works = path / "run" / "tasks"
        for folder in (self.intents, self._works):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.projections = ProjectionStore(path / "projections", transactional())
        self.log: LmdbLog[StateView] = LmdbLog(
            path / "log", follower=self.projections, journal=path / "journal", doorbells=path / "run" / "doorbells"
        )
        try:
            self.projections.open(self.log)
        except BaseException:
            self.log.close()
            raise
        self._reconciled = -math.inf
        self._closed = False

    @classmethod
    def init(cls, path: str | os.PathLike[str] = ".sandkeep", *, actor: str | None = None) -> Keep:
        """Make a keep in the folder `path`, and open it. Raises `KeepExists`, or `BadInput` if `path` cannot be one."""
        path = folder_of(path)
        actor = check_actor(actor or default_actor())
        try:
            if (path / "keep.toml").exists():
                raise KeepExists(f"{path} is a keep already; open it, or choose another folder")
            refuse_network(path)
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise BadInput(f"{path} is not empty and holds no keep; empty it, or choose another folder")
            path.chmod(0o700)
            public_key = audit.make_key(path / "keys")
            # So that a keep inside a repository is never committed to it.
            (path / ".gitignore").write_text("*\n")
        except OSError as error:
            raise BadInput(f"{path} cannot be made a keep: {error.strerror}; choose another folder") from error
        identity = secrets.token_hex(8)
        keep = cls(path, identity, actor)
        keep.log.append("keep", [ev.KeepCreated(FORMAT, public_key)], actor=keep.actor, expected=0)
        write(path, identity)
        for folder in (path / "keys", path, path.parent):  # or a power loss could take the names away
            sync_folder(folder)
        return keep

    @classmethod
    def open(cls, path: str | os.PathLike[str] = ".sandkeep", *, actor: str | None = None) -> Keep:
        """Open the keep in the folder `path`; `actor` is who will have done what is done through it.

        Raises `KeepNotFound`, `KeepFormat`, and what opening a log raises.
        """
        path = folder_of(path)
        return cls(path, identify(path), actor)

    @late.once
    def engine(self) -> Engine:
        """The Docker engine, which is not asked yet."""
        return Engine()

    @late.once
    def bus(self) -> Bus:
        """The records of all processes after their commit, as observables."""
        return Bus(self.log)

    @late.once
    def growth(self) -> Growth:
        """How much each checkpoint adds to what is stored."""
        return Growth(self.blobs)

    def close(self) -> None:
        """End subscriptions and release the keep. Sandboxes go on. Safe to call twice.

        Publishes a checkpoint if a thousand events have none; that this fails is logged, and holds nothing up.
        """
        made = vars(self)
        if "trailing" in made:
            self.trailing.close()
        if not self._closed:
            self._closed = True
            try:
                if notary.unpublished(self.log) >= PUBLISH_EVERY:
                    self.publish_checkpoint()
            except SandkeepError as error:
                _logger.warning("no checkpoint was published: %s", error)
        if "locking" in made:
            self.locking.close()
        if "bus" in made:
            self.bus.close()
        # The log first: a decision that is being made holds a transaction of the projections until it is done.
        self.log.close()
        self.projections.close()

    def __enter__(self) -> Keep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_task(
        self,
        title: str,
        *,
        source: str | os.PathLike[str] | None = None,
        image: str | None = None,
        owner: str | None = None,
        tags: Iterable[str] = (),
        parent: str | None = None,
        network: str = NetworkMode.NONE,
        allow: Iterable[str] = (),
        private: Iterable[str] = (),
        services: Iterable[str] = (),
        limits: Mapping[str, object] | None = None,
        caches: Iterable[str] | None = (),
        writable_root: bool = False,
        progress: Callable[[str], None] = quiet,
    ) -> Task:
        """A new task; its workspace is a clone of the git repository `source`, or empty. Its first command starts its
        sandbox.

        Whoever acts owns it unless `owner` names another; `parent` is the id of the task that it is a part of. The
        sandbox may reach what `network`, `allow`, `private` and `services` say; see `TaskNetwork.set`. `limits` are
        what it may use, like {"memory": "1GiB", "cpus": 2}; what is not named is as in keep.toml. With `writable_root`
        commands may write outside the workspace too; see `system`.

        The base image is used unless `image` names another (see `images`), and made first if the engine lacks it;
        while no engine answers a recipe's image is left to the first command. `progress` is called with what takes
        long. Raises `BadInput`, `PolicyDenied`, `NotARepository`, `ImageNotFound` and, for other images,
        `EngineUnreachable` before anything is stored of the task; if the workspace cannot be prepared the task is
        failed and cleaned up, and the error raised.
        """
        title, tags = check_title(title), check_tags(tags)
        owner = None if owner is None else check_actor(owner)
        origin = None if source is None else workspace.check_source(Path(source))
        parent = None if parent is None else self.task(parent).id
        own = resources.chosen(self, limits or {}, image or "base")
        chosen = self.caches.chosen(caches)
        given = list(policy_events(check_policy(self, network, allow, private, services)))
        given += [*([ev.CachesChosen(chosen)] if chosen else []), *system.granted(self, writable_root)]
        named = None if origin is None else os.fspath(origin)
        with self.images.chosen(image, progress) as name, pool.place(self, name, chosen) as task_id:
            task = Task(self, task_id)
            task.create(ev.TaskCreated("", title, named, name, owner, tags, parent, own), given, progress)
        return task

    def fork_task(self, task_id: str, checkpoint: str, **asked: Unpack[Asked]) -> Task:
        """A new task that begins as another was at a checkpoint, but for what is `asked`; see `fork_task`. Raises as
        `create_task` does, and `CheckpointNotFound`, `CheckpointGone`, `BlobMissing` and `BlobDamaged`."""
        return fork(self, self.task(task_id), checkpoint, asked)

    def task(self, task_id: str, fence: int | None = None) -> Task:
        """The task with this id, or with the only id that begins with it (4 digits at least).

        With the fencing token `fence`, what it does is refused with `StaleFence` once that lock is held no more, and is
        done in a workspace of its own if the task's rules say so. Raises `BadId` and `TaskNotFound`.
        """
        with self.projections.reading() as state:
            found = view.identified(state, task_id)
        return Task(self, found) if fence is None else own_workspace.task(self, found, fence)

    def tasks(self, *states: TaskState) -> list[registry.Task]:
        """What is true of the tasks in any of `states`; of all but the cleaned ones when none is named."""
        wanted = states or tuple(state for state in TaskState if state is not TaskState.CLEANED)
        with self.projections.reading() as state:
            return sorted(registry.tasks(state, *wanted), key=lambda task: task.created_at)

    def as_of(self, moment: Moment | None = None) -> contextlib.AbstractContextManager[View]:
        """The tasks as they were at a position or a time, or are now; see `view`. Raises `BadMoment`."""
        return view.as_of(self, moment)

    def changes(self, since: Moment, until: Moment | None = None) -> list[Changes]:
        """The tasks that were created, changed or ended between two moments. Raises `BadMoment`."""
        return view.changes(self, since, until)

    def locks(self, *, ever: bool = False) -> list[Lock]:
        """The locks that somebody holds or waits for, by task; with `ever`, all that anybody asked for."""
        with self.projections.reading() as state:
            return list(locks.known(state) if ever else locks.live(state))

    def conflicts(self, task_id: str) -> TaskConflicts:
        """The conflicts among the agents that work on a task. Raises as `task` does."""
        return TaskConflicts(self, self.task(task_id).id)

    def own_workspaces(self, task_id: str, fence: int | None = None) -> OwnWorkspaces:
        """The workspaces that agents have of their own in a task, to list and to merge. Raises as `task` does."""
        return OwnWorkspaces(self, self.task(task_id).id, fence)

    def conflicts_of(self, agent: str) -> list[Conflict]:
        """The open conflicts that an agent has a side in, of all tasks."""
        with self.projections.reading() as state:
            return list(conflicts.concerning(state, agent))

    def network(self, task_id: str, fence: int | None = None) -> TaskNetwork:
        """What a task's sandbox may reach, and has. Raises as `task` does."""
        return TaskNetwork(self, self.task(task_id).id, fence)

    def resources(self, task_id: str, fence: int | None = None) -> TaskResources:
        """What a task's sandbox may use, and uses. Raises as `task` does."""
        return TaskResources(self, self.task(task_id).id, fence)

    def checkpoints(self, task_id: str) -> TaskCheckpoints:
        """A task's checkpoints, and which of them are kept. Raises as `task` does."""
        return TaskCheckpoints(self, self.task(task_id).id)

    def events(self, after: int = 0) -> Iterator[Record]:
        """The records behind position `after`, verified."""
        return self.log.read(after)

    def subscription(
        self, name: str, handler: Handler, *, after: int = 0, on_failure: Literal["go-on", "halt"] = "halt"
    ) -> Subscription:
        """A durable subscription: every record behind `after` to `handler`, at least once, in order. It is not started.

        Its position is the keep's, so any process may go on where another was. Stop it before the keep is closed.
        """
        return Subscription(self.log, self.path / "subscriptions", name, handler, after=after, on_failure=on_failure)

    def replay(self, progress: Callable[[int], None] = lambda position: None) -> Rebuilt:
        """Rebuild the projections from the log and compare them with those there were."""
        return self.projections.rebuild(progress)

    def verify(self, progress: Callable[[str], None] = quiet) -> KeepReport:
        """Compare all of the keep with what its log vouches for. A keep that may be damaged is not opened for this:
        see `verification.verify_log`."""
        return verify_keep(self, progress)

    @property
    def audit_key(self) -> VerifierKey:
        """The key that whoever verifies this keep's checkpoints and bundles must have. Raises `KeyUnavailable`."""
        return audit.keep_signer(self).key

    def publish_checkpoint(self) -> bytes:
        """Sign all that the log holds now, and return the note (C2SP `tlog-checkpoint`).

        Whoever keeps it can show later that nothing of this was rewritten. Raises `KeyUnavailable`, and `LogDamaged` if
        the log is not what was signed before.
        """
        return notary.publish(self.log, audit.keep_signer(self))

    def export_audit(
        self,
        file: str | os.PathLike[str],
        *,
        task: str | None = None,
        first: int | None = None,
        last: int | None = None,
        blobs: bool = True,
        progress: Callable[[str], None] = quiet,
    ) -> Exported:
        """Write a bundle for auditors into the new file `file`; see `audit.export`."""
        return audit.export(self, Path(file), task=task, first=first, last=last, blobs=blobs, progress=progress)

    def collect_garbage(self, grace_seconds: float = GRACE_SECONDS) -> tuple[int, int]:
        """Remove the blobs that no event refers to, but for those of checkpoints that have expired; returns how many,
        and how many bytes smaller the store is.

        What was stored, or expired, less than `grace_seconds` ago stays, since its event may be on its way, or somebody
        reads it; what is in a pack stays until it has been garbage for that long. Refused, by raising what reading them
        raises, while the log or a manifest is damaged: nothing could be told from garbage then.
        """
        wanted = referenced(self, grace_seconds)
        return self.blobs.sweep(wanted.__contains__, grace_seconds)

    def reconcile(self, *, again: bool = False) -> list[str]:
        """Settle what crashes left behind, and tell what was done. Needs the engine.

        Unless `again`, only if a steward does not and nobody has for a while, or to begin with if anything was cut off.
        """
        first = self._reconciled == -math.inf
        if not again and time.monotonic() - self._reconciled < _RECONCILE_SECONDS:
            return []
        due = again or steward.due(self, _RECONCILE_SECONDS) or (first and steward.abandoned_work(self))
        done = steward.reconcile(self, wait=again) if due else []
        self._reconciled = time.monotonic()
        return done

    def steward(self, told: Callable[[str], None] = quiet) -> Steward:
        """The background work of the keep, for a `with` block or from `start` to `stop`: on a thread of its own, while
        no other process does it. `told` is called on that thread, with a line for what is done. See `duties`."""
        return Steward(self, told=told)

    def head(self) -> Head:
        """Where the log ends."""
        return self.log.head()

    def decide(self, task_id: str, decision: Callable[[registry.Task | None], list[Event]]) -> Receipt:
        """Store what `decision` makes of the task as it is at the head."""
        return self.log.decide(
            registry.STREAM + task_id, lambda state: decision(registry.find(state, task_id)), actor=self.actor
        )

    def working(self, task_id: str) -> contextlib.AbstractContextManager[None]:
        """Be the only one, of all processes, to start or remove the task's sandbox or to set back its workspace."""
        return intent.exclusive(self._works / task_id)

    def attempting(self, task_id: str) -> contextlib.AbstractContextManager[bool]:
        """As `working`, without waiting: false if another is."""
        return intent.attempted(self._works / task_id)
