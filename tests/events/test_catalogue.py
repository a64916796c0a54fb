"""The released events: what they look like on disk is fixed for ever by the files in `golden`.

`golden/<Type>.<version>.json` lists the shapes that the event has had, oldest first: its `fields` as JSON, bytes in
base64, and its `body` on disk in hex. Shapes are only ever added (a field with a default makes a new one).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import Event, schema
from sandkeep.events import catalogue as ev

from .strategies import TYPES, of

GOLDEN = Path(__file__).with_name("golden")


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fields: dict[str, Any]
    body: str


def golden(path: Path) -> tuple[str, int, list[Shape]]:
    name, version, _ = path.name.split(".")
    return name, int(version), msgspec.json.decode(path.read_bytes(), type=list[Shape])


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_an_event_round_trips(cls: type[Event], data: st.DataObject) -> None:
    event = data.draw(of(cls))
    name, version, body = schema.encode(event)
    assert name == cls.__name__
    assert schema.decode(name, version, body) == event


def test_every_event_has_a_golden_file_and_every_golden_file_an_event() -> None:
    released = {f"{name}.{version}.json" for (name, version), cls in schema.registered().items() if cls in TYPES}
    assert {path.name for path in GOLDEN.iterdir()} == released


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_the_released_shapes_can_be_read_and_the_last_is_the_one_written(path: Path) -> None:
    name, version, shapes = golden(path)
    for shape in shapes:
        event = schema.decode(name, version, bytes.fromhex(shape.body))
        assert type(event) is schema.registered()[name, version]
        fields = msgspec.json.decode(msgspec.json.encode(event))
        assert fields | shape.fields == fields
    assert schema.encode(event)[2].hex() == shapes[-1].body
    assert fields == shapes[-1].fields


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_what_stands_for_something_outside_the_log_names_its_intent(cls: type[Event]) -> None:
    named = "intent" in {field.name for field in msgspec.structs.fields(cls)}
    assert named == issubclass(cls, ev.Intent | ev.Outcome)
    assert not (issubclass(cls, ev.Intent) and issubclass(cls, ev.Outcome))


def test_optional_output_takes_its_defaults() -> None:
    assert ev.Output(size=0) == ev.Output(size=0, data=None, blob=None, truncated=False)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode({"size": 3}), type=ev.Output) == ev.Output(3)
