"""What checkpoints are measured beside: git with an index of its own, restic, `cp`, `tar` and `find`.

restic is installed with apt if it is missing, and stays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks._harness import console


class Git:
    """A repository beside a workspace, which it does not know of."""

    def __init__(self, folder: Path, tree: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.tree = tree
        self._ask("init", "-q")

    @staticmethod
    def version() -> str:
        return _output("git", "--version").split()[2]

    def take(self) -> str:
        """Record the workspace; returns the tree."""
        self._ask("add", "-A", "-f", ".")
        return self._ask("write-tree")

    def back(self, tree: str) -> None:
        """Make the workspace this tree."""
        self._ask("read-tree", "--reset", "-u", tree)
        self._ask("clean", "-ffdxq")

    def _ask(self, *arguments: str) -> str:
        settings = (
            *("core.compression=1", "gc.auto=0", "core.untrackedCache=true", "core.preloadIndex=true"),
            *("index.version=4", "core.autocrlf=false", f"core.excludesFile={os.devnull}"),
        )
        command = [
            "git",
            *(part for each in settings for part in ("-c", each)),
            f"--git-dir={self.folder / 'repository'}",
        ]
        environment = os.environ | {"GIT_INDEX_FILE": str(self.folder / "index")}
        return _output(*command, f"--work-tree={self.tree}", *arguments, cwd=self.tree, env=environment).strip()


class Restic:
    """A restic repository, and a cache of its own."""

    def __init__(self, folder: Path, tree: Path) -> None:
        folder.mkdir()
        self.repository = folder / "repository"
        self.tree = tree
        self._command = ["restic", "-q", "-r", str(self.repository), "--cache-dir", str(folder / "cache")]
        self._environment = os.environ | {"RESTIC_PASSWORD": "x"}
        _output(*self._command, "init", env=self._environment)

    @staticmethod
    def version() -> str:
        if shutil.which("restic") is None:
            console.print("installing restic (apt-get)")
            if subprocess.run(["apt-get", "install", "-y", "-qq", "restic"], capture_output=True).returncode:
                sys.exit("benchmark: restic is missing; as root, run: apt-get update; apt-get install restic")
        return _output("restic", "version").split()[1]

    def take(self) -> None:
        """Record the workspace."""
        _output(*self._command, "backup", "--host", "h", ".", cwd=self.tree, env=self._environment)

    def stored(self) -> float:
        """The blocks that the repository takes, in kilobytes."""
        return stored(self.repository)


def stored(folder: Path) -> float:
    """The blocks that a store takes, in kilobytes."""
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sum(path.stat().st_blocks for path in paths) * 512 / 1e3


def copy(tree: Path, to: Path) -> None:
    """Copy it to where nothing is."""
    _output("cp", "-a", str(tree), str(to))


def archive(tree: Path, to: Path) -> None:
    """Make an archive of it."""
    with subprocess.Popen(["tar", "-C", tree, "-cf", "-", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(["zstd", "-q", "-1", "-T2", "-f", "-o", to], stdin=tar.stdout, check=True)
    if tar.returncode:
        sys.exit("benchmark: tar failed; its message stands above")


def look(tree: Path) -> None:
    """Look at every file."""
    subprocess.run(["find", tree, "-printf", r"%s %T@ %C@\n"], stdout=subprocess.DEVNULL, check=True)


def _output(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, errors="replace")
    if done.returncode:
        sys.exit(f"benchmark: {command[0]} failed:\n{done.stderr}")
    return done.stdout
