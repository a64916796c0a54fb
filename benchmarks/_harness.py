"""What all benchmarks share: alternated runs, peers in environments of their own, the table and the JSON file.

A benchmark of the area AREA prints a table and writes `benchmarks/results/AREA.json`, a list of `Claim`s. Both sides
of a claim run in turn, ours first, so that they see the same minute of the same machine; what is compared are the
medians. Neither the progress bar nor a peer that waits does anything while something is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MIN_RUNS = 5

console = Console(width=None if sys.stdout.isatty() else 110)


class Claim(msgspec.Struct, frozen=True):
    """`ours` and `peer` are medians of `runs` runs; `spread` is (largest - smallest) / median of ours.

    The claim holds when `ratio`, ours by peer, is at least `bar`, or at most if lower is better.
    """

    claim: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    bar: float
    better: Literal["higher", "lower"]
    holds: bool
    runs: int
    spread: float


def claim(
    text: str,
    unit: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    peer_name: str,
    bar: float,
    better: Literal["higher", "lower"] = "higher",
) -> Claim:
    """The claim `text` on the values that the runs of both sides gave."""
    middle, beside = statistics.median(ours), statistics.median(peer)
    ratio = middle / beside
    holds = ratio >= bar if better == "higher" else ratio <= bar
    spread = (max(ours) - min(ours)) / middle
    return Claim(text, unit, middle, beside, peer_name, ratio, bar, better, holds, len(ours), spread)


def options(doc: str | None) -> argparse.Namespace:
    """The command line of every benchmark: `scale`, `runs` and `check`."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the size of each run")
    parser.add_argument("--runs", type=int, default=7, help=f"runs of each side, at least {MIN_RUNS}")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a claim does not hold")
    chosen = parser.parse_args()
    if chosen.scale <= 0 or chosen.runs < MIN_RUNS:
        parser.error(f"--scale must be above 0, --runs at least {MIN_RUNS}")
    return chosen


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder for one benchmark's data, on the repository's disk, removed afterwards."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS, prefix=".data-") as folder:
        yield Path(folder)


def alternate(runs: int, sides: Mapping[str, Callable[[], float]], label: str) -> dict[str, list[float]]:
    """What each of `sides` returned in each run: all of them in turn, `runs` times."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    columns = TextColumn("{task.description:<60}"), BarColumn(), TimeElapsedColumn()
    if not console.is_terminal:
        console.print(label)
    # Drawn between the runs only: a thread that draws would take its time from what is measured.
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(label, total=runs * len(sides))
        for _ in range(runs):
            for name, side in sides.items():
                progress.update(task, description=f"{label}: {name}", refresh=True)
                gc.collect()
                values[name].append(side())
                progress.update(task, advance=1, refresh=True)
    return values


def sync_floor(folder: Path, count: int) -> float:
    """How many 256-byte appends a second, each followed by its own fdatasync, the disk under `folder` takes."""
    chunk = bytes(256)
    file = os.open(folder / "floor", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        started = time.perf_counter()
        for _ in range(count):
            os.write(file, chunk)
            os.fdatasync(file)
        return count / (time.perf_counter() - started)
    finally:
        os.close(file)


def environment(group: str) -> Path:
    """The Python of an environment that holds the dependency group `group` and nothing else; kept for later runs."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted: list[str] = tomllib.load(file)["dependency-groups"][group]
    folder = RESULTS / ".peers" / group
    python, stamp = folder / "bin" / "python", folder / "stamp.json"
    content = json.dumps([sys.version, wanted])
    if not stamp.is_file() or stamp.read_text() != content:
        with console.status(f"installing {', '.join(wanted)}"):
            _run(sys.executable, "venv", "--clear", os.fspath(folder))
            _run(os.fspath(python), "pip", "install", "--disable-pip-version-check", *wanted)
        stamp.write_text(content)
    return python


def _run(python: str, module: str, *arguments: str) -> None:
    command = [python, "-I", "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"benchmark: a peer cannot be installed:\n{done.stdout}")


class Peer:
    """A script of `benchmarks/peers` running in the environment of `group`: a line of JSON in, a line of JSON out."""

    def __init__(self, script: str, group: str, *arguments: str) -> None:
        path = ROOT / "benchmarks" / "peers" / f"{script}.py"
        self._process = subprocess.Popen(
            [environment(group), "-I", path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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


def versions(*packages: str) -> dict[str, str]:
    """What is measured: this Python, and the installed `packages`."""
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def report(area: str, claims: Sequence[Claim], measured: Mapping[str, str], *, check: bool) -> int:
    """Print and write `claims`; the exit status, which is 1 if `check` is set and one of them does not hold."""
    table = Table(title=f"bench-{area}", caption=" · ".join(f"{name} {number}" for name, number in measured.items()))
    table.add_column("claim, and beside what")
    for heading in ("ours", "peer", "ratio", "bar", "spread", "holds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in claims:
        table.add_row(
            f"{row.claim}, {row.unit}\n[dim]{row.peer_name}[/]",
            f"{row.ours:,.0f}",
            f"{row.peer:,.0f}",
            f"{row.ratio:.2f}",
            f"{'≥' if row.better == 'higher' else '≤'} {row.bar:.2f}",
            f"{row.spread:.0%}",
            "[green]yes[/]" if row.holds else "[red]no[/]",
        )
    console.print(table)
    target = RESULTS / f"{area}.json"
    target.write_bytes(msgspec.json.format(msgspec.json.encode(claims)) + b"\n")
    console.print(
        f"medians of {claims[0].runs} alternated runs; written to {target.relative_to(ROOT)}", highlight=False
    )
    return int(check and not all(row.holds for row in claims))
