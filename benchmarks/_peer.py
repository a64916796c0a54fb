"""Peers: scripts of `benchmarks/peers`, each running in an environment that holds what it measures and nothing else.

An environment holds one dependency group of `pyproject.toml`. It is made on first use, which takes up to a minute, and
kept in the user's cache folder, outside the repository, until the group or its Python changes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._harness import ROOT, console

Version = tuple[int, int]


class NoPython(Exception):
    """There is no Python that a peer could run on; the message names what to install."""


class Peer:
    """A script of `benchmarks/peers` running in the environment of `group`: a line of JSON in, a line of JSON out."""

    def __init__(self, script: str, group: str, *arguments: str, least: Version = (3, 11)) -> None:
        """Start it on a Python of at least version `least`. Raises `NoPython`."""
        path = ROOT / "benchmarks" / "peers" / f"{script}.py"
        self._process = subprocess.Popen(
            [environment(group, least), "-I", path, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *question: object) -> Any:
        """The peer's answer to `question`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"benchmark: the peer ended with status {self._process.wait()}; its message stands above")
        return json.loads(answer)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def environment(group: str, least: Version) -> Path:
    """The Python of an environment that holds the dependency group `group` and nothing else. Raises `NoPython`."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted: list[str] = tomllib.load(file)["dependency-groups"][group]
    base, version = _python(least)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "sandkeep" / "peers" / group
    python, stamp = folder / "bin" / "python", folder / "stamp.json"
    content = json.dumps([version, wanted])
    if not stamp.is_file() or stamp.read_text() != content:
        text = f"installing {', '.join(name.partition(';')[0] for name in wanted)} into {folder}"
        if not console.is_terminal:
            console.print(text, highlight=False)
        with console.status(text):
            _run(base, "venv", "--clear", os.fspath(folder))
            _run(os.fspath(python), "pip", "install", "--disable-pip-version-check", *wanted)
        stamp.write_text(content)
    return python


def _python(least: Version) -> tuple[str, str]:
    """The command and the version of the first Python found that is `least` or later: this one if it will do."""
    names = [f"python3.{minor}" for minor in range(least[1], least[1] + 6)]
    for candidate in [sys.executable, *filter(None, map(shutil.which, names)), *_pyenv(names)]:
        # A name on the path may be a shim that finds nothing behind it, so each is asked.
        script = "import sys, ensurepip, venv; print(*sys.version_info[:3], sep='.')"
        asked = subprocess.run([candidate, "-I", "-c", script], capture_output=True, text=True)
        found = asked.stdout.strip()
        if asked.returncode == 0 and tuple(map(int, found.split(".")[:2])) >= least:
            return candidate, found
    wanted = f"{least[0]}.{least[1]}"
    raise NoPython(f"no Python {wanted} or later with venv; install one, such as Debian's python{wanted}-venv")


def _pyenv(names: list[str]) -> Iterator[str]:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for name in names:
        yield from map(os.fspath, sorted(root.glob(f"versions/*/bin/{name}")))


def _run(python: str, module: str, *arguments: str) -> None:
    command = [python, "-I", "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"benchmark: a peer cannot be installed:\n{done.stdout}")
