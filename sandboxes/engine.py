"""The Docker engine, as far as sandboxes need it.

Everything that the engine or the way to it can do wrong leaves here as a `SandkeepError`: `EngineUnreachable` when
nobody answers, `EngineFailed` with the engine's own words otherwise. An `Engine` connects at its first use and may be
used by several threads. It knows nothing of tasks and events; the containers it makes are found again by their labels.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import cast, final

import docker
import docker.errors
import docker.types
import msgspec
import requests
from docker.models.containers import Container

from sandkeep.events.catalogue import Limits
from sandkeep.sandboxes import image, workspace
from sandkeep.sandboxes.cgroup import Sample
from sandkeep.sandboxes.errors import EngineFailed, EngineUnreachable, ImageNotFound, SandboxGone

KEEP, TASK, INTENT = "sandkeep.keep", "sandkeep.task", "sandkeep.intent"
"""The labels of our containers."""

SPOOL = PurePosixPath("/run/sandkeep")
"""Where a sandbox sees its spool folder."""

_OURS = "sandkeep/"
_ANSWER_SECONDS = 60
_SETTLE_SECONDS = 10.0


class Mounts(msgspec.Struct, frozen=True):
    """The host's folders that a sandbox sees: workspace and spool to write to, memory to read."""

    workspace: Path
    memory: Path
    spool: Path


class Found(msgspec.Struct, frozen=True):
    """A container of a keep, as the engine lists it."""

    container: str
    task: str
    intent: str
    status: str


@final
class Engine:
    """A Docker engine: that of `DOCKER_HOST`, or of the Docker CLI's context."""

    @cached_property
    def _client(self) -> docker.DockerClient:
        try:
            client = docker.DockerClient.from_env(timeout=_ANSWER_SECONDS)
            client.ping()
        except (docker.errors.DockerException, requests.RequestException, OSError, ValueError) as error:
            raise _unreachable(error) from error
        return client

    def resolve_image(self, name: str | None, progress: Callable[[str], None]) -> tuple[str, str]:
        """The name and id of an image: `name`, pulled if the engine lacks it, or else the base image, made if need be.

        Raises `ImageNotFound`.
        """
        if name == "":
            raise ImageNotFound("the name of an image cannot be empty; 'docker images' lists those there are")
        with _errors():
            if name is None or name == image.base_recipe().tag:
                name = image.ensure_base(self._client, progress)
            try:
                found = self._client.images.get(name)
            except docker.errors.ImageNotFound as error:
                if name.startswith(_OURS):
                    # Nobody's registry may supply what we make ourselves.
                    raise ImageNotFound(f"there is no image {name!r} any more; create the task anew") from error
                progress(f"pulling {name}")
                try:
                    found = self._client.images.pull(name, tag=None if ":" in name or "@" in name else "latest")
                except docker.errors.APIError as error:
                    raise ImageNotFound(
                        f"there is no image {name!r}, and it cannot be pulled ({_words(error)});"
                        " 'docker images' lists those there are"
                    ) from error
            except docker.errors.APIError as error:
                raise ImageNotFound(f"{name!r} names no image ({_words(error)})") from error
        return name, str(found.id)

    @cached_property
    def machine(self) -> tuple[int, int]:
        """How many processors and how many bytes of memory the engine's machine has."""
        with _errors():
            info = self._client.info()
        return int(info["NCPU"]), int(info["MemTotal"])

    def fit(self, limits: Limits) -> Limits:
        """`limits` with no more processors than the engine's machine has, which it would refuse."""
        return msgspec.structs.replace(limits, nano_cpus=min(limits.nano_cpus, self.machine[0] * 10**9))

    def start(self, image_id: str, mounts: Mounts, limits: Limits, labels: Mapping[str, str]) -> str:
        """Start a container that waits for commands, and return its id.

        It has no capabilities, no network, no new privileges, a read-only root, an init process, the engine's default
        seccomp profile, and runs as the owner of the workspace.
        """
        uid, gid = workspace.owner()
        binds = [
            docker.types.Mount(str(workspace.MOUNT), str(mounts.workspace), type="bind"),
            docker.types.Mount("/memory", str(mounts.memory), type="bind", read_only=True),
            docker.types.Mount(str(SPOOL), str(mounts.spool), type="bind"),
        ]
        with _errors():
            container = self._client.containers.create(
                image_id,
                entrypoint=["tail", "-f", "/dev/null"],
                command=[],
                init=True,
                user=f"{uid}:{gid}",
                working_dir=str(workspace.MOUNT),
                environment={"HOME": "/tmp"},
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                network_mode="none",
                read_only=True,
                tmpfs={"/tmp": f"size={limits.tmp_bytes},mode=1777,exec"},
                mem_limit=limits.memory_bytes,
                memswap_limit=limits.memory_bytes + limits.swap_bytes,
                nano_cpus=limits.nano_cpus,
                pids_limit=limits.pids,
                ulimits=_ulimits(limits),
                log_config=docker.types.LogConfig(type="none"),
                mounts=binds,
                labels=dict(labels),
                hostname="sandbox",
                name=f"sandkeep-{labels[TASK]}-{labels[INTENT]}",
                # The proxies of the user's Docker configuration may hold a password.
                use_config_proxy=False,
            )
            try:
                container.start()
                self._probe(str(container.id))
            except (docker.errors.APIError, EngineFailed):
                container.remove(force=True, v=True)
                raise
        return str(container.id)

    def limit(self, container: str, limits: Limits) -> None:
        """Change what a container may use of memory, swap, processors and processes; the rest it was started with.

        The SDK cannot change all of these. Fails if it uses more memory already.
        """
        body = {
            "Memory": limits.memory_bytes,
            "MemorySwap": limits.memory_bytes + limits.swap_bytes,
            "NanoCpus": limits.nano_cpus,
            "PidsLimit": limits.pids,
        }
        api = self._client.api
        with _errors(container):
            # The client is a session of requests; what it says beside is not in its API.
            answer = api.post(f"{api.base_url}/v{api.api_version}/containers/{container}/update", json=body)
            try:
                answer.raise_for_status()
            except requests.HTTPError as error:
                docker.errors.create_api_error_from_http_exception(error)

    def statistics(self, container: str) -> Sample:
        """What a container uses, as the engine says, which takes a second. Page cache may count as used."""
        with _errors(container):
            found = self._client.api.stats(container, stream=False)
        memory, cpu = found["memory_stats"], found["cpu_stats"]
        stat = memory.get("stats", {})
        cache = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file"))
        pids = found["pids_stats"]
        return Sample(
            max(0, memory.get("usage", 0) - cache),
            memory.get("limit", 0),
            pids.get("current", 0),
            pids.get("limit", 0),
            cpu["cpu_usage"]["total_usage"],
            cpu.get("throttling_data", {}).get("throttled_time", 0),
            0,
        )

    def init_pid(self, container: str) -> int | None:
        """The process id of a container's first process on the engine's machine; None if it does not run."""
        with _errors():
            found = self._find(container)
            return None if found is None else int(found.attrs["State"]["Pid"]) or None

    def status(self, container: str) -> str | None:
        """The engine's word for the state of a container ("running", "paused", "exited" ...), None if it has none."""
        with _errors():
            found = self._find(container)
            return None if found is None else str(found.status)

    def pause(self, container: str) -> None:
        """Freeze every process of a container."""
        with _errors(container):
            self._client.api.pause(container)

    def unpause(self, container: str) -> None:
        """Let a frozen container go on."""
        with _errors(container):
            self._client.api.unpause(container)

    def restart(self, container: str) -> None:
        """End every process of a container at once and start it again. Its /tmp is empty then."""
        with _errors(container):
            self._client.api.restart(container, timeout=0)

    def remove(self, container: str) -> None:
        """Remove a container with all its processes, if it is there."""
        with _errors():
            found = self._find(container)
            if found is not None:
                with contextlib.suppress(docker.errors.NotFound):
                    found.remove(force=True, v=True)

    def containers(self, keep: str) -> list[Found]:
        """Every container of the keep with this id, running or not."""
        with _errors():
            answer = self._client.api.containers(all=True, filters={"label": f"{KEEP}={keep}"})
        return [
            Found(each["Id"], each["Labels"].get(TASK, ""), each["Labels"].get(INTENT, ""), each["State"])
            for each in answer
        ]

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
        api = self._client.api
        with _errors(container):
            execution = api.exec_create(container, argv, environment=dict(environment))["Id"]
            connection = cast(socket.SocketIO, api.exec_start(execution, socket=True))
        try:
            # What `tick` raises is not the engine's fault.
            if not _wait_for_end(connection.fileno(), deadline, tick, tick_seconds):
                return None
        finally:
            connection.close()
        with _errors(container):
            settled = time.monotonic() + _SETTLE_SECONDS
            while (found := api.exec_inspect(execution))["Running"] and time.monotonic() < settled:
                time.sleep(0.005)
            if self.status(container) != "running" or found["Running"]:
                raise SandboxGone("the sandbox ended while the command ran; run it again in a new one")
            return int(found["ExitCode"])

    def _probe(self, container: str) -> None:
        """See that commands can run in a container, since the engine starts even what ends at once."""
        api = self._client.api
        with contextlib.suppress(docker.errors.APIError):
            execution = api.exec_create(container, ["/bin/sh", "-c", ":"])["Id"]
            api.exec_start(execution)
            if api.exec_inspect(execution)["ExitCode"] == 0:
                return
        raise EngineFailed("the image cannot run a sandbox, which needs /bin/sh and tail; choose another image")

    def _find(self, container: str) -> Container | None:
        try:
            return self._client.containers.get(container)
        except docker.errors.NotFound:
            return None


def _ulimits(limits: Limits) -> list[docker.types.Ulimit]:
    # No file alone can take more than all of the workspace may; to their sum only the monitor sees.
    file = max(limits.disk_bytes, limits.tmp_bytes, limits.output_bytes) if limits.disk_bytes else 0
    found = {"nofile": limits.open_files, "fsize": file}
    return [docker.types.Ulimit(name=name, soft=most, hard=most) for name, most in found.items() if most]


def _wait_for_end(connection: int, deadline: float, tick: Callable[[], bool], tick_seconds: float) -> bool:
    """Read the connection until its end (true), the deadline, or until `tick` says no."""
    poller = select.poll()
    poller.register(connection, select.POLLIN | select.POLLHUP)
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        if poller.poll(min(remaining, tick_seconds) * 1000):
            with _errors():
                if not os.read(connection, 65536):
                    return True
        elif not tick():
            return False


@contextlib.contextmanager
def _errors(container: str | None = None) -> Iterator[None]:
    """Turn what the engine raises into our errors; if `container` is named, its absence is `SandboxGone`."""
    try:
        yield
    except docker.errors.NotFound as error:
        if container is not None:
            raise SandboxGone("the sandbox has ended or was removed; run the command again in a new one") from error
        raise EngineFailed(f"the Docker engine does not find something: {_words(error)}") from error
    except docker.errors.APIError as error:
        raise EngineFailed(f"the Docker engine refused: {_words(error)}") from error
    except (requests.RequestException, docker.errors.DockerException, OSError) as error:
        raise _unreachable(error) from error


def _words(error: docker.errors.APIError) -> str:
    return " ".join(str(error.explanation or error).split())


def _unreachable(error: Exception) -> EngineUnreachable:
    words = " ".join(_root_cause(error).split())[:200]
    return EngineUnreachable(f"no Docker engine answers ({words}); start it, or set DOCKER_HOST, then try again")


def _root_cause(error: BaseException) -> str:
    """The operating system's words, from under the layers that wrap them; else the error's own."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    return str(error)
