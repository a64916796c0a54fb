"""The container of a task: found, started when there is none, frozen, removed.

A task has none until its first command, and none any more once it was stopped or has ended; its workspace stays. With
an agent that answers in it, the engine is not asked at all: a command costs no call to it, and runs while it is down.
Whoever starts, freezes or removes a container is `Keep.working` on the task, so sandboxes of several tasks start side
by side, and the commands of one task find one sandbox.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

from sandkeep.events import Event, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.projections import TaskState, registry
from sandkeep.sandboxes import (
    agent,
    decider,
    egress,
    freezer,
    guest,
    intent,
    interpreter,
    outcome,
    resources,
    settings,
    sidecar,
    slot,
    system,
    workspace,
)
from sandkeep.sandboxes.admission import Turn
from sandkeep.sandboxes.agent import Broken, Connection, Refused
from sandkeep.sandboxes.container import INTENT, KEEP, SHELL, TASK, Mounts
from sandkeep.sandboxes.errors import EngineFailed, SandboxGone
from sandkeep.sandboxes.recorded import Recorded
from sandkeep.sandboxes.spool import Ended, Spool

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_PATIENCE_SECONDS = 20.0
_AGAIN_SECONDS = 5.0
_LOOK_SECONDS = 0.5


@final
class Place:
    """Where a command can run: a container, and a connection to its agent unless it has none."""

    def __init__(self, container: str, connection: Connection | None, end_all: Callable[[], None]) -> None:
        self.container = container
        self.connection = connection
        self.end_all = end_all
        """Ends every process of the container."""

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *details: object) -> None:
        if self.connection is not None:
            self.connection.sock.close()


@final
class Sandbox:
    """The container of one task. Holds no state of its own."""

    def __init__(self, keep: Keep, task_id: str) -> None:
        self._keep = keep
        self.id = task_id
        self.folder = keep.path / "tasks" / task_id
        self.spool = keep.path / "run" / "spool" / task_id
        """The folder in which output lies; see `spool`."""

    @property
    def workspace(self) -> Path:
        """The workspace on the host."""
        return self.folder / "workspace"

    @contextlib.contextmanager
    def working(
        self, check: Callable[[], None], progress: Callable[[str], None], *, wait: bool = True
    ) -> Iterator[Place]:
        """Be `Keep.working` on the task, with its container running, started if there is none; `progress` is called
        with what takes long. Without `wait` it waits for no memory that others hold.

        Nothing is held while one waits, so `check`, which raises what stands against it, is called again after that.
        Raises `ImageNotFound`, `BudgetExhausted`, `BadSettings`, `TaskRefused`, `EngineFailed`,
        `EngineUnreachable`, and `SandboxGone` if what was just started does not answer.
        """
        with Turn(self._keep, self.id, wait=wait) as turn:
            while True:
                with self._keep.working(self.id):
                    check()
                    place = self._placed(progress, turn)
                    if place is not None:
                        turn.leave()
                        yield place
                        return
                turn.wait(progress)

    def _placed(self, progress: Callable[[str], None], turn: Turn) -> Place | None:
        """The place, unless one has to wait for room to start a container."""
        engine, task = self._keep.engine, self._state()
        if task.container is not None:
            if task.idle:
                self._wake(task.container)
            freezer.release(self._keep, self.id)
            if (connection := agent.greet(self.spool, task.container)) is not None:
                return self._place(task.container, connection)
            status = engine.status(task.container)
            if status == "paused" and task.state is not TaskState.PAUSED:
                engine.unpause(task.container)  # left behind by a restore that was cut off
                status = "running"
            reason = f"it was found {status or 'removed'}"
            if status in ("running", "paused"):
                with contextlib.suppress(SandboxGone):
                    return self._place(task.container, self._connected(task.container))
                reason = "its agent does not answer"
            self._lose(task.container, reason)
        with intent.held(self._keep.intents) as made:
            image_id = system.resolve(self._keep, task) or self._keep.images.resolve(task.image, progress)[1]
            writable = system.writable(self._keep, task)
            limits = resources.allot(self._keep, task, image_id, made, turn)
            if limits is None:
                return None
            with outcome.failing_as(self._keep, self.id, ev.SandboxFailed, made):
                caches = self._keep.caches.granted(self._keep.caches.of(self.id))
                runtime = settings.load(self._keep.path).sandboxes.runtime
                container = None
                if not writable:
                    container = slot.adopt(self._keep, self.id, image_id, limits, caches, runtime)
                if container is None:
                    progress("starting the sandbox")
                    self.remove()
                    container = self.launch(image_id, limits, made, caches, runtime, writable=writable)
            outcome.settle(self._keep, self.id, ev.SandboxStarted(made, container))
            slot.drop(self._keep, self.id)
        return self._place(container, self._connected(container))

    def launch(
        self,
        image_id: str,
        limits: ev.Limits,
        made: str,
        caches: tuple[ev.CacheChoice, ...],
        runtime: str,
        *,
        writable: bool = False,
    ) -> str:
        """Start a container on the task's folders and these caches, for the intent `made`."""
        # Only we and the agent come this far; who it is on the host depends on the engine.
        self.spool.chmod(0o777)
        program, way_out = guest.install(self._keep.path / "run"), egress.prepare(self._keep, self.id)
        folders = (self.workspace, self.folder / "memory", self.spool, way_out, program)
        lent = partial(interpreter.borrowed, self._keep)
        mounts = Mounts(*folders, lent, self._keep.caches.show(caches), writable)
        labels = {KEEP: self._keep.id, TASK: self.id, INTENT: made}
        return self._keep.engine.start(image_id, mounts, limits, labels, runtime=runtime)

    def prepare_folders(self) -> None:
        """Make the folders that the container mounts, except the workspace. Those of a slot are there already."""
        self.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / "memory").mkdir(mode=0o755, parents=True, exist_ok=True)

    def remove_folders(self) -> None:
        """Remove all folders of the task."""
        for folder in (self.folder, self.spool, egress.folder(self._keep, self.id)):
            workspace.remove(folder)
        sidecar.forget(egress.folder(self._keep, self.id))

    def may_exist(self) -> bool:
        """Whether there ever was a container of the task, as far as can be told without asking the engine."""
        return bool(self._state().used_ns) or slot.find(self._keep, self.id) is not None

    def reconnect(self) -> Connection | None:
        """A connection to the agent, if there is still one that answers."""
        container = self._state().container
        if container is None:
            return None
        connection = self._greet(container)
        if connection is None and self._keep.engine.status(container) == "running":
            raise EngineFailed("the sandbox runs and its agent does not answer; the next command gets a new sandbox")
        return connection

    def end(self, command: str, reason: str) -> Ended | None:
        """End a command with all that it started; None if the agent cannot be asked or does not know of it."""
        container = self._state().container
        connection = None if container is None else self._greet(container)
        if connection is None:
            return None
        with connection, Spool(self.spool, command) as files:
            connection.end(command, reason)
            try:
                ended = agent.wait(connection, files, command, _PATIENCE_SECONDS, None, self.reconnect, reason=reason)
            except (SandkeepError, Broken, Refused):
                return None
            files.remove()
            return ended if ended is not None and ended.swept else None

    def forget(self, command: str) -> None:
        """Remove what lies in the spool of a command whose outcome is stored."""
        with Spool(self.spool, command) as files:
            files.remove()

    def containers(self) -> list[str]:
        """All containers of the task, in whatever state."""
        return [found.container for found in self._keep.engine.containers(self._keep.id) if found.task == self.id]

    def remove(self) -> None:
        """Remove all containers of the task, that of a slot too."""
        egress.close_way(self._keep, self.id)
        for container in self.containers():
            self._keep.engine.remove(container)
        slot.drop(self._keep, self.id)

    def drop(self) -> None:
        """Remove the container, if there is one, and record that; the next command starts another."""
        container = self._state().container
        if container is not None:
            self.remove()
            self._decide(partial(decider.lose, event=ev.SandboxRemoved(container)))

    def restart(self, container: str) -> None:
        """End every process of the container, and start it again with the limits that it has now."""
        self._keep.engine.restart(container, resources.of(self._keep, self.id).limits)

    def give_up(self, reason: str) -> None:
        """The engine or the agent failed while something ran: the next command gets a new container, which ends it."""
        if (container := self._state().container) is not None:
            self._lose(container, reason)

    def runs(self) -> bool:
        """Whether there is a container that runs, and does not stand still. Raises `EngineUnreachable`."""
        container = self._state().container
        return container is not None and self._keep.engine.status(container) == "running"

    @contextlib.contextmanager
    def still(self) -> Iterator[bool]:
        """As `frozen`, for some milliseconds; whether it stands still. It does not if the kernel holds its processes
        for want of memory, and then they do not go on either. The caller is `Keep.working` on the task."""
        container = self._state().container
        assert container is not None
        with freezer.held(self._keep, self.id, container) as held:
            if held is not None:
                yield held
                return
        with self.frozen() as held:
            yield held

    @contextlib.contextmanager
    def frozen(self) -> Iterator[bool]:
        """The container stands still, if one runs; whether one did."""
        engine, container = self._keep.engine, self._state().container
        if container is None or not self.runs():
            yield False
            return
        engine.pause(container)
        try:
            yield True
        finally:
            engine.unpause(container)

    def _greet(self, container: str) -> Connection | None:
        """A connection to the agent, if it answers: over its socket, or else by way of the engine."""
        engine = self._keep.engine
        # One that was just started again may not listen yet, and of one that just ended the engine may not know.
        begun = looked = time.monotonic()
        while (connection := agent.greet(self.spool, container, _PATIENCE_SECONDS)) is None:
            if engine.status(container) != "running":
                return None
            if engine.relays or time.monotonic() > begun + _AGAIN_SECONDS:
                return engine.relayed(container, _PATIENCE_SECONDS)
            if time.monotonic() > looked + _LOOK_SECONDS:
                looked = time.monotonic()
                if (connection := engine.relayed(container, agent.RELAY_SECONDS)) is not None:
                    return connection
            time.sleep(0.01)
        return connection

    def _connected(self, container: str) -> Connection | None:
        if self._keep.engine.form(container) == SHELL:
            return None
        connection = self._greet(container)
        if connection is None:
            raise SandboxGone("the sandbox's agent does not answer; run the command again, in a new sandbox")
        return connection

    def _place(self, container: str, connection: Connection | None) -> Place:
        return Place(container, connection, partial(self._end_all, container))

    def _end_all(self, container: str) -> None:
        # None may begin meanwhile, to be ended with them or to find it stopped.
        with self._keep.working(self.id):
            self.restart(container)

    def _wake(self, container: str) -> None:
        status = self._keep.engine.status(container)
        if status == "paused":
            self._keep.engine.unpause(container)
        if status in ("paused", "running"):
            self._decide(partial(decider.wake, event=ev.SandboxResumed(container)))

    def _state(self) -> registry.Task:
        return Recorded(self._keep, self.id).state

    def _lose(self, container: str, reason: str) -> None:
        self._decide(partial(decider.lose, event=ev.SandboxLost(container, reason)))

    def _decide(self, decision: Callable[[registry.Task | None], list[Event]]) -> None:
        self._keep.decide(self.id, decision)
