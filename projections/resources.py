"""What the sandboxes of all tasks may use, have used, and have been promised.

A sandbox's memory counts as *promised* from the request to start it until it is known to be gone; while its limit is
being changed, the larger of both counts. So a decision that sees the head never promises the same memory twice.

The most that each sandbox used is kept when it ends, by image and by tag, for those that come: the last 64 of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import msgspec
from blake3 import blake3

from sandkeep.events import Event, Record
from sandkeep.events import catalogue as ev
from sandkeep.projections.projection import State, StateView

KEPT_PEAKS = 64
"""How many sandboxes of an image, or of a tag, are remembered."""

_STREAM = "task/"
_DISK = "disk"  # of the task, and not of a sandbox
_USE = "resources/task/"
_LIVE = b"resources/live/"


class Near(msgspec.Struct, frozen=True, array_like=True):
    """A limit that the sandbox has neared, and when it was last said."""

    resource: str
    percent: int
    time_ns: int


class Extension(msgspec.Struct, frozen=True, array_like=True):
    """More memory that a sandbox needs. `granted` is what it was given, `denied` why not; neither, while it is open."""

    id: str
    container: str
    used_bytes: int
    limit_bytes: int
    wanted_bytes: int
    answer_by: ev.Lease
    time_ns: int
    prepared: bool = False
    checkpoint: str | None = None
    granted: int | None = None
    denied: str | None = None
    stop: bool = False

    @property
    def open(self) -> bool:
        """Whether it waits for an answer."""
        return self.granted is None and self.denied is None


class Use(msgspec.Struct, frozen=True, array_like=True):
    """The resources of one task. `asked` are limits of its own; `limits` those of its sandbox, None if none lives.
    `image` and `tags` are those that its sandbox was started with.

    `changing` is what `limits` are about to be. Of its sandboxes, the living one and those before, `memory_bytes` and
    `pids` are the most that was seen, and the others sums of what was measured.
    """

    task: str
    image: str = ""
    tags: tuple[str, ...] = ()
    asked: ev.Limits | None = None
    intent: str = ""
    container: str | None = None
    limits: ev.Limits | None = None
    change: str = ""
    changing: ev.Limits | None = None
    near: tuple[Near, ...] = ()
    extension: Extension | None = None
    memory_bytes: int = 0
    pids: int = 0
    measured: ev.SandboxMeasured | None = None
    cpu_ns: int = 0
    throttled_ns: int = 0
    oom_kills: int = 0

    @property
    def promised(self) -> int:
        """The memory that its sandbox has been promised."""
        if self.limits is None:
            return 0
        granted = 0 if self.extension is None else (self.extension.granted or 0) + self.limits.swap_bytes
        return max(_memory(self.limits), _memory(self.changing or self.limits), granted)

    @property
    def live(self) -> bool:
        """Whether there is a sandbox, or one was asked for, or somebody has to see to what it left open."""
        return self.limits is not None or self.extension is not None

    def neared(self, resource: str) -> Near | None:
        """How near its sandbox is to the limit of a resource, as far as that was said."""
        return next((each for each in self.near if each.resource == resource), None)


def _memory(limits: ev.Limits) -> int:
    return limits.memory_bytes + limits.swap_bytes


def evolve(use: Use | None, record: Record, event: Event) -> Use | None:
    """The resources after `event`; None while there is nothing to say of them. Total over every history."""
    if use is None:
        if not isinstance(event, ev.TaskCreated | ev.SandboxRequested | ev.LimitsRequested):
            return None
        use = Use(record.stream.removeprefix(_STREAM))
    replace = msgspec.structs.replace
    match event:
        case ev.TaskCreated():  # that of a million tasks says nothing, and costs nothing here
            return None if event.limits is None else replace(use, asked=event.limits)
        case ev.SandboxRequested():
            begun = replace(_ended(use), intent=event.intent, limits=event.limits)
            return replace(begun, image=event.image, tags=event.tags)
        case ev.SandboxStarted() if event.intent == use.intent:
            return replace(use, container=event.container)
        case ev.SandboxFailed() if event.intent == use.intent:
            return _ended(use)
        case ev.SandboxLost() | ev.SandboxRemoved() if event.container == use.container:
            return _ended(use)
        case ev.SandboxStopped() | ev.TaskCleaned():
            return _ended(use)
        case ev.LimitsRequested():
            return replace(use, change=event.intent, changing=event.limits)
        case ev.LimitsSet() if event.intent == use.change:
            limits = None if use.limits is None else use.changing
            return replace(use, asked=use.changing, limits=limits, change="", changing=None, near=())
        case ev.LimitsFailed() if event.intent == use.change:
            return replace(use, change="", changing=None)
        case ev.LimitNeared() if event.resource == _DISK or event.container == use.container:
            near = Near(event.resource, event.percent, record.time_ns)
            return replace(use, near=(*_others(use, event.resource), near))
        case ev.LimitEased() if event.resource == _DISK or event.container == use.container:
            return replace(use, near=_others(use, event.resource))
        case ev.SandboxMeasured() if event.container == use.container:
            most = max(use.memory_bytes, event.memory_bytes), max(use.pids, event.pids)
            return replace(use, measured=event, memory_bytes=most[0], pids=most[1])
        case _:
            return _extended(use, record, event)


def _extended(use: Use, record: Record, event: Event) -> Use:
    replace = msgspec.structs.replace
    if isinstance(event, ev.ExtensionRequested) and event.container == use.container:
        numbers = (event.used_bytes, event.limit_bytes, event.wanted_bytes)
        found = Extension(event.extension, event.container, *numbers, event.answer_by, record.time_ns)
        return replace(use, extension=found)
    extension = use.extension
    if extension is None or getattr(event, "extension", None) != extension.id:
        return use
    match event:
        case ev.ExtensionPrepared():
            return replace(use, extension=replace(extension, prepared=True, checkpoint=event.checkpoint))
        case ev.ExtensionGranted() if extension.open:
            return replace(use, extension=replace(extension, granted=event.memory_bytes))
        case ev.ExtensionDenied() if extension.open:
            return replace(use, extension=replace(extension, denied=event.reason, stop=event.stop))
        case ev.ExtensionEnded():
            return replace(use, extension=None)
    return use


def _others(use: Use, resource: str) -> tuple[Near, ...]:
    return tuple(each for each in use.near if each.resource != resource)


def _ended(use: Use) -> Use:
    """No sandbox lives."""
    found = use.measured or ev.SandboxMeasured("", 0, 0, 0, 0, 0)
    return msgspec.structs.replace(
        use,
        intent="",
        container=None,
        limits=None,
        near=tuple(each for each in use.near if each.resource == _DISK),
        measured=None,
        cpu_ns=_sum(use.cpu_ns, found.cpu_ns),
        throttled_ns=_sum(use.throttled_ns, found.throttled_ns),
        oom_kills=_sum(use.oom_kills, found.oom_kills),
    )


def _sum(one: int, other: int) -> int:
    return min(one + other, 2**63 - 1)  # what msgpack can hold, whatever the events claim


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Use).decode
_encode_peaks = msgspec.msgpack.Encoder().encode
_decode_peaks = msgspec.msgpack.Decoder(tuple[int, ...]).decode


@final
class Resources:
    """The projection of all resources.

    Keys: `resources/task/<id>` holds the `Use`, `resources/live/<id>` is there while the task has a sandbox or an open
    extension, `resources/peaks/<kind>/<digest>` holds what sandboxes of an image or a tag have used.
    """

    name = "resources"
    version = 1

    def apply(self, state: State, record: Record) -> None:
        if record.type not in _TYPES or not record.stream.startswith(_STREAM):
            return
        if record.type == _CREATED and memoryview(record.data)[-len(_NO_LIMITS) :] == _NO_LIMITS:
            return  # as most tasks are, which would cost a decoding each
        key = record.stream.removeprefix(_STREAM)
        before = find(state, key)
        after = evolve(before, record, record.event)
        if after is None or after is before:
            return
        state.put((_USE + key).encode(), _encode(after))
        was = before is not None and before.live
        if after.live and not was:
            state.put(_LIVE + key.encode(), b"")
        elif was and not after.live:
            state.delete(_LIVE + key.encode())
        if before is not None and before.measured is not None and after.measured is None:
            for kind, name in (("image", before.image), *(("tag", tag) for tag in before.tags)):
                peaks = (*peaks_of(state, kind, name), before.measured.memory_bytes)[-KEPT_PEAKS:]
                state.put(_peaks_key(kind, name), _encode_peaks(peaks))


_CREATED = ev.TaskCreated.__name__
_NO_LIMITS = msgspec.msgpack.encode({"limits": None})[1:]
"""How the body ends of a task that was given no limits of its own."""

_TYPES = {
    cls.__name__
    for cls in (
        ev.TaskCreated,
        ev.SandboxRequested,
        ev.SandboxStarted,
        ev.SandboxFailed,
        ev.SandboxLost,
        ev.SandboxRemoved,
        ev.SandboxStopped,
        ev.SandboxMeasured,
        ev.TaskCleaned,
        ev.LimitsRequested,
        ev.LimitsSet,
        ev.LimitsFailed,
        ev.LimitNeared,
        ev.LimitEased,
        ev.ExtensionRequested,
        ev.ExtensionPrepared,
        ev.ExtensionGranted,
        ev.ExtensionDenied,
        ev.ExtensionEnded,
    )
}
"""Those that change anything: decoding the others would cost more than the rest."""


def find(state: StateView, task: str) -> Use | None:
    """The resources of a task, if there is one."""
    value = state.get((_USE + task).encode())
    return None if value is None else _decode(value)


def live(state: StateView) -> Iterator[Use]:
    """The tasks that have a sandbox or an open extension, by id."""
    for key, _ in state.scan(_LIVE):
        found = find(state, key.removeprefix(_LIVE).decode())
        if found is not None:
            yield found


def peaks_of(state: StateView, kind: str, name: str) -> tuple[int, ...]:
    """The most memory that each of the last sandboxes of a `kind`, "image" or "tag", has used, oldest first."""
    value = state.get(_peaks_key(kind, name))
    return () if value is None else _decode_peaks(value)


def _peaks_key(kind: str, name: str) -> bytes:
    # A digest, because LMDB's keys are short, and an image may be called anything.
    return f"resources/peaks/{kind}/{blake3(name.encode()).hexdigest()[:32]}".encode()
