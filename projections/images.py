"""The images that a keep has made or used: their versions, and how often a task found the one it asked for.

Only images of ours are followed, which are called `sandkeep/NAME:VERSION`. They are the engine's, and other keeps may
use, replace or remove them: what this tells is what happened through this keep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import final

import msgspec

from sandkeep.events import Record
from sandkeep.events import catalogue as ev
from sandkeep.projections.projection import State, StateView
from sandkeep.projections.registry import STREAM as TASK_STREAM

STREAM = "image/"
"""What the stream of an image begins with; its name follows."""

_CREATED = ev.TaskCreated.__name__
_OURS = re.compile(r"sandkeep/([a-z0-9._-]{1,64}):[0-9a-f]{12}")


class ImageVersion(msgspec.Struct, frozen=True):
    """A version of an image: what the engine calls it, its id, and what came of it.

    One that was used but not made through this keep has no id. `position` is that of the event that made it last;
    `removed` that of its removal, or 0.
    """

    name: str
    tag: str
    id: str = ""
    size: int = 0
    source: str = ""
    origin: str = ""
    recipe: str = ""
    took_ns: int = 0
    position: int = 0
    made_ns: int = 0
    uses: int = 0
    used_ns: int = 0
    removed: int = 0


class ImageCounts(msgspec.Struct, frozen=True):
    """What was asked of the images of a name. `uses` counts the tasks that were created with one, and `misses` those of
    them that had to wait until it was made."""

    name: str
    uses: int = 0
    misses: int = 0
    builds: int = 0
    failures: int = 0
    removed: int = 0

    @property
    def hit_rate(self) -> float | None:
        """The share of tasks that found their image in the engine; None if there were none."""
        return (self.uses - min(self.misses, self.uses)) / self.uses if self.uses else None


class ImagePending(msgspec.Struct, frozen=True):
    """An intent whose outcome is not known yet. `tag` is set for a removal."""

    intent: str
    name: str
    source: str = ""
    reference: str = ""
    wanted: bool = False
    tag: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode_version = msgspec.msgpack.Decoder(ImageVersion).decode
_decode_counts = msgspec.msgpack.Decoder(ImageCounts).decode
_decode_pending = msgspec.msgpack.Decoder(ImagePending).decode


@final
class Images:
    """The projection. Keys, each behind `images/`: `version/<name>/<tag>`, `name/<name>`, `pending/<intent>`."""

    name = "images"
    version = 1

    def apply_all(self, state: State, records: Iterable[Record]) -> None:
        """As `apply` for each of `records`."""
        used: dict[str, tuple[int, int]] = {}
        for record in records:
            if record.type == _CREATED:
                event = record.event
                if isinstance(event, ev.TaskCreated) and record.stream.startswith(TASK_STREAM):
                    used[event.image] = (used.get(event.image, (0, 0))[0] + 1, record.time_ns)
            elif record.stream.startswith(STREAM):
                _count_uses(state, used)
                _apply(state, record, record.stream.removeprefix(STREAM))
        _count_uses(state, used)

    def apply(self, state: State, record: Record) -> None:
        self.apply_all(state, (record,))


def _count_uses(state: State, used: dict[str, tuple[int, int]]) -> None:
    for tag, (uses, time_ns) in used.items():
        if found := _OURS.fullmatch(tag):
            name = found[1]
            known = find(state, tag) or ImageVersion(name, tag)
            _put(state, msgspec.structs.replace(known, uses=known.uses + uses, used_ns=time_ns))
            _add(state, name, uses=uses)
    used.clear()


def _apply(state: State, record: Record, name: str) -> None:
    match record.event:
        case ev.ImageRequested(intent, source, reference, wanted):
            state.put(_key("pending", intent), _encode(ImagePending(intent, name, source, reference, wanted)))
        case ev.ImageRemovalRequested(intent, tag):
            state.put(_key("pending", intent), _encode(ImagePending(intent, name, tag=tag)))
        case ev.ImageBuilt() as event if _is_of(name, event.tag):
            asked = _settle(state, event.intent)
            known = find(state, event.tag) or ImageVersion(name, event.tag)
            made = msgspec.structs.replace(
                known,
                id=event.id,
                size=event.size,
                source="" if asked is None else asked.source,
                origin=event.origin,
                recipe=event.recipe,
                took_ns=event.took_ns,
                position=record.position,
                made_ns=record.time_ns,
                removed=0,
            )
            _put(state, made)
            _add(state, name, builds=1, misses=int(asked is not None and asked.wanted))
        case ev.ImageRemoved() as event if _is_of(name, event.tag):
            _settle(state, event.intent)
            known = find(state, event.tag) or ImageVersion(name, event.tag)
            _put(state, msgspec.structs.replace(known, removed=record.position))
            _add(state, name, removed=1)
        case ev.ImageFailed() as event:
            _settle(state, event.intent)
            _add(state, name, failures=1)
        case ev.ImageRemovalFailed() as event:
            _settle(state, event.intent)


def find(state: StateView, tag: str) -> ImageVersion | None:
    """What is known of the image that is called `tag`."""
    found = _OURS.fullmatch(tag)
    value = None if found is None else state.get(_key("version", f"{found[1]}/{tag}"))
    return None if value is None else _decode_version(value)


def versions(state: StateView, name: str | None = None) -> Iterator[ImageVersion]:
    """All versions there ever were of an image, or of all."""
    for _, value in state.scan(_key("version", "" if name is None else f"{name}/")):
        yield _decode_version(value)


def current(state: StateView, name: str) -> ImageVersion | None:
    """The version of an image that this keep made last, unless it was removed."""
    made = [each for each in versions(state, name) if each.position and not each.removed]
    return max(made, key=lambda each: each.position, default=None)


def counts(state: StateView) -> Iterator[ImageCounts]:
    """What was asked of the images, by name."""
    for _, value in state.scan(_key("name", "")):
        yield _decode_counts(value)


def pending(state: StateView) -> Iterator[ImagePending]:
    """What is under way, or was when a process died."""
    for _, value in state.scan(_key("pending", "")):
        yield _decode_pending(value)


def is_pending(state: StateView, intent: str) -> bool:
    """Whether nobody has said yet what came of an intent."""
    return state.get(_key("pending", intent)) is not None


def _is_of(name: str, tag: str) -> bool:
    found = _OURS.fullmatch(tag)
    return found is not None and found[1] == name


def _settle(state: State, intent: str) -> ImagePending | None:
    key = _key("pending", intent)
    value = state.get(key)
    state.delete(key)
    return None if value is None else _decode_pending(value)


def _put(state: State, version: ImageVersion) -> None:
    state.put(_key("version", f"{version.name}/{version.tag}"), _encode(version))


def _add(state: State, name: str, **more: int) -> None:
    key = _key("name", name)
    value = state.get(key)
    known = ImageCounts(name) if value is None else _decode_counts(value)
    summed = {field: getattr(known, field) + number for field, number in more.items()}
    state.put(key, _encode(msgspec.structs.replace(known, **summed)))


def _key(kind: str, rest: str) -> bytes:
    return f"images/{kind}/{rest}".encode()
