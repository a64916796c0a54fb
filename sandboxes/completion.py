"""What a shell offers when somebody presses tab: verbs, options, and the ids of tasks and checkpoints.

The shell's script asks us with the words on its line, the last of them unfinished. The vocabulary answers for all but
ids; only for these is the keep opened. Without an answer the shell goes on to offer files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from sandkeep.sandboxes.vocabulary_terms import JSON, KEEP, Parameter, Verb

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

MOST = 200
"""How many ids are offered."""

Offer: TypeAlias = tuple[str, str]
"""A word, and what it is."""

_SCRIPTS = {
    "bash": r"""
_sandkeep() {
    local IFS=$'\n'
    COMPREPLY=($(sandkeep completion bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _sandkeep sandkeep
""",
    "zsh": r"""
#compdef sandkeep
_sandkeep() {
    local -a found
    found=(${(f)"$(sandkeep completion zsh -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#found} )); then _describe sandkeep found; else _files; fi
}
compdef _sandkeep sandkeep
""",
    "fish": r"""
complete -c sandkeep -a '(sandkeep completion fish -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}


def script(shell: str) -> list[str]:
    """The lines that a shell has to read for it to ask us."""
    return _SCRIPTS[shell].strip().splitlines()


def lines(shell: str, offers: Iterable[Offer]) -> list[str]:
    """What is offered, as a shell reads it."""
    if shell == "bash":
        return [word for word, _ in offers]
    between = "\t" if shell == "fish" else ":"
    return [f"{word}{between}{what}" if what else word for word, what in offers]


def offers(words: Sequence[str], verbs: Sequence[Verb], opened: Callable[[str | None], Keep]) -> list[Offer]:
    """What the last of `words` may become. `opened` opens the keep, in the folder that the words name, if they do."""
    *before, begun = words or [""]
    named = {verb.name: verb for verb in verbs}
    verb = next((named[name] for length in (2, 1) if (name := " ".join(before[:length])) in named), None)
    if verb is None:
        skip = len(" ".join(before)) + bool(before)
        there = " ".join([*before, begun])
        fitting = [each for each in verbs if each.name.startswith(there)]
        return list({each.name[skip:].partition(" ")[0]: each.help.partition(". ")[0] for each in fitting}.items())
    given = before[len(verb.name.split()) :]
    return [(word, what) for word, what in _offered(verb, given, begun, opened) if word.startswith(begun)]


def _offered(verb: Verb, given: Sequence[str], begun: str, opened: Callable[[str | None], Keep]) -> Iterator[Offer]:
    if "--" in given:
        return
    known = [*verb.parameters, *[KEEP] * verb.keep, *[JSON] * verb.document]
    options = {each.flag: each for each in known if not each.positional}
    placed, values, last = _sorted(given, options)
    if last is not None:
        asked: Parameter | None = last
    elif begun.startswith("-"):
        yield from ((flag, each.help) for flag, each in options.items())
        return
    else:
        order = [each for each in known if each.positional]
        asked = order[min(len(placed), len(order) - 1)] if order else None
        if asked is not None and len(placed) >= len(order) and not asked.many:
            return
    if asked is None:
        return
    yield from ((choice, "") for choice in asked.choices)
    if asked.metavar in ("TASK", "CHECKPOINT"):
        from sandkeep.events import SandkeepError

        with contextlib.suppress(SandkeepError):
            keep = opened(values.get(KEEP.flag))
            yield from _checkpoints(keep, placed[0]) if asked.metavar == "CHECKPOINT" and placed else _tasks(keep)


def _sorted(given: Sequence[str], options: dict[str, Parameter]) -> tuple[list[str], dict[str, str], Parameter | None]:
    """What stands by its place, the values of options, and the option whose value is due."""
    placed: list[str] = []
    values: dict[str, str] = {}
    due: Parameter | None = None
    for word in given:
        if due is not None:
            values[due.flag] = word
            due = None
        elif word.startswith("--"):
            due = options.get(word)
            due = None if due is None or due.type is bool else due
        else:
            placed.append(word)
    return placed, values, due


def _tasks(keep: Keep) -> Iterator[Offer]:
    from sandkeep.projections import Filter, Sort

    with keep.as_of() as then:
        page = then.tasks(Filter(), sort=Sort.UPDATED, limit=MOST)
    for task in page.tasks:
        yield task.id, _plain(f"{task.state} {task.title}")


def _checkpoints(keep: Keep, task: str) -> Iterator[Offer]:
    for checkpoint in reversed(keep.task(task).checkpoints()[-MOST:]):
        yield checkpoint.id, _plain(checkpoint.label)


def _plain(text: str) -> str:
    """Foreign text, for a shell to show: without what a terminal obeys."""
    return "".join(each if each.isprintable() else "?" for each in text)
