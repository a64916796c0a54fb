"""The JSON schemas of what verbs answer with, and of what they are given, for doors that have to say so beforehand."""

from __future__ import annotations

import types
import typing
from typing import Any

import msgspec

from sandkeep.sandboxes.door import named
from sandkeep.sandboxes.vocabulary_terms import Parameter, Verb

_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def answer_type(verb: Verb) -> Any:
    """The type of what a verb answers with; of one that `streams`, of each of its answers."""
    made = typing.get_type_hints(named(verb.run))["return"]
    return typing.get_args(made)[0] if verb.streams else made


def answer_types(verb: Verb) -> tuple[Any, ...]:
    """The types of which that is one."""
    made = answer_type(verb)
    # msgspec could not tell the documents of a union apart when it reads them, and so has no schema for one.
    return typing.get_args(made) if isinstance(made, types.UnionType) else (made,)


def answer_schema(verb: Verb) -> dict[str, Any]:
    """The schema of what a verb answers with (JSON Schema 2020-12)."""
    schemas, components = msgspec.json.schema_components(answer_types(verb), ref_template="#/$defs/{name}")
    whole = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    return {**whole, "$defs": components} if components else dict(whole)


def given_schema(verb: Verb) -> dict[str, Any]:
    """The schema of what an agent gives to a verb, an object of the parameters that it is offered."""
    return {
        "type": "object",
        "properties": {each.name: _parameter(each) for each in verb.offered},
        "required": [each.name for each in verb.offered if each.required],
        "additionalProperties": False,
    }


def _parameter(asked: Parameter) -> dict[str, Any]:
    one: dict[str, Any] = {"type": _NAMES[asked.type]}
    if choices := asked.offered_choices or asked.choices:
        one["enum"] = list(choices)
    if asked.least is not None:
        one["minimum"] = asked.least
    whole: dict[str, Any] = {"type": "array", "items": one} if asked.many else one
    if asked.many and asked.required:
        whole["minItems"] = 1
    if asked.default is not None:
        whole["default"] = asked.default
    return whole | {"description": asked.help}
