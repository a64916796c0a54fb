"""The vocabulary: what it says of a verb is what the verb is, whichever door it is called by."""

from __future__ import annotations

import ast
import inspect
import typing
from pathlib import Path

import pytest

from sandkeep.sandboxes.door import named
from sandkeep.sandboxes.vocabulary import NAMED, VERBS, Parameter, Verb


def annotation(asked: Parameter) -> str:
    """What the run function has to say of a parameter."""
    if asked.many:
        return f"Sequence[{asked.type.__name__}]"
    optional = not asked.required and asked.default is None
    return f"{asked.type.__name__} | None" if optional else asked.type.__name__


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_what_does_a_verb_takes_and_gives_what_the_table_says(verb: Verb) -> None:
    door, *given = inspect.signature(named(verb.run)).parameters.values()
    assert (door.name, door.annotation) == ("door", "Door")
    assert [(each.name, each.annotation, each.kind) for each in given] == [
        (asked.name, annotation(asked), inspect.Parameter.KEYWORD_ONLY) for asked in verb.parameters
    ]
    defaults = [
        inspect.Parameter.empty if asked.required else () if asked.many else asked.default for asked in verb.parameters
    ]
    assert [each.default for each in given] == defaults
    assert inspect.signature(named(verb.run)).return_annotation == verb.result
    shown = typing.get_type_hints(named(verb.show))
    first = next(iter(inspect.signature(named(verb.show)).parameters))
    made = typing.get_type_hints(named(verb.run))["return"]
    assert shown[first] == (typing.get_args(made)[0] if verb.streams else made)


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
