"""The images of ours that an engine has: what there is, how old it is, what it takes on disk, what may go."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import docker
import msgspec

from sandkeep.events import BadInput
from sandkeep.projections import ImageVersion, TaskState
from sandkeep.sandboxes import image
from sandkeep.sandboxes.errors import KeepFormat
from sandkeep.sandboxes.recipe import RECIPE, RECIPES, REPOSITORY, parse_tag

LIVE = (TaskState.CREATED, TaskState.ACTIVE, TaskState.PAUSED)
"""The states in which a task may need its image again."""

MAX_AGE_DAYS = 30.0
"""How old an image of packages may be, unless `keep.toml` says otherwise."""

_DAY_NS = 86_400 * 10**9


class Image(msgspec.Struct, frozen=True):
    """A version of an image that the engine has; `current` is the one that its name stands for.

    `made_ns` is when this keep, or else the engine, came to have it, None if neither knows; `stale` means that it is of
    a recipe and too old, so that its packages may lack what was mended since. `layers` are digests, from the lowest.
    """

    name: str
    version: str
    tag: str
    id: str
    size: int
    source: str
    current: bool
    stale: bool
    made_ns: int | None
    used_ns: int | None
    uses: int
    layers: tuple[str, ...]


class Pruned(msgspec.Struct, frozen=True):
    """What was removed, or would be, and what images took on disk before and after. More than `budget` is left if the
    rest is in use."""

    removed: tuple[Image, ...]
    before: int
    after: int
    budget: int


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    max_age_days: float = MAX_AGE_DAYS


class _Keep(msgspec.Struct, frozen=True):
    images: _Settings = _Settings()


def max_age_ns(keep: Path) -> int:
    """How old an image of packages may be: `max_age_days` of the table `images` in keep.toml. Raises `KeepFormat`."""
    try:
        days = msgspec.convert(tomllib.loads((keep / "keep.toml").read_text()), type=_Keep).images.max_age_days
        if not 0 <= days <= 36500:
            raise ValueError("max_age_days is from 0 to 36500")
    except (OSError, ValueError) as error:  # msgspec's and tomllib's errors are ValueErrors
        raise KeepFormat(f"{keep / 'keep.toml'} cannot be read: {error}; mend it") from error
    return int(days * _DAY_NS)


def take(client: docker.DockerClient, known: Iterable[ImageVersion], max_age: int) -> list[Image]:
    """The images of ours that an engine has, by name, the newest first."""
    versions = {each.tag: each for each in known}
    made = {each.name: each for each in sorted(versions.values(), key=lambda each: each.position) if each.position}
    wanted = {name: recipe().digest for name, recipe in RECIPES.items()}
    found: list[tuple[int, bool, Image]] = []
    for each in client.api.images(name=f"{REPOSITORY}*"):
        details = image.inspect(client, each["Id"])
        tagged = _time_ns(str((details.get("Metadata") or {}).get("LastTagTime", "")))
        digest = (each["Labels"] or {}).get(RECIPE)
        for tag in image.tags(each):
            if (parsed := parse_tag(tag)) is None:
                continue
            name, version = parsed
            mine = versions.get(tag) or ImageVersion(name, tag)
            made_ns = mine.made_ns or tagged
            stale = digest is not None and made_ns is not None and is_stale(made_ns, max_age)
            current = digest == wanted[name] if name in wanted else name in made and made[name].tag == tag
            entry = Image(
                name=name,
                version=version,
                tag=tag,
                id=each["Id"],
                size=each["Size"],
                source=mine.source,
                current=current,
                stale=stale,
                made_ns=made_ns,
                used_ns=mine.used_ns or None,
                uses=mine.uses,
                layers=tuple(details["RootFS"].get("Layers") or ()),
            )
            found.append((tagged or 0, name in wanted, entry))
    found.sort(key=lambda item: (item[2].name, -item[0], item[2].tag))
    images, named = [], set()
    for _, of_recipe, entry in found:
        # Of several versions of one recipe, the engine's newest counts; see `image.find`.
        current = entry.current and not (of_recipe and entry.name in named)
        if current:
            named.add(entry.name)
        images.append(msgspec.structs.replace(entry, current=current))
    return images


def is_stale(made_ns: int, max_age: int) -> bool:
    """Whether what was made then is too old by now."""
    return time.time_ns() - made_ns > max_age


def disk(images: Sequence[Image]) -> int:
    """What images take together. One that was built on another shares all of that one's layers."""
    distinct = {each.id: each for each in images}.values()
    total = 0
    for each in distinct:
        shared = [
            other.size
            for other in distinct
            if other is not each and each.layers[: len(other.layers)] == other.layers and _before(other, each)
        ]
        total += each.size - max(shared, default=0)
    return total


def choose(images: Sequence[Image], budget: int, needed: Callable[[Image], bool]) -> list[Image]:
    """What has to go so that the rest takes `budget` bytes at most, in the order in which it goes: what was not used
    for longest first, but nothing that is needed, and nothing whose removal would free nothing."""
    left, chosen = list(images), []
    while (total := disk(left)) > budget:
        free = [
            each
            for each in left
            if not needed(each) and disk([other for other in left if other.tag != each.tag]) < total
        ]
        if not free:
            break
        first = min(free, key=lambda each: (max(each.used_ns or 0, each.made_ns or 0), each.tag))
        left.remove(first)
        chosen.append(first)
    return chosen


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that must not exist, and does not afterwards if the block fails. Raises `BadInput`."""
    try:
        file = path.open("xb")
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); name a file that does not exist yet") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _before(one: Image, other: Image) -> bool:
    return (len(one.layers), one.id) < (len(other.layers), other.id)


def _time_ns(text: str) -> int | None:
    """An engine's time; None for one that it does not know, which it calls the year 1."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return int(found.timestamp() * 10**9) if found.year > 1 else None
