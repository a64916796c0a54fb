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
from sandkeep.sandboxes.door import answers
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


@functools.cache
def arguments_type(verb: Verb) -> type[msgspec.Struct]:
    """The type of a verb's arguments."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for each in verb.offered:
        kind = _kind(each)
        if each.many:
            fields.append((each.name, kind, () if not each.required else msgspec.NODEFAULT))
        elif each.required:
            fields.append((each.name, kind))
        else:
            fields.append((each.name, kind, each.default))
    return msgspec.defstruct(f"{verb.tool}_arguments", fields, kw_only=True, forbid_unknown_fields=True, frozen=True)


def arguments(verb: Verb, given: object) -> dict[str, Any]:
    """What a verb is given, checked. Raises `BadInput`."""
    try:
        found = msgspec.convert(given or {}, arguments_type(verb))
    except msgspec.ValidationError as error:
        raise BadInput(f"{verb.tool} was given what it cannot take: {error}; see its input schema") from error
    return msgspec.structs.asdict(found)


@functools.cache
def input_schema(verb: Verb) -> Schema:
    """The JSON Schema of a verb's arguments."""
    return _schema(arguments_type(verb))


@functools.cache
def output_schema(verb: Verb) -> Schema:
    """The JSON Schema of what a verb gives. An agent gets what is no object as the field `result` of
    one."""
    refs, parts = msgspec.json.schema_components(answers(verb), ref_template="#/$defs/{name}")
    if verb.streams:
        refs = tuple({"type": "array", "items": ref} for ref in refs)
    kinds = [ref if "$ref" in ref else _wrapped(ref) for ref in refs]
    if len(kinds) > 1:
        return {"type": "object", "anyOf": kinds, "$defs": parts}
    (kind,) = kinds
    whole: Schema = parts.pop(kind["$ref"].removeprefix("#/$defs/")) if "$ref" in kind else kind
    return whole | ({"$defs": parts} if parts else {})


def _wrapped(one: Schema) -> Schema:
    return {"type": "object", "properties": {"result": one}, "required": ["result"]}


def _schema(type: Any) -> Schema:
    (ref,), parts = msgspec.json.schema_components([type], ref_template="#/$defs/{name}")
    own: Schema = parts.pop(ref["$ref"].removeprefix("#/$defs/"))
    return own | ({"$defs": parts} if parts else {})


def _kind(each: Parameter) -> Any:
    kind: Any = Literal[choices] if (choices := each.offered_choices or each.choices) else each.type
    if each.least is not None:
        kind = Annotated[kind, Meta(ge=each.least)]
    if each.many:
        kind = tuple[kind, ...]
    elif not each.required and each.default is None:
        kind = Optional[kind]  # noqa: UP045
    return Annotated[kind, Meta(description=each.help)]
