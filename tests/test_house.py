"""The house rules of DESIGN.md §2 that can be read off the source. Needs nothing but the standard library, so that it
also runs inside a sandbox: `python3 -m unittest tests.test_house`."""

from __future__ import annotations

import ast
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
        yield path.relative_to(ROOT), ast.parse(path.read_bytes())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


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
            names = {
                alias.asname or alias.name
                for node in tree.body
                if isinstance(node, ast.ImportFrom) and node.module != "__future__"
                for alias in node.names
            }
            listed = next(
                ast.literal_eval(node.value)
                for node in tree.body
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            )
            self.assertEqual(set(listed), names, f"{room}/__init__.py imports or lists something the other does not")

    def test_the_top_level_is_what_the_design_says(self) -> None:
        tracked = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") or path.name in TOP_LEVEL}
        self.assertEqual(tracked - {"dist"}, TOP_LEVEL)


if __name__ == "__main__":
    unittest.main()
