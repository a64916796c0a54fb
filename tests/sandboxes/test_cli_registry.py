"""The command line's questions to the registry, without an engine."""

from __future__ import annotations

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep

from .support import Cli

IDS = [f"{number:012x}" for number in range(0x10, 0x16)]


@pytest.fixture
def several(keep: Keep, cli: Cli) -> Cli:
    """The command line on a keep with six tasks, the first of which is the parent of the last."""
    for number, task in enumerate(IDS):
        parent = IDS[0] if number == 5 else None
        title = f"Fix\x1b the {'parser' if number % 2 else 'lexer'}"
        event = ev.TaskCreated("i", title, None, "image", f"owner{number % 3}", (f"tag{number % 2}",), parent)
        keep.log.append(f"task/{task}", [event], actor="tester")
    keep.log.append(f"task/{IDS[1]}", [ev.TaskFailed("r")], actor="tester")
    keep.log.append(f"task/{IDS[2]}", [ev.TaskCleaned("i")], actor="tester")
    keep.close()
    return cli


def listed(cli: Cli, *arguments: str) -> list[int]:
    return [IDS.index(task["id"]) for task in cli("list-tasks", *arguments, "--json").json["tasks"]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [5, 4, 3, 1, 0]),
        (["--reverse"], [0, 1, 3, 4, 5]),
        (["--sort", "updated"], [1, 5, 4, 3, 0]),
        (["--sort", "title"], [0, 4, 1, 3, 5]),
        (["--state", "cleaned", "--state", "failed"], [2, 1]),
        (["--owner", "owner1"], [4, 1]),
        (["--tag", "tag1", "--owner", "owner0"], [3]),
        (["--tag", "tag1", "--tag", "tag0"], []),
        (["--parent", IDS[0]], [5]),
        (["--text", "PARS fix"], [5, 3, 1]),
        (["--as-of", "3"], [1, 0]),
        (["--as-of", "7", "--state", "created"], [5, 4, 3, 2, 1, 0]),
        (["--created-since", "2999-01-01"], []),
        (["--created-before", "2999-01-01", "--updated-since", "2001-01-01"], [5, 4, 3, 1, 0]),
        (["--updated-before", "2001-01-01"], []),
        (["--owner", "\udcff"], []),
        (["--tag", "\udcff", "--text", "parser \udcff"], []),
    ],
)
def test_tasks_are_listed_by_what_they_are(several: Cli, arguments: list[str], expected: list[int]) -> None:
    assert listed(several, *arguments) == expected


def test_a_listing_goes_on_where_a_page_ended(several: Cli) -> None:
    found, cursor = list[str](), list[str]()
    while True:
        page = several("list-tasks", "--limit", "2", *cursor, "--json").json
        found += [task["id"] for task in page["tasks"]]
        if page["next"] is None:
            break
        cursor = ["--cursor", page["next"]]
    assert found == [IDS[number] for number in (5, 4, 3, 1, 0)]
    assert b"there are more: --cursor " in several("list-tasks", "--limit", "2").stdout
    assert b"there are more" not in several("list-tasks").stdout


def test_tasks_are_found_by_words(several: Cli) -> None:
    found = several("find-task", "parsre", "fix", "--limit", "2", "--json").json
    assert [(each["id"], each["fit"]) for each in found] == [(IDS[5], "similar"), (IDS[3], "similar")]
    assert several("find-task", "tag1", "--as-of", "3", "--json").json[0]["id"] == IDS[1]
    shown = several("find-task", "lexer").stdout
    assert b"Fix\\x1b the lexer" in shown
    assert b"owner2" in shown
    assert b"no task fits" in several("find-task", "nothing").stdout


def test_a_task_is_shown_as_it_was(several: Cli) -> None:
    now, then = (several("show-task", IDS[1], *more, "--json").json for more in ([], ["--as-of", "3"]))
    assert (now["state"], then["state"]) == ("failed", "created")
    assert (now["owner"], now["tags"], now["parent"]) == ("owner1", ["tag1"], None)
    assert several("show-task", IDS[1], "--as-of", "2").refused("task-not-found", 2)
    assert IDS[0].encode() in several("show-task", IDS[5]).stdout


def test_changes_are_shown(several: Cli) -> None:
    created, ended = several("changes", "--from", "6", "--to", "8", "--json").json
    assert (created["change"], created["task"]["id"], created["fields"]) == ("created", IDS[5], {})
    assert (ended["change"], ended["task"]["id"]) == ("ended", IDS[1])
    assert ended["fields"]["state"] == {"before": "created", "after": "failed"}
    assert "state: created → failed" in several("changes", "--from", "6").stdout.decode()
    assert b"nothing changed" in several("changes", "--from", "9").stdout


def test_tags_are_given_and_taken(several: Cli) -> None:
    answer = several("tag-task", IDS[0], "--add", "urgent", "--add", "ci", "--remove", "tag0", "--json")
    assert answer.json["tags"] == ["ci", "urgent"]
    assert listed(several, "--tag", "urgent") == [0]
    assert several("tag-task", IDS[0], "--remove", "ci").stdout == f"{IDS[0]}  urgent\n".encode()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["list-tasks", "--cursor", "x"], "bad-cursor"),
        (["list-tasks", "--limit", "0"], "bad-input"),
        (["list-tasks", "--limit", "1001"], "bad-input"),
        (["list-tasks", "--as-of", "99"], "bad-moment"),
        (["list-tasks", "--as-of", "soon"], "bad-moment"),
        (["list-tasks", "--created-since", "12"], "bad-moment"),
        (["list-tasks", "--sort", "colour"], "bad-usage"),
        (["list-tasks", "--parent", "ffff"], "task-not-found"),
        (["list-tasks", "--text", "…"], "bad-input"),
        (["find-task", "…"], "bad-input"),
        (["find-task", "x", "--limit", "101"], "bad-input"),
        (["find-task"], "bad-usage"),
        (["changes"], "bad-usage"),
        (["changes", "--from", "4", "--to", "3"], "bad-moment"),
        (["show-task", IDS[0], "--as-of", "-3"], "bad-moment"),
        (["tag-task", IDS[0]], "bad-input"),
        (["tag-task", IDS[0], "--add", ""], "bad-input"),
        (["tag-task", "ffffffffffff", "--add", "x"], "task-not-found"),
        (["create-task", "t", "--tag", ""], "bad-input"),
        (["create-task", "t", "--owner", "two\nlines"], "bad-input"),
        (["create-task", "t", "--parent", "ffff"], "task-not-found"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_bad_questions_are_refused(several: Cli, arguments: list[str], code: str) -> None:
    assert several(*arguments).refused(code, 2)
