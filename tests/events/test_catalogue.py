"""The released events: what they look like on disk is fixed for ever by the files in `golden`.

`golden/<Type>.<version>.json` lists the shapes that the event has had, oldest first: its `fields` as JSON, bytes in
base64, and its `body` on disk in hex. Shapes are only ever added (a field with a default makes a new one). Files of
versions that are now brought forward by an upcaster stay, and hold `becomes`: the fields as the present version.

`shapes.json` holds the JSON Schema of every version that has a class. It sees what an example cannot: a field whose
type became wider or narrower, or that lost its default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import BadEvent, Event, UnknownEvent, schema
from sandkeep.events import catalogue as ev

from .strategies import TYPES, of

GOLDEN = Path(__file__).with_name("golden")
SHAPES = Path(__file__).with_name("shapes.json")


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fields: dict[str, Any]
    body: str
    becomes: dict[str, Any] | None = None


def golden(path: Path) -> tuple[str, int, list[tuple[Shape, Event]]]:
    """The type, version and shapes that a golden file fixes, and what each body is now. Raises `BadEvent`, located."""
    name, version, _ = path.name.split(".")
    try:
        shapes = msgspec.json.decode(path.read_bytes(), type=list[Shape])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadEvent(f"{path.name} is no golden file: {error}; restore it, released shapes never change") from error
    if not shapes:
        raise BadEvent(f"{path.name} has no shapes; restore it, released shapes never change")
    return name, int(version), [(shape, body(path, number, shape)) for number, shape in enumerate(shapes, 1)]


def body(path: Path, number: int, shape: Shape) -> Event:
    """What the body of a shape is read as today."""
    name, version, _ = path.name.split(".")
    try:
        event = schema.decode(name, int(version), bytes.fromhex(shape.body))
    except (BadEvent, ValueError) as error:
        raise BadEvent(f"{path.name}, shape {number}: {error}") from error
    if isinstance(event, UnknownEvent):
        raise BadEvent(f"{path.name}, shape {number}: {name} version {version} can no longer be read")
    return event


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_an_event_round_trips(cls: type[Event], data: st.DataObject) -> None:
    event = data.draw(of(cls))
    name, version, body = schema.encode(event)
    assert name == cls.__name__
    assert schema.decode(name, version, body) == event


def test_every_event_has_a_golden_file_and_every_golden_file_an_event() -> None:
    released = {f"{name}.{version}.json" for (name, version), cls in schema.registered().items() if cls in TYPES}
    released |= {f"{name}.{version}.json" for name, version in schema.upcasters()}
    assert {path.name for path in GOLDEN.iterdir()} == released


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_the_released_shapes_can_be_read_and_the_last_is_the_one_written(path: Path) -> None:
    name, version, shapes = golden(path)
    for shape, event in shapes:
        if shape.becomes is not None:
            assert msgspec.json.decode(msgspec.json.encode(event)) == shape.becomes
            continue
        assert type(event) is schema.registered()[name, version]
        fields = msgspec.json.decode(msgspec.json.encode(event))
        assert holds(fields, shape.fields)
    if shape.becomes is None:
        assert schema.encode(event)[2].hex() == shape.body
        assert fields == shape.fields


def holds(fields: Any, older: Any) -> bool:
    """Whether `fields` are those of an older shape, with what was added since, also to the values in it."""
    if isinstance(fields, dict) and isinstance(older, dict):
        return older.keys() <= fields.keys() and all(holds(fields[name], older[name]) for name in older)
    return bool(fields == older)


def spoilt(content: bytes, how: str) -> bytes:
    shapes = msgspec.json.decode(content, type=list[dict[str, Any]])
    match how:
        case "cut":
            return content[: len(content) // 2]
        case "no UTF-8":
            return content.replace(b'"reason"', b'"\xff"', 1)
        case "empty":
            return b"[]"
        case "no hex":
            shapes[0]["body"] = "zz" + shapes[0]["body"]
        case "body cut":
            shapes[0]["body"] = shapes[0]["body"][:-2]
        case "other type":
            shapes[0]["body"] = msgspec.msgpack.encode({"reason": 1}).hex()
    return msgspec.json.encode(shapes)


@pytest.mark.parametrize("how", ["cut", "no UTF-8", "empty", "no hex", "body cut", "other type"])
def test_a_corrupt_golden_file_is_a_located_error(how: str, tmp_path: Path) -> None:
    path = tmp_path / "TaskFailed.1.json"
    path.write_bytes(spoilt((GOLDEN / path.name).read_bytes(), how))
    with pytest.raises(BadEvent, match=r"TaskFailed\.1\.json") as caught:
        golden(path)
    assert caught.value.code == "bad-event"


def test_a_golden_file_of_a_version_that_was_forgotten_is_a_located_error(tmp_path: Path) -> None:
    path = tmp_path / "TaskFailed.7.json"
    path.write_bytes((GOLDEN / "TaskFailed.1.json").read_bytes())
    with pytest.raises(BadEvent, match=r"TaskFailed\.7\.json, shape 1: TaskFailed version 7 can no longer be read"):
        golden(path)


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_what_stands_for_something_outside_the_log_names_its_intent(cls: type[Event]) -> None:
    named = "intent" in {field.name for field in msgspec.structs.fields(cls)}
    assert named == issubclass(cls, ev.Intent | ev.Outcome)
    assert not (issubclass(cls, ev.Intent) and issubclass(cls, ev.Outcome))


def test_optional_output_takes_its_defaults() -> None:
    assert ev.Output(size=0) == ev.Output(size=0, data=None, blob=None, truncated=False)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode({"size": 3}), type=ev.Output) == ev.Output(3)


def shape_of(cls: type[Event]) -> Any:
    """What may stand on disk for `cls`, without the words that describe it."""

    def bare(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                key: bare(value)
                for key, value in node.items()
                if not (key in ("title", "description") and isinstance(value, str))
            }
        return [bare(each) for each in node] if isinstance(node, list) else node

    return bare(msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(cls))))


def changed(released: dict[str, Any], shape: dict[str, Any]) -> bool:
    """Whether `shape` is anything but `released` with more fields that have defaults."""
    name = shape["$ref"]
    for definition, old in released["$defs"].items():
        new = shape["$defs"].get(definition)
        if new is None or new["required"] != old["required"]:
            return True
        if any(new["properties"].get(field) != kind for field, kind in old["properties"].items()):
            return True
    return bool(name != released["$ref"])


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_a_released_shape_changes_only_with_a_new_version(cls: type[Event]) -> None:
    (name, version) = next(name for name, found in schema.registered().items() if found is cls)
    shapes = msgspec.json.decode(SHAPES.read_bytes())
    found = shape_of(cls)
    assert f"{name}.{version}" in shapes, f"add to {SHAPES}: {msgspec.json.encode(found).decode()}"
    released = shapes[f"{name}.{version}"]
    assert not changed(released, found), f"{name} has another shape: give it version {version + 1}, and an upcaster"
    assert found == released, f"{name} has a new field: write its shape to {SHAPES}, and a new one to its golden file"


def test_every_kind_of_change_is_seen() -> None:
    def shape(*fields: Any) -> Any:
        return shape_of(cast(type[Event], msgspec.defstruct("X", fields, bases=(Event,), frozen=True, kw_only=True)))

    released = shape(("a", int), ("b", str | None, None))
    assert not changed(released, released)
    assert not changed(released, shape(("a", int), ("b", str | None, None), ("c", int, 0)))
    for other in (
        shape(("a", int)),
        shape(("a", int | None), ("b", str | None, None)),
        shape(("a", float), ("b", str | None, None)),
        shape(("a", int, 0), ("b", str | None, None)),
        shape(("a", int), ("b", str | None)),
        shape(
            ("a", int),
            ("b", str | None, ""),
        ),
        shape(("a", int), ("b", str | None, None), ("c", int)),
        shape(("z", int), ("b", str | None, None)),
    ):
        assert changed(released, other)
    for cls in TYPES:
        assert not changed(shape_of(cls), shape_of(cls))
