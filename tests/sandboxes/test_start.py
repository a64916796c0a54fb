"""What is not loaded: `sandkeep --help` and questions about tasks are answered without what runs sandboxes. How long
they take is for `make bench-doors`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandkeep.sandboxes import Keep

HEAVY = {"asyncio", "cryptography", "docker", "mcp", "pydantic", "reactivex", "requests", "rich"}
QUESTIONS = {
    "list-tasks": [],
    "show-task": ["TASK"],
    "find-task": ["words"],
    "task-history": ["TASK"],
    "task-executions": ["TASK"],
    "task-decisions": ["TASK"],
    "task-stats": ["TASK"],
    "locks": [],
    "list-checkpoints": ["TASK"],
    "changes": ["--from", "0"],
    "conflicts": ["TASK"],
}
CODE = """
import sys
from sandkeep.sandboxes.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def loaded(*arguments: str, cwd: Path) -> set[str]:
    """The packages that are loaded once the command line has done this, which has to succeed."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", CODE, *arguments],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
        capture_output=True,
        text=True,
        check=True,
    )
    status, *packages = done.stderr.split()
    assert status == "0", done.stderr
    assert done.stdout
    return set(packages)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a keep with one task that has a checkpoint and a lock; `task` is a file with its id."""
    folder = tmp_path_factory.mktemp("start")
    with Keep.init(folder / ".sandkeep") as keep:
        task = keep.create_task("words")
        task.checkpoint("one")
        task.lock(lease=3600.0)
        (folder / "task").write_text(task.id)
    return folder


def test_help_loads_nothing_that_does_anything(tmp_path: Path) -> None:
    everything = loaded("--help", cwd=tmp_path) | loaded("create-task", "--help", cwd=tmp_path)
    assert not everything & (HEAVY | {"lmdb"})


@pytest.mark.engine
@pytest.mark.parametrize("verb", QUESTIONS)
def test_a_question_loads_nothing_that_runs_sandboxes(verb: str, kept: Path) -> None:
    task = (kept / "task").read_text()
    arguments = [task if word == "TASK" else word for word in QUESTIONS[verb]]
    packages = loaded(verb, *arguments, "--json", cwd=kept)
    assert "lmdb" in packages
    assert not packages & HEAVY


@pytest.mark.engine
def test_a_shell_is_answered_without_what_runs_sandboxes(kept: Path) -> None:
    packages = loaded("completion", "bash", "--", "show-task", "", cwd=kept)
    assert "lmdb" in packages
    assert not packages & HEAVY
