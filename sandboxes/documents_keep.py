"""What verbs answer with about a keep as a whole: images, caches, networks, what is used, and whether all is well; see
`documents`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from sandkeep.sandboxes import caches
from sandkeep.sandboxes.text import moment

if TYPE_CHECKING:
    from sandkeep import projections
    from sandkeep.sandboxes import cache_store, monitor, stock


class Finding(msgspec.Struct, frozen=True):
    """What was found in an area. `advice` says what to do, if anything; with `act`, it should be done."""

    area: str
    what: str
    advice: str = ""
    act: bool = False


class MadeKeep(msgspec.Struct, frozen=True):
    """A new keep, and the version of its format."""

    keep: str
    id: str
    format: int


class Image(msgspec.Struct, frozen=True):
    """A version of an image that the engine has; `current` is the one that its name stands for, `stale` one that is too
    old. `made` is when it came to be here, null if nobody knows."""

    name: str
    version: str
    tag: str
    id: str
    size: int
    source: str
    current: bool
    stale: bool
    uses: int
    made: str | None
    used: str | None


class ExportedImage(Image, frozen=True):
    """An image, and the archive that it was written to."""

    file: str


class ImageCounts(msgspec.Struct, frozen=True):
    """What was asked of the images of a name; `hit_rate` is the share of tasks that found theirs in the engine."""

    name: str
    uses: int
    misses: int
    builds: int
    failures: int
    removed: int
    hit_rate: float | None


class Images(msgspec.Struct, frozen=True):
    """Our images that the engine has, and what was asked of each name."""

    images: list[Image]
    names: list[ImageCounts]


class PrunedImages(msgspec.Struct, frozen=True):
    """Images that were removed, or would be, and the bytes that all took before and after."""

    removed: list[Image]
    before: int
    after: int
    budget: int
    dry_run: bool


class Cache(msgspec.Struct, frozen=True):
    """A cache: how it is declared, which is null if it is not any more; what it takes, who has it, and its past."""

    name: str
    mode: str | None
    all_tasks: bool
    variable: str | None
    limit: int | None
    bytes: int
    files: int
    tasks: tuple[str, ...]
    uses: int
    used: str | None
    pruned: int
    pruned_bytes: int


class Network(msgspec.Struct, frozen=True):
    """What a task's sandbox may reach, what it offers to others, and how much there was of either answer."""

    network: str
    allow: list[str]
    private: list[str]
    services: list[str]
    offers: tuple[int, ...]
    allowed: int
    denied: int
    sent_bytes: int
    received_bytes: int


class Offers(msgspec.Struct, frozen=True):
    """The ports of a sandbox that other tasks may be given."""

    offers: tuple[int, ...]


class TaskLimits(msgspec.Struct, frozen=True):
    """What a task's sandbox may use, in bytes, processors and seconds."""

    task: str
    limits: dict[str, float]


class Answered(msgspec.Struct, frozen=True):
    """The answer to a sandbox that asked for more memory than its limit."""

    task: str
    extension: str
    answer: str
    checkpoint: str | None
    used: int
    wanted: int
    memory: int


class Waiting(msgspec.Struct, frozen=True):
    """A sandbox that asks for more memory."""

    id: str
    wanted: int


class Watched(msgspec.Struct, frozen=True):
    """A live sandbox, what it has been promised, and what it uses now; `memory` is null if nobody can tell."""

    task: str
    container: str | None
    promised: int
    extension: Waiting | None
    memory: int | None
    memory_limit: int | UnsetType = UNSET
    memory_peak: int | UnsetType = UNSET
    cpu_s: float | UnsetType = UNSET
    throttled_s: float | UnsetType = UNSET
    pids: int | UnsetType = UNSET
    pids_limit: int | UnsetType = UNSET
    oom_kills: int | UnsetType = UNSET
    guarded: bool | UnsetType = UNSET


class Top(msgspec.Struct, frozen=True):
    """What the live sandboxes use, and what of the budget has been promised."""

    budget: int
    promised: int
    sandboxes: list[Watched]


class Replayed(msgspec.Struct, frozen=True):
    """A replay of all events, `ok` if it came to what was stored `before`."""

    ok: bool
    events: int
    digest: str
    before: str | None
    duration_s: float


class Examined(msgspec.Struct, frozen=True):
    """What was found of the engine, the keep and this host, `ok` if nothing has to be done."""

    ok: bool
    findings: list[Finding]


class Did(msgspec.Struct, frozen=True):
    """Something that the steward did."""

    did: str


class Key(msgspec.Struct, frozen=True):
    """The key that whoever verifies bundles must have."""

    key: str


class Note(msgspec.Struct, frozen=True):
    """A signed note of what the log holds."""

    note: str


def image(found: stock.Image) -> Image:
    """The document of an image."""
    return Image(**image_fields(found))


def image_fields(found: stock.Image) -> dict[str, Any]:
    """The fields of an image's document."""
    same = ("name", "version", "tag", "id", "size", "source", "current", "stale", "uses")
    return {name: getattr(found, name) for name in same} | {
        "made": None if found.made_ns is None else moment(found.made_ns),
        "used": None if found.used_ns is None else moment(found.used_ns),
    }


def image_counts(found: projections.ImageCounts) -> ImageCounts:
    """The document of what was asked of an image's name."""
    return ImageCounts(**msgspec.structs.asdict(found), hit_rate=found.hit_rate)


def cache(found: cache_store.Listed) -> Cache:
    """The document of a cache."""
    declared, use = found.declared, found.use
    return Cache(
        name=found.name,
        mode=None if declared is None else caches.WRITE if declared.writable else caches.READ,
        all_tasks=declared is not None and declared.everybody,
        variable=None if declared is None else declared.variable,
        limit=None if declared is None else declared.size,
        bytes=found.content.bytes,
        files=found.content.files,
        tasks=found.tasks,
        uses=use.tasks,
        used=None if not use.used_ns else moment(use.used_ns),
        pruned=use.pruned,
        pruned_bytes=use.pruned_bytes,
    )


def top(found: Sequence[monitor.Watched], promised: int, budget: int) -> Top:
    """The document of what the live sandboxes use."""
    return Top(budget, promised, [_watched(each) for each in found])


def _watched(found: monitor.Watched) -> Watched:
    use, now = found.use, found.sample
    extension = None if use.extension is None else Waiting(use.extension.id, use.extension.wanted_bytes)
    if now is None:
        return Watched(use.task, use.container, use.promised, extension, None)
    return Watched(
        use.task,
        use.container,
        use.promised,
        extension,
        now.memory_bytes,
        memory_limit=now.memory_limit,
        memory_peak=max(now.memory_bytes, use.measured.memory_bytes if use.measured is not None else 0),
        cpu_s=round(now.cpu_ns / 1e9, 3),
        throttled_s=round(now.throttled_ns / 1e9, 3),
        pids=now.pids,
        pids_limit=now.pids_limit,
        oom_kills=now.oom_kills,
        guarded=now.guarded,
    )
