"""The Docker engine, as far as sandboxes need it.

Everything that the engine or the way to it can do wrong leaves here as a `SandkeepError`: `EngineUnreachable` when
nobody answers, `EngineFailed` with the engine's own words otherwise. An `Engine` connects at its first use and may be
used by several threads. It knows nothing of tasks and events; the containers it makes are found again by their labels.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import final

import docker
import docker.errors
import docker.types
import msgspec
import requests
from docker.models.containers import Container
from docker.types.daemon import CancellableStream

from sandkeep.events.catalogue import Limits
from sandkeep.sandboxes import (
    agent,
    engine_facts,
    engine_fitness,
    engine_use,
    exec_stream,
    image,
    podman,
    workspace,
)
from sandkeep.sandboxes.agent import Broken, Connection, Refused
from sandkeep.sandboxes.cgroup import Sample
from sandkeep.sandboxes.container import (
    AGENT,
    BESIDE,
    FORM,
    GUEST,
    INTENT,
    KEEP,
    SHELL,
    SPOOL,
    TASK,
    Helpers,
    Mounts,
    called,
    options,
    python,
)
from sandkeep.sandboxes.engine_errors import errors, unreached
from sandkeep.sandboxes.engine_facts import Facts
from sandkeep.sandboxes.errors import EngineFailed

_ANSWER_SECONDS = 60
_logger = logging.getLogger(__name__)
_SETTLE_SECONDS = 10.0
_LOOK_SECONDS = 0.5


class Found(msgspec.Struct, frozen=True):
    """A container of a keep, as the engine lists it."""

    container: str
    task: str
    intent: str
    status: str
    beside: str = ""


@final
class Engine:
    """A Docker engine: that of `DOCKER_HOST`, or of the Docker CLI's context."""

    def __init__(self) -> None:
        self._forms: dict[str, str] = {}
        self._told: set[engine_fitness.Lack] = set()
        self._unstarted: set[str] = set()
        self.relays = False
        """Whether an agent could be reached by way of this engine only."""

    @cached_property
    def _client(self) -> docker.DockerClient:
        try:
            client = docker.DockerClient.from_env(timeout=_ANSWER_SECONDS)
            client.ping()
            engine_fitness.check_api(client.api.api_version)
        except (docker.errors.DockerException, requests.RequestException, OSError, ValueError) as error:
            raise unreached(error) from error
        return client

    @contextlib.contextmanager
    def connected(self) -> Iterator[docker.DockerClient]:
        """The client, for those who make images; what it raises in the block leaves as our errors."""
        client = self._client
        with errors():
            yield client

    def fit(self, limits: Limits) -> Limits:
        """`limits` with no more processors than the engine's machine has, which it would refuse."""
        return msgspec.structs.replace(limits, nano_cpus=min(limits.nano_cpus, self.facts.cpus * 10**9))

    def start(
        self,
        image_id: str,
        mounts: Mounts,
        limits: Limits,
        labels: Mapping[str, str],
        helpers: Helpers = (),
        *,
        runtime: str = "",
    ) -> str:
        """Start a container that waits for commands, and return its id.

        It has no network, no new privileges, a read-only root and the engine's default seccomp profile. PID 1 is our
        agent, root with no capabilities but to end processes and to become the owner of the workspace, who runs the
        commands, without any. It keeps the programs `helpers` running, as nobody. Where the agent does not start, with
        a Python that is lent to it either, commands are run by the engine (`SHELL`), and there are no helpers. It is
        run by the engine's own runtime unless `runtime` names another. Raises `EngineUnsupported` if the engine is not
        fit for that.
        """
        for lack in engine_fitness.check(self.facts, runtime) - self._told:
            self._told.add(lack)
            _logger.warning("the engine makes sandboxes less safe: %s; %s", lack.what, lack.advice)
        forms = [self._forms[image_id]] if image_id in self._forms else [AGENT, GUEST, SHELL]
        for form in forms:
            try:
                container = self._start(form, image_id, mounts, limits, labels, helpers, runtime)
            except EngineFailed:
                if form == forms[-1]:
                    raise
                continue
            if form == SHELL and form != forms[0]:
                _logger.warning("image %s cannot run the agent: its commands are slower, see docs", image_id[:19])
            self._forms[image_id] = form
            return container
        raise AssertionError("there is always a last form")

    def _start(
        self,
        form: str,
        image_id: str,
        mounts: Mounts,
        limits: Limits,
        labels: Mapping[str, str],
        helpers: Helpers,
        runtime: str,
    ) -> str:
        with errors():
            declares = image.inspect(self._client, image_id)
            chosen = options(form, declares, mounts, limits, labels, helpers)
            container = engine_use.create(self._client, self.facts, runtime, image_id, **chosen)
            try:
                (mounts.spool / "sandbox").write_text(str(container.id))
                container.start()
                if form == SHELL:
                    engine_use.probe(self._client, str(container.id))
                else:
                    self._meet(container, mounts.spool)
            except (docker.errors.APIError, EngineFailed):
                container.remove(force=True, v=True)
                raise
        return str(container.id)

    def _meet(self, container: Container, spool: Path) -> None:
        """Wait until the agent answers."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        looked = time.monotonic()
        while time.monotonic() < deadline:
            connection = agent.greet(spool, str(container.id))
            if connection is None and time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                container.reload()
                if container.status != "running":
                    break
                connection = self.relayed(str(container.id), agent.RELAY_SECONDS)
            if connection is not None:
                connection.sock.close()
                return
            time.sleep(0.003)
        raise EngineFailed("the image cannot run the sandbox's agent, which needs Python 3.9; choose another image")

    def relayed(self, container: str, seconds: float) -> Connection | None:
        """A connection to the agent of a container by way of the engine, if it answers; see `exec_stream`."""
        command = [*self.python(container), "-I", "-S", str(SPOOL / "agent"), "relay", str(SPOOL / "spool")]
        attached = exec_stream.attach(self._client.api, container, command, partial(self.status, container))
        connection = Connection(attached, container)
        with contextlib.suppress(Broken, Refused):
            if connection.hello(seconds):
                self.relays = True
                return connection
        connection.sock.close()
        return None

    def python(self, container: str) -> list[str]:
        """The command that is Python in a container."""
        return python(self.form(container))

    def form(self, container: str) -> str:
        """Whether commands are run by the agent in a container (`AGENT`, `GUEST`) or by the engine (`SHELL`)."""
        with errors(container):
            found = self._client.containers.get(container)
            return str(found.labels.get(FORM, SHELL))

    @cached_property
    def facts(self) -> Facts:
        """What the engine says of itself, when it is first asked."""
        with errors():
            return engine_facts.ask(self._client)

    def limit(self, container: str, limits: Limits) -> None:
        """Change what a container may use of memory, swap, processors and processes; the rest it was started with.

        Fails if it uses more memory already.
        """
        with errors(container):
            engine_use.update(self._client, self.facts, container, limits)

    def statistics(self, container: str) -> Sample:
        """What a container uses, as the engine says, which takes a second. Page cache may count as used."""
        with errors(container):
            return engine_use.sample(self._client, container)

    def init_pid(self, container: str) -> int | None:
        """The process id of a container's first process on the engine's machine; None if it does not run."""
        with errors():
            found = engine_use.find(self._client, container)
            return None if found is None else int(found.attrs["State"]["Pid"]) or None

    def status(self, container: str) -> str | None:
        """The engine's word for the state of a container ("running", "paused", "exited" ...), None if it has none."""
        with errors():
            found = engine_use.find(self._client, container)
            return None if found is None else str(found.status)

    def pause(self, container: str) -> None:
        """Freeze every process of a container."""
        with errors(container):
            self._client.api.pause(container)

    def unpause(self, container: str) -> None:
        """Let a frozen container go on."""
        with errors(container):
            self._client.api.unpause(container)

    def restart(self, container: str, limits: Limits | None = None) -> None:
        """End every process of a container at once and start it again, with these limits if they were changed. Its /tmp
        is empty then."""
        with errors(container):
            self._client.api.restart(container, timeout=0)
        if limits is not None and self.facts.podman:
            self.limit(container, limits)

    def commit(self, container: str, repository: str, tag: str, labels: Mapping[str, str]) -> str:
        """Make an image of a container's own file system, and return its id. Mounts and what lies in memory are not in
        it. The container stands still meanwhile."""
        changes = [f"LABEL {name}={value}" for name, value in labels.items()]
        with errors(container):
            return str(self._client.api.commit(container, repository, tag, changes=changes)["Id"])

    def remove(self, container: str) -> None:
        """Remove a container with all its processes, if it is there."""
        with errors():
            found = engine_use.find(self._client, container)
            if found is not None:
                engine_use.remove(found)

    def containers(self, keep: str) -> list[Found]:
        """Every container of the keep with this id, running or not. One that others started from an image with our
        labels is none of them: it is not called as ours are."""
        with errors():
            answer = self._client.api.containers(all=True, filters={"label": f"{KEEP}={keep}"})
        return [
            Found(each["Id"], labels.get(TASK, ""), labels.get(INTENT, ""), each["State"], labels.get(BESIDE, ""))
            for each in answer
            for labels in (each["Labels"],)
            if f"/{called(labels)}" in (each["Names"] or ())
        ]

    @contextlib.contextmanager
    def endings(self, keep: str) -> Iterator[CancellableStream[str]]:
        """The engine's word, as it comes, of containers of this keep that end; `close` it from any thread to end that.

        Only a hint: some are lost, and when the engine ends so does this, as if there were no more.
        """
        # podman says "die" as Docker does, and has to be asked for what it calls that itself.
        kinds = {"label": f"{KEEP}={keep}", "type": "container", "event": ["die", "died"]}
        with errors():
            stream = self._client.api.events(filters=kinds)
        try:
            yield stream
        finally:
            with contextlib.suppress(OSError, docker.errors.DockerException):  # it was closed before
                stream.close()

    def run(
        self,
        container: str,
        argv: list[str],
        environment: Mapping[str, str],
        deadline: float,
        tick: Callable[[], bool],
        tick_seconds: float,
    ) -> int | None:
        """Run `argv` in a container, wait for it, and return its exit status.

        `tick` is called every `tick_seconds`. None means that `deadline` (of the monotonic clock) has passed, or `tick`
        returned false, and the command still runs. What the command writes to this connection is dropped. Raises
        `SandboxGone` if the container ended meanwhile.
        """

        def alive() -> bool:
            return self.status(container) == "running"

        return exec_stream.run(self._client.api, container, argv, environment, deadline, tick, tick_seconds, alive)

    @property
    def is_local(self) -> bool:
        """Whether the engine is reached by a unix socket, so that one of ours may be mounted into its containers."""
        return str(self._client.api.base_url).startswith("http+docker://")

    def detach(self, container: str, argv: list[str]) -> str:
        """Start `argv` in a container, as the owner of the workspace, and return the id for `exit_status`."""
        user = "{}:{}".format(*workspace.owner())
        with errors(container):
            made = self._client.api.exec_create(container, argv, stdout=False, stderr=False, user=user)
            execution = str(made["Id"])
            try:
                self._client.api.exec_start(execution, detach=True)
            except docker.errors.APIError:
                if self.exit_status(execution) is None:  # or else the image lacks the program
                    raise
                self._unstarted.add(execution)
            return execution

    def exit_status(self, execution: str) -> int | None:
        """The exit status of what `detach` started; None while it runs, `podman.UNTOLD` if that is not told."""
        if execution in self._unstarted:
            return 127
        with errors():
            found = self._client.api.exec_inspect(execution)
        if found["Running"]:
            return podman.UNTOLD if self.facts.podman and podman.has_ended(found) else None
        return None if found["ExitCode"] is None else int(found["ExitCode"])
