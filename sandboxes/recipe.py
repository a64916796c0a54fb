"""What our own images are made of, as data.

A `Recipe` is all that decides what an image will hold, so its digest tells whether an image is what is wanted: it
stands in the image as the label `sandkeep.recipe`. A changed recipe has another digest, and images of the old one are
not used for it. What a recipe cannot fix is how far the distribution's packages have come; see `image` for versions of
one recipe.

Names: an image of the name `base` is `sandkeep/base:VERSION` in the engine, where the version is the beginning of its
id, so that a task that was created with it always gets the very same one. Everything here is pure, but that
`base_recipe` and the others look at the host once.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
from blake3 import blake3

from sandkeep.events import BadInput

RECIPE = "sandkeep.recipe"
"""The label of an image that holds its recipe's digest."""

REPOSITORY = "sandkeep/"
"""What the engine's names of our images begin with. Nobody's registry supplies these."""

ORIGINS = {"debian": "Debian", "ubuntu": "Ubuntu"}
REGISTRY_IMAGES = {"debian": "debian:{}-slim", "ubuntu": "ubuntu:{}"}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_TAG = re.compile(rf"{REPOSITORY}({_NAME.pattern}):([0-9a-f]{{12}})")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_LONGEST = 64
_MAX_PACKAGES = 500


class File(msgspec.Struct, frozen=True):
    """A file that a recipe adds at the absolute `path`, or, with `target`, a symbolic link."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    target: str = ""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is made of. All of it counts towards the digest, so no path or address of a host belongs here.

    Without a `registry_image` it is made from packages alone.
    """

    name: str = "base"
    distribution: str
    codename: str
    arch: str
    registry_image: str
    packages: tuple[str, ...] = ("git", "python3")
    files: tuple[File, ...] = ()
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
    version: int = 3

    @property
    def digest(self) -> str:
        """BLAKE3 of all of it, in hex."""
        return blake3(msgspec.json.encode(self, order="deterministic")).hexdigest()


def check_name(name: str) -> str:
    """The name of an image of ours. Raises `BadInput`."""
    if len(name) > _LONGEST or not _NAME.fullmatch(name):
        raise BadInput(
            f"{name[:_LONGEST]!r} is no image's name; use up to {_LONGEST} small letters, digits and single . _ -"
        )
    return name


def check_packages(packages: Sequence[str]) -> tuple[str, ...]:
    """The names of Debian packages, each once, in order. Raises `BadInput`."""
    for package in packages:
        if len(package) > _LONGEST or not _PACKAGE.fullmatch(package):
            raise BadInput(f"{package[:_LONGEST]!r} is no name of a Debian package; 'apt-cache search' finds them")
    if len(set(packages)) > _MAX_PACKAGES:
        raise BadInput(f"{len(set(packages))} packages are too many; name {_MAX_PACKAGES} at most")
    return tuple(sorted(set(packages)))


def tag_of(name: str, image_id: str) -> str:
    """What the engine calls an image of ours with this id."""
    return f"{REPOSITORY}{name}:{image_id.removeprefix('sha256:')[:12]}"


def parse_tag(tag: str) -> tuple[str, str] | None:
    """Name and version of an image of ours; None if that is not how any of them is called."""
    found = _TAG.fullmatch(tag)
    return None if found is None or len(found[1]) > _LONGEST else (found[1], found[2])


def base_recipe() -> Recipe:
    """A shell, git and Python, of this host's own release, since its own apt sources may have to provide it."""
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


def developer_recipe() -> Recipe:
    """The base, and what builds and installs most projects: compilers, pip and venv, node and npm."""
    more = ("build-essential", "ca-certificates", "curl", "nodejs", "npm", "python3-pip", "python3-venv", "ripgrep")
    return with_packages("developer", more)


def busybox_recipe() -> Recipe:
    """Two megabytes: a shell and the usual small tools in one static program. No git, no Python."""
    tools = [
        "awk",
        "base64",
        "basename",
        "cat",
        "chmod",
        "chown",
        "cp",
        "cut",
        "date",
        "dd",
        "df",
        "dirname",
        "du",
        "echo",
        "env",
        "expr",
        "false",
        "find",
        "grep",
        "gzip",
        "head",
        "hostname",
        "id",
        "kill",
        "ln",
        "ls",
        "md5sum",
        "mkdir",
        "mkfifo",
        "mktemp",
        "mount",
        "mv",
        "nc",
        "nohup",
        "od",
        "printf",
        "ps",
        "pwd",
        "readlink",
        "rm",
        "rmdir",
        "sed",
        "seq",
        "setsid",
        "sh",
        "sha256sum",
        "sleep",
        "sort",
        "stat",
        "stty",
        "tail",
        "tar",
        "tee",
        "test",
        "timeout",
        "touch",
        "tr",
        "true",
        "tty",
        "uname",
        "uniq",
        "vi",
        "wc",
        "wget",
        "which",
        "whoami",
        "xargs",
        "yes",
    ]
    return msgspec.structs.replace(
        base_recipe(),
        name="busybox",
        registry_image="",
        variant="extract",
        packages=("busybox-static",),
        files=tuple(File(f"/bin/{tool}", target="busybox") for tool in tools),
    )


def with_packages(name: str, packages: Sequence[str]) -> Recipe:
    """The base with more packages. Raises `BadInput`."""
    base = base_recipe()
    return msgspec.structs.replace(base, name=check_name(name), packages=check_packages((*base.packages, *packages)))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "base": base_recipe,
    "developer": developer_recipe,
    "busybox": busybox_recipe,
}
"""The images that can be made by name. Nothing else may be called like them."""
