"""The tools that agents are offered: the vocabulary's, with schemas made from its parameters and documents.

Arguments are checked here against the schema that the client was shown, so that a wrong one is told with its path.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, Optional

import msgspec
from msgspec import Meta

from sandkeep.events import BadInput
from sandkeep.sandboxes import vocabulary
from sandkeep.sandboxes.door import answers
from sandkeep.sandboxes.vocabulary_terms import Parameter, Verb

READ_OUTPUT = Verb(
    name="read-output",
    theme="Commands",
    help="Read what a command of a task wrote, a part at a time.",
    tool="read_output",
    tool_help=(
        "Read what a command wrote to stdout or stderr, a part at a time. Long output is shortened in the result of"
        " execute_in_task; this gives all of it. Begin at offset 0, or at the offset that you were told, and go on with"
        " next until that is null. It also shows what a command in the background has written so far."
    ),
    result="documents_agents.OutputPart",
    run="verbs_output:read_output",
    show="",
    parameters=(
        Parameter(name="task", help="The task's id.", required=True),
        Parameter(name="command", help="The command's id, as execute_in_task returned it.", required=True),
        Parameter(name="stream", help="Which of the two.", default="stdout", choices=("stdout", "stderr")),
        Parameter(name="offset", help="How many bytes to leave out.", type=int, default=0, least=0),
        Parameter(name="length", help="How many bytes at most.", type=int, default=16_000, least=1),
    ),
)

TOOLS: dict[str, Verb] = {verb.tool: verb for verb in (*vocabulary.VERBS, READ_OUTPUT) if verb.tool}
"""The verbs that are offered, by the names that agents know."""

Schema = dict[str, Any]


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
