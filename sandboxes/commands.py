"""The command line's commands, made from the vocabulary.

Values are converted here and not by typer, which would load pydantic for it: more than all else that a question about
tasks takes. A verb's parameters are made when it is the one that is called, and what it does is loaded then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import typer
from typer._click.exceptions import MissingParameter
from typer._coercion import resolve_type_descriptor
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.models import OptionInfo

from sandkeep.sandboxes.vocabulary_terms import JSON, KEEP, Parameter, Verb

Act = Callable[[Verb, dict[str, Any]], int]

_INNER = {"audit": "Show others that the record is whole."}
_CLAUSE_END = re.compile(r"[:;.](?:\s|$)")
_NUMBERS = {int: "integer", float: "number"}


def group(name: str, help: str, verbs: Sequence[Verb], act: Act) -> TyperGroup:
    """A command that has a command for each of the `verbs`, which calls `act` with what was given. Verbs that have two
    words in their name are commands of a command that has the first."""
    return _Group(name, help, verbs, act)


class _Group(TyperGroup):
    def __init__(self, name: str, help: str, verbs: Sequence[Verb], act: Act) -> None:
        super().__init__(name=name, help=help, rich_markup_mode=None)
        self._themes: dict[str, list[str]] = {}
        for verb in verbs:
            first, _, second = verb.name.partition(" ")
            if first in self.commands:
                continue
            if second:
                inner = [
                    replace(each, name=each.name.partition(" ")[2])
                    for each in verbs
                    if each.name.startswith(f"{first} ")
                ]
                self.commands[first] = _Group(first, _INNER[first], inner, act)
            else:
                self.commands[first] = _Command(verb, act)
            self._themes.setdefault(verb.theme, []).append(first)

    def get_help_option(self, ctx: Any) -> Any:
        """--help."""
        return _decided(super().get_help_option(ctx))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the verbs by their themes."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for theme, names in self._themes.items():
            with formatter.section(theme):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(width)) for name in names])


class _Command(TyperCommand):
    """One verb. Its parameters are made when they are first asked for."""

    def __init__(self, verb: Verb, act: Act) -> None:
        example = f"\b\nExample:\n  {verb.example}" if verb.example else None
        super().__init__(
            name=verb.name,
            help=verb.help,
            short_help=_CLAUSE_END.split(verb.help, maxsplit=1)[0],
            epilog=example,
            callback=lambda **given: act(verb, given),
            rich_markup_mode=None,
        )
        self._verb = verb

    def get_help_option(self, ctx: Any) -> Any:
        """--help."""
        return _decided(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> Any:
        """The parameters, and --help."""
        if not self.params:
            common = [KEEP] * self._verb.keep + [JSON] * self._verb.document
            self.params = [_made(each) for each in (*self._verb.parameters, *common)]
        return super().get_params(ctx)


def _decided(option: Any) -> Any:
    # Of a flag whose value is None, which is not given, typer would ask pydantic what it is.
    option.default = False
    return option


def _made(asked: Parameter) -> _Argument | _Option:
    return _Argument(asked) if asked.positional else _Option(asked)


def _described(asked: Parameter) -> str:
    return asked.metavar or "|".join(asked.choices) or _NUMBERS.get(asked.type, "text").upper()


class _Argument(TyperArgument):
    def __init__(self, asked: Parameter) -> None:
        super().__init__(
            param_decls=[asked.name],
            type_descriptor=_ANY,
            required=asked.required,
            nargs=-1 if asked.many else 1,
            metavar=_described(asked),
            help=asked.help,
        )
        self._asked = asked

    def get_usage_pieces(self, ctx: Any) -> list[str]:
        """How the line that shows the usage has it."""
        return [_described(self._asked)]

    def display_type_rich(self, ctx: Any) -> None:
        """Its name says what it is."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        """The value that the verb is given."""
        return _converted(self._asked, value, ctx, self)


class _Option(TyperOption):
    def __init__(self, asked: Parameter) -> None:
        super().__init__(
            param_decls=[asked.name, asked.flag],
            type_descriptor=_ANY,
            required=asked.required,
            is_flag=asked.type is bool,
            multiple=asked.many,
            default=False if asked.type is bool else asked.default,
            show_default=asked.type is not bool and asked.default != "",
            metavar=None if asked.type is bool else _described(asked),
            envvar=asked.envvar or None,
            show_envvar=bool(asked.envvar),
            help=asked.help,
        )
        self._asked = asked

    def process_value(self, ctx: Any, value: Any) -> Any:
        """The value that the verb is given."""
        return _converted(self._asked, value, ctx, self)


# What a value is, for messages that we do not use; typer wants one.
_ANY = resolve_type_descriptor(str, OptionInfo())


def _converted(asked: Parameter, value: Any, ctx: Any, shown: Any) -> Any:
    if asked.required and (value is None or value == ()):
        raise MissingParameter(ctx=ctx, param=shown)
    if asked.many:
        return tuple(_single(asked, each, ctx, shown) for each in value or ())
    return value if value is None or asked.type is bool else _single(asked, value, ctx, shown)


def _single(asked: Parameter, value: Any, ctx: Any, shown: Any) -> Any:
    if asked.choices and value not in asked.choices:
        listed = ", ".join(map(repr, asked.choices))
        raise typer.BadParameter(f"{value!r} is not one of {listed}.", ctx=ctx, param=shown)
    try:
        made: Any = asked.type(value)
    except ValueError as error:
        raise typer.BadParameter(f"{value!r} is not a valid {_NUMBERS[asked.type]}.", ctx=ctx, param=shown) from error
    if asked.least is not None and made < asked.least:
        raise typer.BadParameter(f"{value} is less than {asked.least}.", ctx=ctx, param=shown)
    return made
