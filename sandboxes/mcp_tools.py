"""The tools that agents are offered: the vocabulary's verbs that are one, and what each takes.

Arguments are checked here against what the client was shown, so that a wrong one is told with its path.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Annotated, Any, Literal, Optional

import msgspec
from msgspec import Meta

from sandkeep.events import BadInput
from sandkeep.sandboxes.documents_schema import answer_schema, given_schema
from sandkeep.sandboxes.vocabulary import VERBS
from sandkeep.sandboxes.vocabulary_terms import Parameter, Verb

LEASE_SECONDS = 120.0
"""How long an agent's lock outlives its server, which renews it. One who attaches by the command line has no server."""

Schema = dict[str, Any]


def _for_agents(verb: Verb) -> Verb:
    renewed = {"lease": LEASE_SECONDS} if verb.name == "attach" else {}
    given = tuple(replace(each, default=renewed.get(each.name, each.default)) for each in verb.parameters)
    return replace(verb, parameters=given)


TOOLS: dict[str, Verb] = {verb.tool: _for_agents(verb) for verb in VERBS if verb.tool}
"""The verbs that are offered, by the names that agents know."""


def arguments(verb: Verb, given: object) -> dict[str, Any]:
    """What a verb is given, checked. Raises `BadInput`."""
    try:
        found = msgspec.convert(given or {}, _arguments(verb))
    except msgspec.ValidationError as error:
        raise BadInput(f"{verb.tool} was given what it cannot take: {error}; see its input schema") from error
    return msgspec.structs.asdict(found)


@functools.cache
def input_schema(verb: Verb) -> Schema:
    """The JSON Schema of a verb's arguments."""
    return given_schema(verb)


@functools.cache
def output_schema(verb: Verb) -> Schema:
    """The JSON Schema of what a verb gives. What is no object, an agent gets as the field `result` of one."""
    whole = answer_schema(verb)
    parts = whole.pop("$defs", {})
    if wrapped(verb):
        one = {"type": "array", "items": whole} if verb.streams else whole
        return {"type": "object", "properties": {"result": one}, "required": ["result"], "$defs": parts}
    return {"type": "object", **whole, "$defs": parts}


def wrapped(verb: Verb) -> bool:
    """Whether what a verb gives is no object."""
    return verb.streams or verb.result.startswith(("list[", "dict[")) or " | None" in verb.result


@functools.cache
def _arguments(verb: Verb) -> type[msgspec.Struct]:
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for each in verb.offered:
        kind = _kind(each)
        if each.required:
            fields.append((each.name, kind))
        elif each.many:
            fields.append((each.name, kind, ()))
        else:
            fields.append((each.name, kind if each.default is not None else Optional[kind], each.default))  # noqa: UP045
    return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True, frozen=True)


def _kind(each: Parameter) -> Any:
    choices = each.offered_choices or each.choices
    one: Any = Literal[choices] if choices else Annotated[each.type, Meta(ge=each.least)]
    return Annotated[tuple[one, ...], Meta(min_length=1 if each.required else 0)] if each.many else one
