"""Making images: from a recipe, or from one of a registry.

A recipe is built on a registry's image where the engine can pull one, and otherwise from the packages of the host's
own apt sources (see `packages`). Either way the image holds no apt sources, lists or caches, and runs as any uid on a
read-only root. Where it is made of packages, its id is known before the engine has it, and what the engine has already
is not loaded again.

An image is called `sandkeep/NAME:VERSION` once it is whole, never before. There may be several versions of one recipe,
because packages come to be newer: the one that was made or loaded last is used, by all keeps on the engine.

Concurrency: any threads and processes may make images; those of one user take turns on a lock file, those of several
users may build twice. Errors: `ImageBuildFailed`, and its `ImageToolMissing` where mmdebstrap is wanted and missing; an
engine that goes away is the Docker SDK's exception.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import docker
import docker.errors
import msgspec
import requests
import urllib3

from sandkeep.events import SandkeepError
from sandkeep.sandboxes import docker_archive, packages
from sandkeep.sandboxes.docker_archive import Contents, Measured
from sandkeep.sandboxes.errors import ImageBuildFailed, ImageNotFound, ImageToolMissing
from sandkeep.sandboxes.packages import last_line
from sandkeep.sandboxes.recipe import RECIPE, REPOSITORY, Recipe, base_recipe, parse_tag, tag_of

Progress = Callable[[str], None]

# An unreachable registry must not hold up a build that can do without one.
REGISTRY_SILENCE_S = 10
BUILD_SILENCE_S = 600
REPORT_EVERY_S = 3.0
_LOADED = re.compile(r"Loaded image ID: (sha256:[0-9a-f]{64})")


class Made(msgspec.Struct, frozen=True):
    """An image that the engine has, and what it was made from: `registry`, `packages`, `dockerfile` or `archive`.

    `reused` means that the engine had it before.
    """

    tag: str
    id: str
    size: int
    origin: str = ""
    reused: bool = False


class NoImage(Exception):
    """Why the engine has not made or taken an image."""


def inspect(client: docker.DockerClient, name: str) -> dict[str, Any]:
    """What the engine knows of an image. Raises the SDK's `ImageNotFound`."""
    api: Any = client.api
    found: dict[str, Any] = api.inspect_image(name)
    return found


def unmeasured(done: int, total: int) -> None:
    """For those who want no measure of what is done."""


def find(client: docker.DockerClient, recipe: Recipe) -> Made | None:
    """The version of a recipe's image that the engine was given last, if it has any."""
    labelled = {"label": f"{RECIPE}={recipe.digest}"}
    found = [
        Made(tag, each["Id"], each["Size"])
        for each in client.api.images(name=REPOSITORY + recipe.name, filters=labelled)
        for tag in tags(each)
        if (parsed := parse_tag(tag)) and parsed[0] == recipe.name
    ]
    if len(found) > 1:  # a second question, which hardly ever has to be asked
        found.sort(key=lambda made: str(inspect(client, made.id)["Metadata"]["LastTagTime"]))
    return found[-1] if found else None


def ensure(client: docker.DockerClient, recipe: Recipe, progress: Progress, measured: Measured = unmeasured) -> Made:
    """The image of a recipe, made if the engine lacks it. Blocks for as long as that takes."""
    if found := find(client, recipe):
        return found
    with build_lock(progress):
        if found := find(client, recipe):
            return found
        return _make(client, recipe, progress, measured)


def make(client: docker.DockerClient, recipe: Recipe, progress: Progress, measured: Measured = unmeasured) -> Made:
    """The image of a recipe, made now, with packages as they are now."""
    with build_lock(progress):
        return _make(client, recipe, progress, measured)


def pull(client: docker.DockerClient, name: str, reference: str, progress: Progress, measured: Measured) -> Made:
    """A registry's image as one of ours. Raises `ImageNotFound` if it cannot be had."""
    return publish(client, name, fetch(client, reference, progress, measured), "registry")


def fetch(client: docker.DockerClient, reference: str, progress: Progress, measured: Measured) -> str:
    """Pull a registry's image, and return its id. Raises `ImageNotFound`."""
    if not foreign(reference):
        raise ImageNotFound(f"there is no image {reference!r}, and no registry may supply it; build it, or import it")
    progress(f"pulling {reference}")
    try:
        _pull(client, reference, None, progress, measured)
        return str(inspect(client, reference)["Id"])
    except (NoImage, docker.errors.APIError) as error:
        said = last_line(str(getattr(error, "explanation", None) or error))
        raise ImageNotFound(
            f"{reference!r} cannot be pulled ({said}); 'docker images' lists those there are"
        ) from error


def publish(client: docker.DockerClient, name: str, image_id: str, origin: str, *, reused: bool = False) -> Made:
    """Call an image of the engine `sandkeep/NAME`, of the version that its id is."""
    tag = tag_of(name, image_id)
    repository, _, version = tag.partition(":")
    client.api.tag(image_id, repository, version, force=True)
    return Made(tag, image_id, int(inspect(client, tag)["Size"]), origin, reused)


def load(client: docker.DockerClient, contents: Contents, progress: Progress, measured: Measured) -> tuple[str, bool]:
    """See that the engine has an image, without a name. Returns what the engine has for its id, and whether it was
    there before."""
    with contextlib.suppress(docker.errors.NotFound):
        return str(inspect(client, contents.id)["Id"]), True
    with temporary_file() as archive:
        with disk_errors():
            docker_archive.write(contents, archive, None, measured)
            archive.seek(0)
        progress("loading it into the engine")
        try:
            # With the containerd image store an engine's id is another than that of the configuration.
            loaded = follow(_with_timeout(client, BUILD_SILENCE_S).load_image(archive), progress)
            found = inspect(client, loaded or contents.id)
        except (docker.errors.APIError, NoImage) as error:
            raise ImageBuildFailed(f"the engine refused the image: {error}; look at its log and disk") from error
    if found["RootFS"]["Layers"] != [f"sha256:{layer.digest}" for layer in contents.layers]:
        raise ImageBuildFailed("the engine has made something else of the image; look at its log and disk")
    return str(found["Id"]), False


def follow(answer: Iterable[dict[str, Any]], progress: Progress, measured: Measured = unmeasured) -> str:
    """Read what the engine says about its work to the end, pass some of it on, and return the id it names last."""
    reported, found = time.monotonic(), ""
    sizes: dict[str, tuple[int, int]] = {}
    for message in answer:
        if "error" in message:
            raise NoImage(last_line(str(message["error"])))
        loaded = _LOADED.search(str(message.get("stream", "")))
        found = loaded[1] if loaded else str((message.get("aux") or {}).get("ID") or found)
        detail = message.get("progressDetail") or {}
        if "total" in detail and message.get("status") == "Downloading":
            sizes[str(message.get("id"))] = (detail.get("current", 0), detail["total"])
            measured(sum(done for done, _ in sizes.values()), sum(total for _, total in sizes.values()))
        said = last_line(str(message.get("stream") or message.get("status") or ""))
        if said and time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            progress(said)
    return found


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the host's own disk refuses is no fault of the engine."""
    try:
        yield
    except requests.RequestException:  # which is an OSError too
        raise
    except OSError as error:
        where = error.filename or _temporary()
        raise ImageBuildFailed(f"the image cannot be written: {error.strerror} ({where}); make room there") from error


def temporary_file(*, named: bool = False) -> IO[bytes]:
    """A file that is gone once it is closed, where there is room for an image. Without a name also after a crash."""
    with disk_errors():
        if named:
            return tempfile.NamedTemporaryFile(prefix="sandkeep-image-", dir=_temporary())
        return tempfile.TemporaryFile(dir=_temporary())


def our_tags(client: docker.DockerClient) -> set[str]:
    """What the engine calls images of ours."""
    return {tag for each in client.api.images(name=f"{REPOSITORY}*") for tag in tags(each)}


def tags(listed: dict[str, Any]) -> list[str]:
    """The names of an image that an engine lists, as Docker writes them: podman puts in front where they came from."""
    return [re.sub(r"^(docker\.io|localhost)/", "", tag) for tag in listed["RepoTags"] or ()]


def foreign(reference: str) -> bool:
    """Whether a registry may supply what is called like this. The engine's other words for Docker's registry, which it
    drops, must not make one of ours of it."""
    return not re.match(rf"((index\.)?docker\.io/)?{REPOSITORY}", reference, re.IGNORECASE)


def patient(client: docker.DockerClient) -> Any:
    """The connection for work that may be silent for minutes."""
    return _with_timeout(client, BUILD_SILENCE_S)


def _make(client: docker.DockerClient, recipe: Recipe, progress: Progress, measured: Measured) -> Made:
    started = time.monotonic()
    arch = client.version()["Arch"]
    if arch != recipe.arch:
        raise ImageBuildFailed(f"{recipe.name} is for {recipe.arch}, not for this engine's {arch}; use another engine")
    try:
        if not recipe.registry_image:
            raise NoImage("it is made of packages alone")
        progress(f"making {recipe.name} from {recipe.registry_image}, if that can be pulled")
        made = _from_registry(client, recipe, progress, measured)
    except NoImage as reason:
        progress(f"making {recipe.name} from this host's apt sources: {reason}")
        made = _from_packages(client, recipe, progress, measured)
    progress(f"{made.tag} made in {time.monotonic() - started:.0f} s")
    return made


@contextmanager
def build_lock(progress: Progress) -> Iterator[None]:
    """One build at a time, of this user."""
    folder = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    path = Path(folder, f"sandkeep-image-{os.getuid()}.lock")
    try:
        # In a shared folder, somebody else's link of that name must not decide what is opened.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ImageBuildFailed(f"the lock {path} cannot be opened ({error.strerror}); remove it") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the image")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _with_timeout(client: docker.DockerClient, seconds: int) -> Any:
    """The same connection with a timeout of its own: the caller's must not change under other threads."""
    api = object.__new__(type(client.api))
    vars(api).update(vars(client.api), timeout=seconds)
    return api


def _temporary() -> str:
    # A tmpfs, as /tmp often is, may be too small for two copies of a root file system.
    return os.environ.get("TMPDIR") or "/var/tmp"


@contextmanager
def _unless_podman() -> Iterator[None]:
    """podman does not know that question, and gives up on a registry by itself."""
    try:
        yield
    except docker.errors.NotFound as error:
        if "not supported" not in str(error.explanation):
            raise


def _pull(
    client: docker.DockerClient, reference: str, target: str | None, progress: Progress, measured: Measured
) -> None:
    try:
        # The SDK pulls without any timeout, so whether the registry is there at all is asked first.
        with _unless_podman():
            _with_timeout(client, REGISTRY_SILENCE_S).inspect_distribution(reference)
        follow(patient(client).pull(reference, stream=True, decode=True, platform=target), progress, measured)
    except docker.errors.APIError as error:
        raise NoImage(last_line(error.explanation or str(error))) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise NoImage("the engine got no answer in time") from error


def _from_registry(client: docker.DockerClient, recipe: Recipe, progress: Progress, measured: Measured) -> Made:
    script = f"rm -rf {recipe.removed}"
    if recipe.packages:
        options = " ".join(f"'{option}'" for option in recipe.dpkg_options.split())
        prepare = f"printf '%s\\n' {options} >/etc/dpkg/dpkg.cfg.d/sandkeep && apt-get update"
        install = f"apt-get install -y --no-install-recommends {' '.join(recipe.packages)}"
        script = f"{prepare} && DEBIAN_FRONTEND=noninteractive {install} && {script}"
    settings = f"ENV {recipe.environment}\nLABEL {RECIPE}={recipe.digest}"
    added = "ADD files.tar /\n" if recipe.files else ""
    dockerfile = f'FROM {recipe.registry_image}\nRUN {script}\n{added}{settings}\nCMD ["sh"]\n'
    target = f"linux/{recipe.arch}"
    _pull(client, recipe.registry_image, target, progress, measured)
    with tempfile.TemporaryDirectory(prefix="sandkeep-image-", dir=_temporary()) as name:
        context = Path(name, "context.tar")
        with disk_errors():
            docker_archive.write_files(recipe.files, Path(name, "files.tar"), packages.EPOCH)
            with tarfile.open(context, "w") as tar:
                entry = tarfile.TarInfo("Dockerfile")
                entry.size = len(dockerfile)
                tar.addfile(entry, io.BytesIO(dockerfile.encode()))
                tar.add(Path(name, "files.tar"), "files.tar")
        options_ = {"platform": target, "rm": True, "forcerm": True, "decode": True}
        try:
            with context.open("rb") as file:
                built = follow(patient(client).build(fileobj=file, custom_context=True, **options_), progress)
        except docker.errors.APIError as error:
            raise NoImage(last_line(error.explanation or str(error))) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise NoImage("the engine got no answer in time") from error
    return publish(client, recipe.name, built, "registry")


def _from_packages(client: docker.DockerClient, recipe: Recipe, progress: Progress, measured: Measured) -> Made:
    with tempfile.TemporaryDirectory(prefix="sandkeep-image-", dir=_temporary()) as name:
        with disk_errors():
            layers = [packages.install(recipe, Path(name), progress)]
            if recipe.files:
                layers.append(Path(name, "files.tar"))
                docker_archive.write_files(recipe.files, layers[-1], packages.EPOCH)
            contents = docker_archive.compose(recipe, layers)
        loaded, reused = load(client, contents, progress, measured)
        return publish(client, recipe.name, loaded, "packages", reused=reused)


def main() -> int:
    """Makes sure of the base image: its tag on stdout, progress on stderr, status 3 if a tool must be installed."""

    def say(line: str) -> None:
        print(f"image: {line}", file=sys.stderr, flush=True)

    try:
        with closing(docker.DockerClient.from_env()) as client:
            print(ensure(client, base_recipe(), say).tag)
    except docker.errors.DockerException as error:
        say(f"the Docker engine does not answer: {last_line(str(error))}; run make setup")
        return 1
    except SandkeepError as error:
        say(str(error))
        return 3 if isinstance(error, ImageToolMissing) else error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
