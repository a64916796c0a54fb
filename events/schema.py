"""Event types and their names on disk.

An event is an immutable fact in the past tense: a frozen `msgspec.Struct` registered under a type name and a
version. A body is a msgpack map by field name, so a later version of this library may add fields with
defaults; it never changes or removes one of a released version. Another shape is another version, and then `upcast`
takes the place of the class of the old one: a pure function from a body of that version, as a dict, to one of the next.

Reading is tolerant of the future and strict about the present: a type or version this library does not know
becomes an `UnknownEvent` that keeps its bytes; a known one whose body does not fit raises `BadEvent`. Stored bytes are
never changed: an old body is brought forward each time it is read.
Everything here is pure and safe to call from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from sandkeep.events.errors import BadEvent, BadInput


class Event(msgspec.Struct, frozen=True):
    """Base of all events. Subclasses are frozen and registered with `event`."""


class UnknownEvent(Event, frozen=True):
    """An event written by a later version of the library; `data` is its body, byte for byte."""

    type: str
    version: int
    data: bytes


E = TypeVar("E", bound=Event)

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""From the fields of one version to those of the next. It may change what it is given."""

NOT_DECODED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are damaged or hostile: text may be no UTF-8, and nesting may have no end."""

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[tuple[str, int], msgspec.msgpack.Decoder[Event]] = {}
_names: dict[type[Event], tuple[str, int]] = {}
_upcasters: dict[tuple[str, int], Upcaster] = {}
_fields = msgspec.msgpack.Decoder(dict[str, Any])


def event(version: int) -> Callable[[type[E]], type[E]]:
    """Register the decorated class as `version` of the event type named like the class."""

    def register(cls: type[E]) -> type[E]:
        name = (cls.__name__, version)
        if name in _decoders:
            raise ValueError(f"event {name[0]} version {version} is registered twice")
        if name in _upcasters:
            raise ValueError(f"event {name[0]} version {version} is brought forward, so it needs no class")
        _decoders[name] = msgspec.msgpack.Decoder(cls)
        _names[cls] = name
        return cls

    return register


def upcast(type: str, from_version: int) -> Callable[[Upcaster], Upcaster]:
    """Bring bodies of `type` from `from_version` to the next version with the decorated function."""

    def register(function: Upcaster) -> Upcaster:
        name = (type, from_version)
        if name in _upcasters:
            raise ValueError(f"event {type} version {from_version} is brought forward twice")
        if name in _decoders:
            raise ValueError(f"event {type} version {from_version} has a class, so it is not brought forward")
        _upcasters[name] = function
        return function

    return register


def encode(event: Event) -> tuple[str, int, bytes]:
    """The type name, version and body of `event`, as they are stored.

    Raises `BadInput` for an event of a class that is not registered. Field types are not checked.
    """
    if isinstance(event, UnknownEvent):
        return event.type, event.version, event.data
    if type(event) not in _names:
        raise BadInput(f"{type(event).__name__} is no registered event type; decorate its class with @event(version=1)")
    name, version = _names[type(event)]
    return name, version, _encoder.encode(event)


def decode(name: str, version: int, data: bytes | memoryview | msgspec.Raw) -> Event:
    """The event stored under `name` and `version`.

    Raises `BadEvent` when the type is known and the body does not fit it.
    """
    decoder = _decoders.get((name, version))
    if decoder is None:
        return _brought_forward(name, version, data)
    try:
        return decoder.decode(data)
    except NOT_DECODED as error:
        raise BadEvent(f"{name} version {version} cannot be decoded: {error}; run 'sandkeep verify'") from error


def _brought_forward(name: str, version: int, data: bytes | memoryview | msgspec.Raw) -> Event:
    """The event of an older version as the oldest that has a class; an `UnknownEvent` if no chain leads there."""
    last = version
    while (name, last) in _upcasters:
        last += 1
    if (name, last) not in _decoders:
        return UnknownEvent(name, version, bytes(data))
    try:
        fields = _fields.decode(data)
        for step in range(version, last):
            fields = _upcasters[name, step](fields)
        return _decoders[name, last].decode(_encoder.encode(fields))
    except Exception as error:  # an upcaster may raise anything on a body that is not what its version was
        raise BadEvent(
            f"{name} version {version} cannot be brought to version {last}: {error!r}; run 'sandkeep verify'"
        ) from error


def upcasters() -> dict[tuple[str, int], Upcaster]:
    """Every upcaster, by type name and the version it begins at."""
    return dict(_upcasters)


def registered() -> dict[tuple[str, int], type[Event]]:
    """Every event type this library knows, by name and version."""
    return {name: cls for cls, name in _names.items()}
