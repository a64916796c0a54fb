"""Workspaces of three sizes, as agents have them, made of packages from the registries.

S is a few Python packages; M is Django in a repository with its history, and a virtual environment; L is the
`node_modules` of big packages, two virtual environments, a SQLite file and noise, which nothing compresses. They are
made on first use, which for L takes minutes, and kept in `benchmarks/results`. Only what is asked for is pinned: what
that depends on may differ between two machines, the sides of a benchmark see the same.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks._harness import RESULTS, console

SMALL = ("pygments==2.19.2", "rich==14.1.0", "requests==2.32.5", "flask==3.1.2", "werkzeug==3.1.3")
DJANGO = "django==5.2.6"
TOOLS = ("numpy==2.3.3", "requests==2.32.5", "pygments==2.19.2")
SCIENCE = ("pandas==2.3.2", "sympy==1.14.0", "matplotlib==3.10.6")
SERVICES = (DJANGO, "sqlalchemy==2.0.43", "botocore==1.40.40", "mypy==1.18.2")
MODULES = (
    *("@mui/icons-material@5.18.0", "typescript@5.9.2", "webpack@5.101.3", "date-fns@4.1.0"),
    *("core-js@3.45.1", "antd@5.27.4", "rxjs@7.8.2", "eslint@9.36.0", "lodash@4.17.21", "react-scripts@5.0.1"),
)
DATABASE = "database.sqlite"
DATABASE_ROWS = 106_000
NOISE_FILES, NOISE_BYTES = 21, 5_000_000


def made(size: str) -> Path:
    """The workspace S, M or L, which is to be copied."""
    folder = RESULTS / ".workspaces" / size
    if not folder.is_dir():
        console.print(f"making workspace {size} from packages, which is kept in {folder.parent}", highlight=False)
        begun = folder.with_name(f"{size}-begun")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        _MAKERS[size](begun)
        begun.rename(folder)
    return folder


def files(folder: Path) -> list[Path]:
    """The regular files of a workspace that an edit can lie in the middle of, in order."""
    found = (Path(parent, name) for parent, _, names in os.walk(folder) if ".git" not in parent for name in names)
    return sorted(
        path for path in found if path.name != DATABASE and not path.is_symlink() and path.stat().st_size > 18
    )


def edit_database(folder: Path, chosen: random.Random) -> None:
    """Change some rows of the SQLite file, and add some."""
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        for _ in range(20):
            row = (chosen.randbytes(400).hex(), chosen.randrange(DATABASE_ROWS))
            connection.execute("UPDATE things SET text = ? WHERE id = ?", row)
        connection.executemany(
            "INSERT INTO things (text) VALUES (?)", [(chosen.randbytes(400).hex(),) for _ in range(20)]
        )
    connection.close()


def _small(folder: Path) -> None:
    _install(folder, *SMALL)


def _medium(folder: Path) -> None:
    _install(folder, DJANGO)
    settings = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "Django"), ("gc", "-q")):
        _run("git", "-C", folder, *settings, *command)
    _environment(folder / "environment", *TOOLS)


def _large(folder: Path) -> None:
    (folder / "package.json").write_text("{}\n")
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--legacy-peer-deps")
    _run("npm", "install", "--prefix", folder, *quiet, *MODULES)
    _environment(folder / "science", *SCIENCE)
    _environment(folder / "services", *SERVICES)
    chosen = random.Random(1)
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        connection.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, text TEXT)")
        rows = ((chosen.randbytes(500).hex(),) for _ in range(DATABASE_ROWS))
        connection.executemany("INSERT INTO things (text) VALUES (?)", rows)
    connection.close()
    (folder / "noise").mkdir()
    for number in range(NOISE_FILES):
        (folder / "noise" / f"{number}").write_bytes(chosen.randbytes(NOISE_BYTES))


def _environment(folder: Path, *packages: str) -> None:
    _run(sys.executable, "-m", "venv", folder)
    _run(folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages)


def _install(folder: Path, *packages: str) -> None:
    options = ("-q", "--disable-pip-version-check", "--root-user-action=ignore", "--no-deps", "--no-compile")
    _run(sys.executable, "-m", "pip", "install", *options, "--target", folder, *packages)


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        sys.exit(f"benchmark: a workspace cannot be made, since {command[0]} said:\n{done.stdout}")


_MAKERS: dict[str, Callable[[Path], None]] = {"S": _small, "M": _medium, "L": _large}
