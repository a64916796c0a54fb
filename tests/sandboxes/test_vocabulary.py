"""The vocabulary: what it says of a verb is what the verb is, whichever door it is called by."""

from __future__ import annotations

import ast
import enum
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandkeep.events import recovery
from sandkeep.projections import Mode, Sort, TaskState
from sandkeep.sandboxes import limits
from sandkeep.sandboxes.door import answers, named
from sandkeep.sandboxes.mcp_tools import input_schema, output_schema
from sandkeep.sandboxes.vocabulary import NAMED, VERBS, Parameter, Verb

_PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
REFERENCE: dict[str, list[tuple[str, str]]] = {}
_ROW = re.compile(r"^\| `([a-z].*?)` \| (.*) \|$", re.MULTILINE)
for _usage, _answer in _ROW.findall(_PAGE.partition("## Exit status")[0]):
    _name = " ".join(_usage.split()[: 2 if _usage.startswith("audit ") else 1])
    REFERENCE.setdefault(_name, []).append((_usage.replace("\\|", "|"), _answer))
WORDS = set(re.findall(r"\w+", " ".join(re.findall(r"`(.*?)`", _PAGE))))
ENDINGS = ("_bytes", "_blob", "_truncated", "_base64")
LIMITS = [f"--{name.replace('_', '-')} VALUE" for name in limits.NAMES]
FILTERS = ["--state S", "--owner N", "--tag T", "--parent T", "--text W", "--created-since T", "--created-before T"]
FILTERS += ["--updated-since T", "--updated-before T"]


def annotation(asked: Parameter) -> str:
    """What the run function has to say of a parameter."""
    if asked.many:
        return f"Sequence[{asked.type.__name__}]"
    optional = not asked.required and asked.default is None
    return f"{asked.type.__name__} | None" if optional else asked.type.__name__


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_what_does_a_verb_takes_and_gives_what_the_table_says(verb: Verb) -> None:
    door, *taken = inspect.signature(named(verb.run)).parameters.values()
    assert (door.name, door.annotation) == ("door", "Door")
    assert [(each.name, each.annotation, each.kind) for each in taken] == [
        (asked.name, annotation(asked), inspect.Parameter.KEYWORD_ONLY) for asked in verb.parameters
    ]
    defaults = [
        inspect.Parameter.empty if asked.required else () if asked.many else asked.default for asked in verb.parameters
    ]
    assert [each.default for each in taken] == defaults
    assert inspect.signature(named(verb.run)).return_annotation == verb.result
    shown = typing.get_type_hints(named(verb.show))
    first = next(iter(inspect.signature(named(verb.show)).parameters))
    asked = shown[first]
    assert (typing.get_args(asked) if isinstance(asked, types.UnionType) else (asked,)) == answers(verb)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_a_verb_says_all_that_its_doors_need(verb: Verb) -> None:
    assert verb.help.endswith(".")
    assert bool(verb.tool) == bool(verb.tool_help)
    assert verb.example.startswith(f"sandkeep {verb.name}") or verb.name in verb.example
    assert not verb.slash or verb.tool, "a slash command tells an agent which tool to call"
    for asked in verb.parameters:
        assert asked.help.endswith(".")
        assert asked.type is bool or asked.metavar or asked.choices
        assert not (asked.required and asked.people_only and verb.tool), "an agent could never call it"


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_reference_has_every_parameter_of_a_verb_and_no_other(verb: Verb) -> None:
    shown = " ".join(usage for usage, _ in REFERENCE[verb.name])
    for short, long in (("[LIMIT]...", LIMITS), ("[FILTER]...", FILTERS)):
        if short in shown:
            shown = shown.replace(short, " ".join(long))
    options = set(re.findall(r"--[a-z][a-z-]*", shown))
    assert options == {asked.flag for asked in verb.parameters if not asked.positional}
    places = " ".join(asked.metavar for asked in verb.parameters if asked.positional)
    assert set(re.findall(r"[A-Za-z]+", places)) <= set(re.findall(r"[A-Za-z]+", shown))


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_what_the_reference_says_of_an_answer_is_what_it_holds(verb: Verb) -> None:
    if not verb.document:
        return  # it is for people, or for a program that speaks another language
    fields = set(names(output_schema(verb))) - {"result"}
    for _, answer in REFERENCE[verb.name]:
        assert set(re.findall(r'"(\w+)"', answer)) - {"result"} <= fields, verb.name
    assert fields, "a model has to know what it gets"
    for field in fields:
        assert field in WORDS or any(field.endswith(ending) for ending in ENDINGS), f"{field} of {verb.name}"


def names(schema: Any) -> Iterator[str]:
    """The names of all fields in a JSON schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from names(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from names(value)


def test_the_reference_has_no_other_verbs() -> None:
    assert set(REFERENCE) == set(NAMED)


def test_every_verb_of_the_vocabulary_that_was_agreed_is_there() -> None:
    agreed = """create-task resume-task list-tasks show-task attach detach complete-task cleanup-task execute checkpoint
    restore-checkpoint list-checkpoints diff task-history task-executions task-decisions record-decision find-task
    task-stats conflicts resolve-conflict merge locks events verify recover doctor"""
    assert set(agreed.split()) <= set(NAMED)
    assert any(name.startswith("audit ") for name in NAMED)
    tools = {"create_task_sandbox", "attach_agent_to_task", "detach_agent_from_task", "execute_in_task"}
    assert tools <= {verb.tool for verb in VERBS}


def test_agents_are_offered_nothing_that_widens_what_they_may_do() -> None:
    people = """init steward recover replay network-policy offer-ports set-limits extend-limits deny-extension mcp
    break-lock conflict-policy terminal expire-checkpoints repair-checkpoints prune-images prune-caches import-image
    export-image install uninstall"""
    for verb in VERBS:
        if verb.name in people.split() or verb.name.startswith("audit "):
            assert not verb.tool, verb.name
        offered = {asked.name for asked in verb.offered} if verb.tool else set()
        assert not offered & {"network", "allow", "private", "services", "memory", "disk", "time", "script"}
        assert not offered & {"stdin", "secret", "writable_root", "privileges", "cache", "no_caches", "follow"}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.tool], ids=lambda verb: verb.name)
def test_what_an_agent_gives_has_a_schema(verb: Verb) -> None:
    schema = input_schema(verb)
    assert set(schema.get("required", ())) <= set(schema["properties"]) == {asked.name for asked in verb.offered}
    assert all(each["description"] for each in schema["properties"].values())


def test_the_schema_of_a_parameter_says_all_that_the_table_does() -> None:
    properties = input_schema(NAMED["resolve-conflict"])["properties"]
    assert set(properties["take"]["enum"]) == {"ours", "theirs", "merged"}
    properties = input_schema(NAMED["list-tasks"])["properties"]
    assert properties["state"]["items"]["enum"] == sorted(map(str, TaskState))
    assert (properties["limit"]["type"], properties["limit"]["default"]) == ("integer", 100)
    assert input_schema(NAMED["events"])["properties"]["after"]["minimum"] == 0


@pytest.mark.parametrize(
    ("verb", "name", "choices"),
    [
        ("list-tasks", "state", TaskState),
        ("list-tasks", "sort", Sort),
        ("attach", "mode", Mode),
        ("recover", "mode", recovery.Mode),
    ],
)
def test_choices_are_those_there_are(verb: str, name: str, choices: type[enum.StrEnum]) -> None:
    (asked,) = (each for each in NAMED[verb].parameters if each.name == name)
    assert asked.choices == tuple(choices)


def test_names_are_used_once() -> None:
    assert len(NAMED) == len(VERBS)
    tools = [verb.tool for verb in VERBS if verb.tool]
    assert len(set(tools)) == len(tools)
    for verb in VERBS:
        assert len({asked.name for asked in verb.parameters}) == len(verb.parameters)


def test_the_table_loads_nothing_that_does_anything() -> None:
    files = sorted((Path(__file__).parents[2] / "sandboxes").glob("vocabulary*.py"))
    assert len(files) > 2
    for file in files:
        nodes = [node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.ImportFrom)]
        ours = {node.module for node in nodes if node.module and node.module.startswith("sandkeep")}
        names = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        assert all("sandkeep.sandboxes.vocabulary" in name for name in names if name.startswith("sandkeep")), file
        assert {node.module for node in nodes} - ours <= {"__future__", "dataclasses", "typing"}
