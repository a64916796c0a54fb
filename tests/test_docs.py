"""Every code block of the README and the docs is run, file by file, in a new git repository."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep import events, projections, sandboxes
from sandkeep.events import SandkeepError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN_ONLY = {"text", "json", "toml"}
# `make` in a block is only checked to have such a target: its targets run these tests.
SHIM = f'#!/bin/sh\nexec /usr/bin/env -u MAKEFLAGS "$(PATH=$OLD_PATH command -v make)" -n -C "{ROOT}" "$@" >/dev/null\n'

pytestmark = pytest.mark.engine


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(language, code) for language, code in BLOCK.findall(page.read_text()) if language not in SHOWN_ONLY]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A place to run blocks in: a git repository, with our programs and the shim on the path."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "make").write_text(SHIM)
    (programs / "make").chmod(0o755)
    repository = tmp_path / "repository"
    git = ("git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(repository))
    subprocess.run(("git", "init", "--quiet", str(repository)), check=True)
    subprocess.run((*git, "commit", "--quiet", "--allow-empty", "-m", "begin"), check=True)
    path = os.environ["PATH"]
    return os.environ | {"PATH": f"{programs}:{Path(sys.executable).parent}:{path}", "OLD_PATH": path}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_code_blocks_of_a_page_run(page: Path, environment: dict[str, str], tmp_path: Path) -> None:
    for language, code in blocks(page):
        assert language in ("python", "sh"), f"{page} has a block in {language!r}, which nothing runs"
        command = [sys.executable, "-P", "-c", code] if language == "python" else ["sh", "-eu", "-c", code]
        result = subprocess.run(
            command, cwd=tmp_path / "repository", env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{page}:\n{code}\n{result.stdout}\n{result.stderr}"


def errors(base: type[SandkeepError]) -> Iterator[type[SandkeepError]]:
    for error in base.__subclasses__():
        if error.__module__.startswith("sandkeep."):
            yield error
        yield from errors(error)


def test_every_error_code_is_listed_under_its_exit_status() -> None:
    for room in (events, projections, sandboxes):  # or errors of what is not loaded would not be known
        for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            importlib.import_module(module.name)
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `bad-usage`"))
    listed = [set(re.findall(r"`([a-z-]+)`", cell)) for cell in row.strip("|").split("|")]
    codes = {
        status: {error.code for error in errors(SandkeepError) if error.exit_status == status} for status in (1, 2)
    }
    # These two are the command line's own.
    assert listed == [codes[2] | {"bad-usage"}, codes[1] | {"os-error"}]


def test_there_are_blocks_to_run() -> None:
    assert {language for page in PAGES for language, _ in blocks(page)} == {"python", "sh"}
