"""Merges of trees against a naive model: three dictionaries of paths."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandkeep.events import BlobStore
from sandkeep.sandboxes import merging, survey, three_way
from sandkeep.sandboxes.tree import Tree, version

from .support import opened, take

Node = tuple[str, str, int]
"""Kind, content and mode."""

Nodes = dict[str, Node]

FOLDER: Node = ("folder", "", 0)
NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
FILES = st.tuples(st.just("file"), st.sampled_from(("", "1", "2", "3")), st.sampled_from((0o644, 0o755)))
LINKS = st.tuples(st.just("link"), st.sampled_from(("x", "../y", "/etc/passwd")), st.just(0))
EDIT = st.tuples(NAMES, st.one_of(FILES, LINKS, st.just(FOLDER), st.none()))
EDITS = st.lists(EDIT, max_size=7)

Edits = list[tuple[str, Node | None]]


def three(base: Edits, own: Edits, theirs: Edits) -> tuple[Nodes, Nodes, Nodes]:
    """A tree, and what two made of it."""
    before = edited({}, base)
    return before, edited(before, own), edited(before, theirs)


def edited(tree: Nodes, edits: Edits) -> Nodes:
    """The tree after each path was given what is to be there: nothing but a folder keeps what was below it."""
    tree = dict(tree)
    for path, node in edits:
        if node == FOLDER and tree.get(path) == FOLDER:
            continue
        for each in [each for each in tree if each == path or each.startswith(f"{path}/")]:
            del tree[each]
        if node is not None:
            for above in ancestors(path):
                if tree.get(above) != FOLDER:
                    tree[above] = FOLDER
            tree[path] = node
    return tree


def ancestors(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:number]) for number in range(1, len(parts))]


def below(path: str, tree: Nodes) -> list[str]:
    return [each for each in tree if each.startswith(f"{path}/")]


def model(base: Nodes, own: Nodes, theirs: Nodes) -> tuple[Nodes, set[str]]:
    """What comes of it, and what collides."""

    def files(tree: Nodes) -> Nodes:
        return {path: node for path, node in tree.items() if node != FOLDER}

    was, mine, there = files(base), files(own), files(theirs)
    kept = {path: node for path, node in there.items() if mine.get(path) == was.get(path)}
    taken = {path: node for path, node in mine.items() if node != was.get(path)}
    changed = {path for path in was.keys() | mine.keys() if mine.get(path) != was.get(path)}
    collided = {path for path in changed if there.get(path) not in (was.get(path), mine.get(path))}
    result = kept | taken
    for path in taken:
        stuck = any(above in kept for above in ancestors(path)) or _stays(path, kept, base, theirs)
        if stuck and there.get(path) != taken[path]:
            collided.add(path)
            result.pop(path)
    folders = {path for path, node in theirs.items() if node == FOLDER}
    folders |= {path for path, node in own.items() if node == FOLDER and base.get(path) != FOLDER}
    folders |= {above for path in [*result, *folders] for above in ancestors(path)}
    gone = {path for path, node in base.items() if node == FOLDER and own.get(path) != FOLDER}
    for path in sorted(folders, key=len, reverse=True):
        here = [*below(path, result), *(each for each in folders if each.startswith(f"{path}/"))]
        blocked = path in result or any(above in result for above in ancestors(path))
        if (path in gone and not here) or blocked:
            folders.discard(path)
    return result | dict.fromkeys(folders, FOLDER), collided


def _stays(path: str, kept: Nodes, base: Nodes, theirs: Nodes) -> bool:
    """Whether a folder stays where something else is to be."""
    if theirs.get(path) != FOLDER:
        return False
    inner = {each for each in below(path, theirs) if each in kept}
    made = {each for each in [path, *below(path, theirs)] if theirs[each] == FOLDER and base.get(each) != FOLDER}
    return bool(inner or made)


def make(folder: Path, tree: Nodes) -> Path:
    folder.mkdir()
    for path, (kind, content, mode) in sorted(tree.items()):
        target = folder / path
        if kind == "folder":
            target.mkdir()
        elif kind == "link":
            target.symlink_to(content)
        else:
            target.write_text(content)
            target.chmod(mode)
    return folder


def read(folder: Path) -> Nodes:
    found: Nodes = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            inner = str(path.relative_to(folder))
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                found[inner] = ("link", os.readlink(path), 0)
            elif stat.S_ISDIR(status.st_mode):
                found[inner] = FOLDER
            else:
                found[inner] = ("file", path.read_text(), stat.S_IMODE(status.st_mode))
    return found


def merged(folder: Path, base: Nodes, own: Nodes, theirs: Nodes) -> tuple[Nodes, list[three_way.Overlap]]:
    """What the code makes of it, and what it says collides."""
    blobs = BlobStore(folder / "blobs")
    names = {"base": base, "own": own, "theirs": theirs}
    sides = {name: Tree(take(make(folder / name, tree), blobs).digest, blobs) for name, tree in names.items()}
    plan = three_way.plan(**sides)
    with opened(folder / "theirs") as root:
        merging.write(root, plan.steps, blobs)
    return read(folder / "theirs"), list(plan.overlaps)


@given(sides=st.tuples(EDITS, EDITS, EDITS))
@settings(max_examples=300)
def test_a_merge_is_what_the_model_says(sides: tuple[Edits, Edits, Edits]) -> None:
    before, mine, there = three(*sides)
    with tempfile.TemporaryDirectory() as name:
        found, overlaps = merged(Path(name), before, mine, there)
    expected, collided = model(before, mine, there)
    assert {each.path for each in overlaps} == collided
    assert found == expected
    for each in overlaps:
        for side, tree in ((each.base, before), (each.ours, mine), (each.theirs, there)):
            node = tree.get(each.path)
            assert (side is None) == (node is None or node == FOLDER)
            if side is not None and node is not None:
                assert (side.kind, side.size) == (node[0], len(node[1]))


@given(sides=st.tuples(EDITS, EDITS, EDITS))
@settings(max_examples=100)
def test_a_merge_that_was_done_leaves_nothing_to_do(sides: tuple[Edits, Edits, Edits]) -> None:
    before, mine, there = three(*sides)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        first, overlaps = merged(Path(one), before, mine, there)
        second, again = merged(Path(two), before, mine, first)
    assert second == first
    # Only what has no place still has none.
    assert {each.path for each in again} <= {each.path for each in overlaps}


FILE: Node = ("file", "1", 0o644)
OTHER: Node = ("file", "2", 0o644)


@pytest.mark.parametrize(
    ("own", "theirs", "result", "collided"),
    [
        pytest.param({"f": FILE}, {"f": OTHER}, {"f": OTHER}, [], id="only theirs"),
        pytest.param({"f": OTHER}, {"f": FILE}, {"f": OTHER}, [], id="only own"),
        pytest.param({"f": OTHER}, {"f": OTHER}, {"f": OTHER}, [], id="alike"),
        pytest.param({}, {"f": OTHER}, {}, ["f"], id="deleted and edited"),
        pytest.param({"f": OTHER}, {}, {"f": OTHER}, ["f"], id="edited and deleted"),
        pytest.param({"f": FOLDER, "f/g": FILE}, {"f": FILE}, {"f": FOLDER, "f/g": FILE}, [], id="a folder now"),
        pytest.param({"f": OTHER}, {"f": FOLDER, "f/g": FILE}, {"f": FOLDER, "f/g": FILE}, ["f"], id="no place"),
        pytest.param({"f": ("link", "/etc", 0)}, {"f": FILE}, {"f": ("link", "/etc", 0)}, [], id="a link now"),
        pytest.param({"f": ("file", "1", 0o755)}, {"f": FILE}, {"f": ("file", "1", 0o755)}, [], id="a mode"),
    ],
)
def test_each_case(own: Nodes, theirs: Nodes, result: Nodes, collided: list[str], tmp_path: Path) -> None:
    found, overlaps = merged(tmp_path, {"f": FILE}, own, theirs)
    assert (found, [each.path for each in overlaps]) == (result, collided)


def test_a_folder_that_leaves_has_no_file_of_theirs_leave_with_it(tmp_path: Path) -> None:
    base: Nodes = {"a": FOLDER, "a/b": FOLDER}
    found, overlaps = merged(tmp_path, base, {"a": FILE}, {"a": FOLDER, "a/b": OTHER})
    assert (found, [each.path for each in overlaps]) == ({"a": FOLDER, "a/b": OTHER}, ["a"])


def test_a_link_above_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    base: Nodes = {"d": FOLDER, "d/f": FILE}
    found, overlaps = merged(tmp_path, base, base | {"d/f": OTHER, "d/g": FILE}, {"d": ("link", str(outside), 0)})
    assert found == {"d": ("link", str(outside), 0)}
    assert [each.path for each in overlaps] == ["d/f", "d/g"]
    assert list(outside.iterdir()) == []


def test_who_renamed_what_the_other_edited_is_told(tmp_path: Path) -> None:
    moved: Nodes = {"g": FILE}
    for name, own, theirs in (("one", moved, {"f": OTHER}), ("two", {"f": OTHER}, moved)):
        (tmp_path / name).mkdir()
        _, (found,) = merged(tmp_path / name, {"f": FILE}, own, theirs)
        assert (found.path, found.renamed) == ("f", "g")
        assert (found.ours is None, found.theirs is None) == (own is moved, theirs is moved)


def test_names_that_are_no_text_are_merged_too(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    sides = []
    for name, files in (("base", {}), ("own", {b"\xff\\": b"1"}), ("theirs", {})):
        (tmp_path / name).mkdir()
        for path, content in files.items():
            (tmp_path / name / os.fsdecode(path)).write_bytes(content)
        sides.append(Tree(take(tmp_path / name, blobs).digest, blobs))
    plan = three_way.plan(*sides)
    with opened(tmp_path / "theirs") as root:
        merging.write(root, plan.steps, blobs)
    assert os.listdir(os.fsencode(tmp_path / "theirs")) == [b"\xff\\"]
    assert version(sides[1].entry(survey.raw(survey.text(b"\xff\\")))) is not None
