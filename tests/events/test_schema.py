from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from sandkeep.events import (
    BadEvent,
    BadInput,
    Event,
    LogDamaged,
    SandkeepError,
    UnknownEvent,
    errors,
    event,
    schema,
    upcast,
)
from sandkeep.events import catalogue as ev


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test register types that no other test sees."""
    monkeypatch.setattr(schema, "_decoders", dict(schema._decoders))
    monkeypatch.setattr(schema, "_names", dict(schema._names))
    monkeypatch.setattr(schema, "_upcasters", dict(schema._upcasters))


def defined(name: str, field: str, kind: type) -> type[Event]:
    return cast(type[Event], msgspec.defstruct(name, [(field, kind)], bases=(Event,), frozen=True))


def body(**fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


def test_an_event_is_stored_as_a_map_under_its_class_name_and_version() -> None:
    name, version, data = schema.encode(ev.TaskFailed(reason="no"))
    assert (name, version, msgspec.msgpack.decode(data)) == ("TaskFailed", 1, {"reason": "no"})


@pytest.mark.usefixtures("registry")
def test_each_version_of_a_type_has_a_class_of_its_own() -> None:
    first, second = event(version=1)(defined("Moved", "to", str)), event(version=2)(defined("Moved", "to", int))
    for version, cls, fields in ((1, first, body(to="a")), (2, second, body(to=2))):
        found = schema.decode("Moved", version, fields)
        assert type(found) is cls is schema.registered()["Moved", version]
        assert schema.encode(found) == ("Moved", version, fields)


@pytest.mark.usefixtures("registry")
def test_the_same_name_and_version_cannot_be_registered_twice() -> None:
    again = defined("TaskFailed", "reason", str)
    with pytest.raises(ValueError, match="TaskFailed version 1 is registered twice"):
        event(version=1)(again)
    assert schema.registered()["TaskFailed", 1] is ev.TaskFailed


@pytest.mark.parametrize(("name", "version"), [("Teleported", 1), ("TaskFailed", 2)], ids=["type", "version"])
def test_what_a_later_library_wrote_keeps_its_bytes(name: str, version: int) -> None:
    data = body(reason="x", more=[1, None])
    found = schema.decode(name, version, data)
    assert found == UnknownEvent(name, version, data)
    assert schema.encode(found) == (name, version, data)


@pytest.mark.parametrize(
    "data", [body(), body(reason=1), body(reason=None), b"", b"\xc1", b"\x90", body(reason="x") + b"\x00"], ids=repr
)
def test_a_known_type_with_a_body_that_does_not_fit_is_a_located_error(data: bytes) -> None:
    with pytest.raises(BadEvent, match="TaskFailed version 1 cannot be decoded") as caught:
        schema.decode("TaskFailed", 1, data)
    assert isinstance(caught.value, LogDamaged)


def test_fields_of_the_future_are_ignored_and_missing_ones_take_their_default() -> None:
    assert schema.decode("TaskFailed", 1, body(reason="x", since=3)) == ev.TaskFailed(reason="x")
    stored = body(checkpoint="c", digest="d", files=1, bytes=2, label="l")
    assert schema.decode("CheckpointCreated", 1, stored) == ev.CheckpointCreated("c", "d", 1, 2, "l", torn=())


def test_a_class_that_is_not_registered_cannot_be_stored() -> None:
    class Loose(Event, frozen=True):
        pass

    with pytest.raises(BadInput, match="Loose is no registered event type"):
        schema.encode(Loose())


def test_events_cannot_be_changed() -> None:
    fact = ev.TaskFailed(reason="x")
    with pytest.raises(AttributeError):
        fact.reason = "y"  # type: ignore[misc]
    assert fact.reason == "x"


def test_every_error_has_a_code_of_its_own_and_an_exit_status() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SandkeepError)]
    assert len({kind.code for kind in kinds}) == len(kinds) > 10
    assert {kind.exit_status for kind in kinds if issubclass(kind, BadInput)} == {2}
    assert {kind.exit_status for kind in kinds if not issubclass(kind, BadInput)} == {1}


@pytest.fixture
def moved(registry: None) -> type[Event]:
    """A type that was Moved(to: str), then Moved(to: list), and is now Moved(path: str, steps: int)."""

    @upcast("Moved", from_version=1)
    def split(fields: dict[str, Any]) -> dict[str, Any]:
        return {"to": fields["to"].split("/")}

    @upcast("Moved", from_version=2)
    def join(fields: dict[str, Any]) -> dict[str, Any]:
        return {"path": "/".join(fields["to"]), "steps": len(fields["to"])}

    cls = msgspec.defstruct("Moved", [("path", str), ("steps", int)], bases=(Event,), frozen=True)
    return event(version=3)(cast(type[Event], cls))


def test_old_versions_are_brought_to_the_present_one(moved: type[Event]) -> None:
    now = msgspec.convert({"path": "a/b", "steps": 2}, moved)
    for version, data in ((1, body(to="a/b")), (2, body(to=["a", "b"])), (3, body(path="a/b", steps=2))):
        assert schema.decode("Moved", version, data) == now
    assert schema.encode(now) == ("Moved", 3, body(path="a/b", steps=2))
    assert set(schema.upcasters()) >= {("Moved", 1), ("Moved", 2)}


def test_versions_outside_the_chain_stay_unknown(moved: type[Event]) -> None:
    for version in (0, 4):
        assert schema.decode("Moved", version, b"x") == UnknownEvent("Moved", version, b"x")


@pytest.mark.usefixtures("registry")
def test_a_chain_that_leads_nowhere_keeps_the_bytes() -> None:
    upcast("Lost", from_version=1)(lambda fields: fields)
    assert schema.decode("Lost", 1, body(a=1)) == UnknownEvent("Lost", 1, body(a=1))


@pytest.mark.parametrize("data", [body(), body(to=1), body(to=None), b"", b"\xc1", b"\x90"], ids=repr)
def test_an_old_body_that_does_not_fit_is_a_located_error(moved: type[Event], data: bytes) -> None:
    with pytest.raises(BadEvent, match="Moved version 1 cannot be brought to version 3"):
        schema.decode("Moved", 1, data)


def test_what_an_upcaster_makes_must_fit_the_class(moved: type[Event]) -> None:
    with pytest.raises(BadEvent, match="version 2 cannot be brought to version 3"):
        schema.decode("Moved", 2, body(to=[1, 2]))


def test_a_version_has_a_class_or_an_upcaster(moved: type[Event]) -> None:
    with pytest.raises(ValueError, match="is brought forward twice"):
        upcast("Moved", from_version=1)(dict)
    with pytest.raises(ValueError, match="has a class"):
        upcast("Moved", from_version=3)(dict)
    with pytest.raises(ValueError, match="needs no class"):
        event(version=2)(defined("Moved", "to", str))
