"""What the Docker SDK raises, as our own errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import docker.errors
import requests

from sandkeep.events import SandkeepError
from sandkeep.sandboxes.errors import EngineFailed, EngineUnreachable, EngineUnsupported, SandboxGone


@contextlib.contextmanager
def errors(container: str | None = None) -> Iterator[None]:
    """Turn what the engine raises into our errors; if `container` is named, its absence is `SandboxGone`."""
    try:
        yield
    except docker.errors.APIError as error:
        if is_missing(error) and container is not None:
            raise SandboxGone("the sandbox has ended or was removed; run the command again in a new one") from error
        if is_missing(error):
            raise EngineFailed(f"the Docker engine does not find something: {words(error)}") from error
        raise EngineFailed(f"the Docker engine refused: {words(error)}") from error
    except (requests.RequestException, docker.errors.DockerException, OSError) as error:
        raise unreachable(error) from error


def is_missing(error: docker.errors.APIError) -> bool:
    """Whether what was asked for is not there. podman calls that its own fault while it is removing it."""
    return isinstance(error, docker.errors.NotFound) or "no such container" in str(error.explanation)


def words(error: docker.errors.APIError) -> str:
    """What the engine says, on one line."""
    return " ".join(str(error.explanation or error).split())


def unreached(error: Exception) -> SandkeepError:
    """Why the first question to an engine was not answered."""
    if (
        isinstance(error, docker.errors.APIError) and error.status_code == 400
    ):  # what a refused API version is told with
        return EngineUnsupported(f"the engine does not speak as we do: {words(error)[:200]}; upgrade the older of both")
    return unreachable(error)


def unreachable(error: Exception) -> EngineUnreachable:
    """No engine answers, for this reason."""
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
