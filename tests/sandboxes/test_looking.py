"""Looking with two processes: the same as with one, wherever the work is cut, and nothing that differs is missed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sandkeep.sandboxes import looking, workspace
from sandkeep.sandboxes.looking import ENTER, MOST_DEPTH, Look, differing, differing_twice

from .support import opened
from .trees import deep


def looks_at(folder: Path, depth: int = 0, name: bytes = b"") -> list[Look]:
    """What there is, as it is now."""
    inner = sorted(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink())
    names = sorted(os.fsencode(each.name) for each in folder.iterdir() if each not in inner)
    times = [os.lstat(os.fsencode(folder) + b"/" + each).st_ctime_ns for each in names]
    found: list[Look] = [(depth, name, folder.stat().st_ctime_ns, names, times)]
    for each in inner:
        found += looks_at(each, depth + 1, os.fsencode(each.name))
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Some folders within each other, with two files in each."""
    for path in ("a/b/c", "a/d", "e", "f/g"):
        (tmp_path / "tree" / path).mkdir(parents=True)
    for folder in [tmp_path / "tree", *(tmp_path / "tree").rglob("*")]:
        (folder / "one").touch()
        (folder / "two").symlink_to("nowhere")
    return tmp_path / "tree"


def test_nothing_differs_from_what_it_is(tree: Path) -> None:
    looks = looks_at(tree)
    assert len(looks) == 8
    with opened(tree) as root:
        assert differing(root, looks) == differing_twice(root, looks) == []
        assert differing_twice(root, looks[:1]) == []


@pytest.mark.parametrize("middle", range(1, 9))
def test_what_differs_is_found_wherever_the_work_is_cut(
    tree: Path, monkeypatch: pytest.MonkeyPatch, middle: int
) -> None:
    monkeypatch.setattr(looking, "_middle", lambda looks: middle)
    looks = looks_at(tree)
    changed = {tree / "a" / "b", tree / "f" / "g", tree}
    for folder in changed:
        (folder / "one").chmod(0o600)
    expected = [number for number, look in enumerate(looks_at(tree)) if look != looks[number]]
    assert len(expected) == 3
    with opened(tree) as root:
        assert differing(root, looks) == differing_twice(root, looks) == expected


@pytest.mark.parametrize("how", ["gone", "a link", "a file", "another"])
def test_all_below_a_folder_that_is_not_there_differs(tree: Path, how: str) -> None:
    looks = looks_at(tree)
    (tree / "a").rename(tree.parent / "a")
    if how == "a link":
        (tree / "a").symlink_to(tree.parent / "a")
    elif how == "a file":
        (tree / "a").touch()
    elif how == "another":
        (tree / "a").mkdir()
    below = [number for number, look in enumerate(looks) if look[0] == 0 or look[1] in (b"a", b"b", b"c", b"d")]
    with opened(tree) as root:
        assert differing(root, looks) == differing_twice(root, looks) == below


def test_a_name_that_is_gone_is_a_difference_of_its_folder_alone(tree: Path) -> None:
    depth, name, _, names, times = looks_at(tree)[0]
    (tree / "one").unlink()
    looks = [(depth, name, tree.stat().st_ctime_ns, names, times), *looks_at(tree)[1:]]
    with opened(tree) as root:
        assert differing(root, looks) == [0]


def test_what_only_leads_to_others_is_entered_and_not_compared(tree: Path) -> None:
    looks = [(depth, name, ENTER, names, [0]) for depth, name, _, names, _ in looks_at(tree)]
    with opened(tree) as root:
        assert differing(root, looks) == []


def test_what_lies_too_deep_differs(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    deep(folder, MOST_DEPTH + 3)
    looks = looks_at(folder)
    with opened(folder) as root:
        before = len(os.listdir("/proc/self/fd"))
        assert differing(root, looks) == differing_twice(root, looks) == [*range(MOST_DEPTH + 1, MOST_DEPTH + 4)]
        assert len(os.listdir("/proc/self/fd")) == before
    workspace.remove(folder)


def test_what_the_other_process_cannot_do_is_done_here(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looks_at(tree)
    (tree / "f" / "g" / "one").chmod(0o600)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with opened(tree) as root:
        assert differing_twice(root, looks) == [7]
