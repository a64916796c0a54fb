"""The base image `sandkeep/base`: a shell, git, coreutils and Python, on Debian or Ubuntu.

A `Recipe` says what is in it, and its digest is the image's tag, so an unchanged recipe is never built twice and a
changed one never passes for the old. `ensure_base` builds on a registry image where the engine can pull one, and
otherwise from the packages of the host's own apt sources with `mmdebstrap`. Either way the image holds no apt
sources, lists or caches, and runs as any uid on a read-only root.

Concurrency: any threads and processes may call `ensure_base`; those of one user take turns on a lock file, those of
several users may build twice. A build that was cut short leaves nothing under the tag. Errors: `ImageBuildFailed`, and
its `ImageToolMissing` where mmdebstrap is wanted and missing; an engine that goes away is the Docker SDK's exception.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import docker.errors
import msgspec
import requests
import urllib3
from blake3 import blake3

from sandkeep.events.errors import SandkeepError

Progress = Callable[[str], None]

# An image's id covers its times, so they have to be the same on every machine and every day.
EPOCH = 1_767_225_600
CREATED = "2026-01-01T00:00:00Z"

ORIGINS = {"debian": "Debian", "ubuntu": "Ubuntu"}
REGISTRY_IMAGES = {"debian": "debian:{}-slim", "ubuntu": "ubuntu:{}"}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

# An unreachable registry must not hold up a build that can do without one.
REGISTRY_SILENCE_S = 10
BUILD_SILENCE_S = 600
REPORT_EVERY_S = 3.0


class ImageBuildFailed(SandkeepError):
    """The base image could not be made."""

    code = "image-build-failed"


class ImageToolMissing(ImageBuildFailed):
    """No registry can be reached, and the tool that could do without one is not installed."""

    code = "image-tool-missing"


class _NoImage(Exception):
    """Why the engine has not made or taken an image."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is made of. All of it counts towards the tag, so no path or address of a host belongs here."""

    distribution: str
    codename: str
    arch: str
    registry_image: str
    packages: tuple[str, ...] = ("git", "python3")
    variant: str = "essential"
    # What Debian's own container images leave out as well; the licences ask that the copyright files stay.
    dpkg_options: str = (
        "path-exclude=/usr/share/doc/* path-include=/usr/share/doc/*/copyright "
        "path-exclude=/usr/share/info/* path-exclude=/usr/share/locale/* path-exclude=/usr/share/man/*"
    )
    removed: str = (
        "/etc/apt/sources.list /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/99mmdebstrap /var/lib/apt/lists/* "
        "/var/lib/dpkg/*-old /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/* /var/log/*"
    )
    environment: str = "LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    version: int = 1

    @property
    def digest(self) -> str:
        return blake3(msgspec.json.encode(self, order="deterministic")).hexdigest()

    @property
    def tag(self) -> str:
        return f"sandkeep/base:{self.digest[:12]}"


def base_recipe() -> Recipe:
    """The recipe for this host: its own release, since its own apt sources may have to provide it."""
    release = {}
    with suppress(OSError):
        release = platform.freedesktop_os_release()
    distribution, codename = release.get("ID", ""), release.get("VERSION_CODENAME", "")
    if distribution not in ORIGINS or not codename:
        distribution, codename = "debian", "trixie"
    return Recipe(
        distribution=distribution,
        codename=codename,
        arch=ARCHITECTURES.get(platform.machine(), platform.machine()),
        registry_image=REGISTRY_IMAGES[distribution].format(codename),
    )


def ensure_base(client: docker.DockerClient, progress: Progress, recipe: Recipe | None = None) -> str:
    """The tag of the base image, which the engine has when this returns. Blocks for as long as a build takes."""
    recipe = recipe or base_recipe()
    if _present(client, recipe):
        return recipe.tag
    with _build_lock(progress):
        if _present(client, recipe):
            return recipe.tag
        started = time.monotonic()
        progress(f"making {recipe.tag} from {recipe.registry_image}, if that can be pulled")
        arch = client.version()["Arch"]
        if arch != recipe.arch:
            raise ImageBuildFailed(
                f"{recipe.tag} is for {recipe.arch}, not for this engine's {arch}; use another engine"
            )
        try:
            _from_registry(client, recipe, progress)
        except _NoImage as reason:
            progress(f"it cannot: {reason}")
            progress("making it from this host's apt sources instead")
            _from_packages(client, recipe, progress)
        progress(f"{recipe.tag} made in {time.monotonic() - started:.0f} s")
    return recipe.tag


def _present(client: docker.DockerClient, recipe: Recipe) -> bool:
    return bool(client.api.images(name=recipe.tag, quiet=True))


@contextmanager
def _build_lock(progress: Progress) -> Iterator[None]:
    folder = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    path = Path(folder, f"sandkeep-image-{os.getuid()}.lock")
    try:
        # In a shared folder, somebody else's link of that name must not decide what is opened.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
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


def _from_registry(client: docker.DockerClient, recipe: Recipe, progress: Progress) -> None:
    script = f"rm -rf {recipe.removed}"
    if recipe.packages:
        options = " ".join(f"'{option}'" for option in recipe.dpkg_options.split())
        prepare = f"printf '%s\\n' {options} >/etc/dpkg/dpkg.cfg.d/sandkeep && apt-get update"
        install = f"apt-get install -y --no-install-recommends {' '.join(recipe.packages)}"
        script = f"{prepare} && DEBIAN_FRONTEND=noninteractive {install} && {script}"
    settings = f"ENV {recipe.environment}\nLABEL sandkeep.recipe={recipe.digest}"
    dockerfile = io.BytesIO(f'FROM {recipe.registry_image}\nRUN {script}\n{settings}\nCMD ["sh"]\n'.encode())
    target = f"linux/{recipe.arch}"
    try:
        # The SDK pulls without any timeout, so whether the registry is there at all is asked first.
        _with_timeout(client, REGISTRY_SILENCE_S).inspect_distribution(recipe.registry_image)
        patient = _with_timeout(client, BUILD_SILENCE_S)
        _follow(patient.pull(recipe.registry_image, stream=True, decode=True, platform=target), progress)
        answer = patient.build(fileobj=dockerfile, tag=recipe.tag, platform=target, rm=True, forcerm=True, decode=True)
        _follow(answer, progress)
    except docker.errors.APIError as error:
        raise _NoImage(_last_line(error.explanation or str(error))) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _NoImage("the engine got no answer in time") from error


def _follow(answer: Iterable[dict[str, Any]], progress: Progress) -> None:
    """Reads what the engine says about its work to the end, and passes some of it on."""
    reported = time.monotonic()
    for message in answer:
        if "error" in message:
            raise _NoImage(_last_line(str(message["error"])))
        said = _last_line(str(message.get("stream") or message.get("status") or ""))
        if said and time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            progress(said)


def _from_packages(client: docker.DockerClient, recipe: Recipe, progress: Progress) -> None:
    tools = {"mmdebstrap": "mmdebstrap"} | ({"newuidmap": "uidmap"} if os.geteuid() else {})
    if missing := " ".join(package for tool, package in tools.items() if not shutil.which(tool)):
        raise ImageToolMissing(f"no registry image to make {recipe.tag} from; without one, apt-get install {missing}")
    # A tmpfs, as /tmp often is, may be too small for two copies of a root file system.
    temporary = os.environ.get("TMPDIR") or "/var/tmp"
    with tempfile.TemporaryDirectory(prefix="sandkeep-image-", dir=temporary) as name:
        folder = Path(name)
        folder.chmod(0o711)  # for mmdebstrap without root, which reads its files as another uid
        (folder / "host.sources").write_text(_apt_sources(recipe))
        # How this host reaches its sources: proxies, certificates, checks. mmdebstrap reads none of that itself.
        reach = ("Acquire::http", "Acquire::Check-", "Acquire::Retries")
        options = _apt("apt-config", "dump", "--no-empty", "--format", '%F "%v";%n')
        (folder / "host.conf").write_text("".join(f"{line}\n" for line in options if line.startswith(reach)))
        _mmdebstrap(recipe, folder, temporary, progress)
        _load(client, recipe, folder / "layer.tar", progress)


def _apt(*command: str) -> list[str]:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        said = _last_line(getattr(error, "stderr", "") or str(error))
        raise ImageBuildFailed(f"{command[0]}: {said}; repair apt, then try again") from error


def _apt_sources(recipe: Recipe) -> str:
    """This host's sources of the recipe's release and of no other origin, as apt itself reports them."""
    form = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(CODENAME)\t$(ORIGIN)\t$(ARCHITECTURE)\t$(SOURCESENTRY)"
    wanted = {recipe.codename + pocket for pocket in ("", "-updates", "-security")}
    stanzas = []
    for line in sorted(set(_apt("apt-get", "indextargets", "--format", form, "Created-By: Packages"))):
        uri, release, component, codename, origin, arch, entry = line.split("\t")
        # Ubuntu gives all its pockets one codename; only the source's own word tells them apart.
        settled = codename in wanted and not release.endswith(("-backports", "-proposed"))
        if settled and origin == ORIGINS[recipe.distribution] and arch == recipe.arch:
            suite = f"Types: deb\nURIs: {uri}\nSuites: {release}\nComponents: {component}\n"
            stanzas.append(suite + _signed_by(entry))
    if not stanzas:
        raise ImageBuildFailed(
            f"apt has no list of {ORIGINS[recipe.distribution]} {recipe.codename} for {recipe.arch}; "
            "run apt-get update (or add such a source), then try again"
        )
    return "\n".join(stanzas)


def _signed_by(entry: str) -> str:
    """The key of the source that apt calls `FILE:NUMBER` (stanza or line): the one thing apt does not report."""
    name, _, number = entry.rpartition(":")
    text = Path(name).read_text()
    if name.endswith(".sources"):
        bare = re.sub(r"(?m)^#.*\n?", "", text)
        stanza = "".join(re.split(r"\n\s*\n", bare.strip())[int(number) - 1 : int(number)])
        field = re.search(r"(?im)^signed-by:.*(\n[ \t].*)*", stanza)
        return f"{field[0]}\n" if field else ""
    option = re.search(r"\[.*?\bsigned-by=([^]\s]+)", text.splitlines()[int(number) - 1])
    return f"Signed-By: {option[1].replace(',', ' ')}\n" if option else ""


def _mmdebstrap(recipe: Recipe, folder: Path, temporary: str, progress: Progress) -> None:
    command = [
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        f"--variant={recipe.variant}",
        f"--architectures={recipe.arch}",
        *(f"--include={package}" for package in recipe.packages),
        f"--aptopt={folder / 'host.conf'}",
        *(f"--dpkgopt={option}" for option in recipe.dpkg_options.split()),
        "--customize-hook=rm -rf " + " ".join(f'"$1"{path}' for path in recipe.removed.split()),
        *(recipe.codename, f"{folder / 'layer.tar'}", f"{folder / 'host.sources'}"),
    ]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8", "TMPDIR": temporary}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(REPORT_EVERY_S)
            stages = re.findall(r"(?m)^I: (.*)", log.read_text(errors="replace"))
            progress(f"mmdebstrap: {stages[-1][:100] if stages else 'starting'}")
    finally:
        process.terminate()
        process.wait()
    if process.returncode:
        said = log.read_text(errors="replace")
        said = "".join(re.findall(r"(?m)^E: .*", said)[:1]) or _last_line(said)
        raise ImageBuildFailed(f"mmdebstrap: {said}; see whether apt-get update works on this host, then try again")


def _load(client: docker.DockerClient, recipe: Recipe, layer: Path, progress: Progress) -> None:
    """Imports a root file system as an image whose id depends on its content and its recipe alone."""
    with layer.open("rb") as file:
        diff_id = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    settings = {"Cmd": ["sh"], "Env": recipe.environment.split(), "Labels": {"sandkeep.recipe": recipe.digest}}
    root = {"diff_ids": [diff_id], "type": "layers"}
    config = {"architecture": recipe.arch, "config": settings, "created": CREATED, "os": "linux", "rootfs": root}
    image = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    name = f"{hashlib.sha256(image).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "Layers": [layer.name], "RepoTags": [recipe.tag]}]).encode()
    archive = layer.with_name("image.tar")
    with tarfile.open(archive, "w") as tar:
        for member, content in ((name, image), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        tar.add(layer, layer.name)
    try:
        with archive.open("rb") as file:
            _follow(_with_timeout(client, BUILD_SILENCE_S).load_image(file), progress)
        if not _present(client, recipe):
            raise _NoImage("it is not there afterwards")
    except (docker.errors.APIError, _NoImage) as error:
        raise ImageBuildFailed(f"the engine refused {recipe.tag}: {error}; look at its log and disk") from error


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()[:300]


def main() -> int:
    """Makes sure of the base image: its tag on stdout, progress on stderr, status 3 if a tool must be installed."""

    def say(line: str) -> None:
        print(f"image: {line}", file=sys.stderr, flush=True)

    try:
        with closing(docker.DockerClient.from_env()) as client:
            print(ensure_base(client, say))
    except docker.errors.DockerException as error:
        say(f"the Docker engine does not answer: {_last_line(str(error))}; run make setup")
        return 1
    except SandkeepError as error:
        say(str(error))
        return 3 if isinstance(error, ImageToolMissing) else error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
