"""What a shell is offered: what the vocabulary has, and the ids of a keep."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sandkeep.sandboxes import Keep, completion
from sandkeep.sandboxes.errors import KeepNotFound
from sandkeep.sandboxes.vocabulary import NAMED, VERBS

from .support import SCRIPT


def refused(folder: str | None) -> Keep:
    raise KeepNotFound("there is none")


def offered(*words: str) -> list[str]:
    """What is offered where there is no keep."""
    return [word for word, _ in completion.offers(words, VERBS, refused)]


def test_verbs_are_offered_by_their_beginning() -> None:
    assert offered("") == list(dict.fromkeys(verb.name.partition(" ")[0] for verb in VERBS))
    assert offered("audit", "v") == ["verify"]
    assert offered("create-t") == ["create-task"]
    assert offered("nothing-like-it") == []
    assert offered("nothing-like-it", "") == []


def test_the_options_and_choices_of_a_verb_are_offered() -> None:
    verb = NAMED["attach"]
    flags = {each.flag for each in verb.parameters if not each.positional} | {"--keep", "--json"}
    assert set(offered("attach", "--")) == flags
    assert offered("attach", "1234", "--mode", "col") == ["collaborative"]
    assert offered("install", "opencode", "c") == ["claude-code", "codex", "cursor"]
    assert offered("execute", "1234", "--", "--") == []  # that is the command's own
    assert offered("list-tasks", "--reverse", "--sort", "") == ["created", "updated", "title"]
    assert offered("attach", "1234", "") == []


def test_ids_are_offered_of_the_keep_that_is_named(keep: Keep) -> None:
    task = keep.create_task("a task")
    other = keep.create_task("another")
    taken = task.checkpoint("first")
    asked: list[str | None] = []

    def opened(folder: str | None) -> Keep:
        asked.append(folder)
        return keep

    found = completion.offers(["show-task", "--keep", "there", ""], VERBS, opened)
    assert {word for word, _ in found} == {task.id, other.id}
    assert tuple(sorted(what for _, what in found)) == ("created a task", "created another")
    assert completion.offers(["create-task", "--parent", task.id[:5]], VERBS, opened)[0][0] == task.id
    assert completion.offers(["restore-checkpoint", task.id, ""], VERBS, opened) == [(taken.id, "first")]
    assert asked == ["there", None, None]
    assert offered("show-task", "") == []


def test_bash_completes(keep: Keep, tmp_path: Path) -> None:
    task = keep.create_task("a task")
    keep.close()
    line = 'eval "$(sandkeep completion bash)"; COMP_WORDS=(sandkeep show-task ""); COMP_CWORD=2; _sandkeep'
    script = f'export PATH="{SCRIPT.parent}:$PATH" SANDKEEP_KEEP="{keep.path}"; {line}; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [task.id]


@pytest.mark.parametrize(("shell", "line"), [("bash", "a"), ("zsh", "a:b c"), ("fish", "a\tb c")])
def test_each_shell_has_its_own_form(shell: str, line: str) -> None:
    assert completion.lines(shell, [("a", "b c")]) == [line]
    assert any(f"sandkeep completion {shell} --" in each for each in completion.script(shell))
