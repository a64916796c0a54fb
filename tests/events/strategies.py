"""Hypothesis strategies for events, records and texts, made from the types that the catalogue declares."""

from __future__ import annotations

import types
import typing
from typing import Any

import msgspec
from hypothesis import strategies as st

from sandkeep.events import Event, schema
from sandkeep.events import catalogue as ev

TEXT = st.text(max_size=12)
"""Text that UTF-8 can hold: Hypothesis leaves out surrogates by default."""

TYPES = sorted(
    (cls for cls in schema.registered().values() if cls.__module__.startswith(f"{ev.__name__}.")),
    key=lambda c: c.__name__,
)
"""Every event type of the catalogue."""


def of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of the field type `kind`."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return st.one_of([of(argument) for argument in arguments])
    if typing.get_origin(kind) is tuple:
        return st.lists(of(arguments[0]), max_size=3).map(tuple)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = {field.name: of(field.type) for field in msgspec.structs.fields(kind)}
        return st.fixed_dictionaries(fields).map(lambda values: kind(**values))
    return {
        int: st.integers(0, 2**63 - 1),
        str: TEXT,
        bytes: st.binary(max_size=12),
        bool: st.booleans(),
        type(None): st.none(),
    }[kind]


def events() -> st.SearchStrategy[Event]:
    """Any event of the catalogue."""
    return st.one_of([of(cls) for cls in TYPES])
