"""The house rules of DESIGN.md §2 that can be read off the source. Needs nothing but the standard library, so that it
also runs inside a sandbox: `python3 -m unittest tests.test_house`."""

from __future__ import annotations

import ast
import functools
import unittest
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("events", "projections", "sandboxes")
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "Makefile", "requirements.lock", ".ci", ".dev", ".gitignore"}
TOP_LEVEL |= {*ROOMS, "tests", "benchmarks", "docs"}
MOST_LINES = 400


def modules(room: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / room).rglob("*.py")):
        if "results" in path.parts:  # where benchmarks keep what they measure against
            continue
        yield path.relative_to(ROOT), parsed(path)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def typed(tree: ast.Module) -> dict[str, str]:
    """What is imported for type checkers only: under which name, what."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for block in tree.body
        if isinstance(block, ast.If) and checked(block)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def late(tree: ast.Module) -> dict[str, str]:
    """What `events.late` is asked to load when it is used: under which name, what."""
    constants = {ast.unparse(node.targets[0]): node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)}
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("late.bound", "late.names"):
            package, listed = (constants.get(ast.unparse(each), each) for each in node.args)
            room = ast.literal_eval(package) if isinstance(package, ast.Constant) else "__name__"
            for word in ast.literal_eval(listed).split():
                module, _, names = word.partition(":")
                if names:
                    found |= {name: f"{room}.{module}.{name}" for name in names.split(",")}
                else:
                    found[module] = f"{room}.{module}"
    return found


def run(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of it that are run: all but annotations, and what type checkers alone are shown."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or (isinstance(node, ast.If) and field == "body" and checked(node)):
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST):
                yield from run(each)


def checked(block: ast.If) -> bool:
    return ast.unparse(block.test) == "TYPE_CHECKING"


class House(unittest.TestCase):
    """What holds for every module."""

    def test_imports_only_point_down(self) -> None:
        for level, room in enumerate(ROOMS):
            above = tuple(f"sandkeep.{higher}" for higher in ROOMS[level + 1 :])
            for path, tree in modules(room):
                upward = [name for name in imported(tree) if name.startswith(above)]
                self.assertEqual(upward, [], f"{path} imports from a room above its own")

    def test_rooms_are_imported_by_their_full_names(self) -> None:
        for room in (*ROOMS, "tests", "benchmarks"):
            for path, tree in modules(room):
                bare = [name for name in imported(tree) if name.split(".")[0] in ROOMS]
                self.assertEqual(bare, [], f"{path} would make a second copy of a module")

    def test_every_module_says_what_it_is(self) -> None:
        for room in ROOMS:
            for path, tree in modules(room):
                self.assertTrue(ast.get_docstring(tree), f"{path} has no docstring")

    def test_everything_public_has_a_docstring(self) -> None:
        for room in ROOMS:
            for path, tree in modules(room):
                for node in tree.body:
                    if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                        self.assertTrue(ast.get_docstring(node), f"{path}: {node.name} has no docstring")

    def test_modules_are_small(self) -> None:
        for room in ROOMS:
            for path, _ in modules(room):
                lines = len((ROOT / path).read_text().splitlines())
                self.assertLessEqual(lines, MOST_LINES, f"{path} is more than one noun")

    def test_only_an_initialiser_names_what_is_public(self) -> None:
        for room in ROOMS:
            tree = ast.parse((ROOT / room / "__init__.py").read_bytes())
            listed = next(
                ast.literal_eval(node.value)
                for node in tree.body
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            )
            names = {
                alias.name
                for node in tree.body
                if isinstance(node, ast.ImportFrom) and node.module not in ("typing", "sandkeep.events")
                for alias in node.names
            }
            names |= {name.rpartition(".")[2] for name in typed(tree).values()}
            self.assertEqual(set(listed), names, f"{room}/__init__.py imports or lists something the other does not")

    def test_what_is_imported_late_is_what_type_checkers_see(self) -> None:
        for room in ROOMS:
            for path, tree in modules(room):
                seen, loaded = typed(tree), late(tree)
                loaded = {name: what.replace("__name__", f"sandkeep.{room}") for name, what in loaded.items()}
                self.assertEqual(loaded, {name: seen.get(name) for name in loaded}, path)

    def test_what_only_type_checkers_import_is_not_used(self) -> None:
        for room in ROOMS:
            for path, tree in modules(room):
                if path.name == "__init__.py":
                    continue
                names = [node for node in run(tree) if isinstance(node, ast.Name)]
                own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
                own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
                own |= {node.asname or node.name for node in run(tree) if isinstance(node, ast.alias)}
                used = {node.id for node in names} - own
                self.assertEqual(used & (typed(tree).keys() - late(tree).keys()), set(), f"{path} would not find it")

    def test_the_top_level_is_what_the_design_says(self) -> None:
        tracked = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") or path.name in TOP_LEVEL}
        self.assertEqual(tracked - {"dist"}, TOP_LEVEL)


if __name__ == "__main__":
    unittest.main()
