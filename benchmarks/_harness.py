"""What all benchmarks share: alternated runs, the disk's floor, the table and the JSON file.

A benchmark of the area AREA prints a table and writes `benchmarks/results/AREA.json`, a list of `Claim`s. Both sides
of a claim run in turn, ours first, so that they see the same minute of the same machine; what is compared are the
medians. Neither the progress bar nor a peer that waits does anything while something is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

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


def absolute(
    text: str, unit: str, ours: Sequence[float], bar: float, *, better: Literal["higher", "lower"] = "higher"
) -> Claim:
    """The claim that `ours` is not worse than `bar`, whatever others do."""
    return claim(text, unit, ours, [bar], peer_name=f"the bar: {bar:,.0f} {unit}", bar=1.0, better=better)


def options(doc: str | None, parts: Sequence[str] = ()) -> argparse.Namespace:
    """The command line of every benchmark: `scale`, `runs` and `check`; of one that has `parts`, `only` instead of
    `scale`, and with that as few runs as are wanted, for a quick look."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    if parts:
        parser.add_argument("--only", choices=parts, action="append", help="nothing but this; may be repeated")
    else:
        parser.add_argument("--scale", type=float, default=1.0, help="factor on the size of each run")
    parser.add_argument("--runs", type=int, default=MIN_RUNS if parts else 7, help=f"of each side, at least {MIN_RUNS}")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a claim does not hold")
    chosen = parser.parse_args()
    least = 1 if parts and chosen.only else MIN_RUNS
    if chosen.runs < least or (not parts and chosen.scale <= 0):
        parser.error(f"--scale must be above 0, --runs at least {least}")
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


def versions(*packages: str) -> dict[str, str]:
    """What is measured: this Python, and the installed `packages`; and how busy the machine was before."""
    load = f"{os.getloadavg()[0]:.2f}"
    return {"python": platform.python_version(), **{package: version(package) for package in packages}, "load": load}


def report(
    area: str,
    claims: Sequence[Claim],
    measured: Mapping[str, str],
    floor: Sequence[float],
    *,
    check: bool,
    missing: Sequence[str] = (),
) -> int:
    """Print and write `claims`, and print how many fdatasyncs a second the disk did meanwhile, by run, and what is
    `missing`; the exit status, which is 1 if `check` is set and something does not hold or is missing."""
    middle = statistics.median(floor)
    pace = f"{middle:,.0f} a second, spread {(max(floor) - min(floor)) / middle:.0%}"
    measured = {**measured, "fdatasync of 256 B": pace}
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
            f"{'≥' if row.better == 'higher' else '≤'} {row.bar:.2f}" if row.bar else "none",
            f"{row.spread:.0%}",
            "[green]yes[/]" if row.holds else "[red]no[/]",
        )
    console.print(table)
    for text in missing:
        console.print(f"[red]not measured[/]: {text}", highlight=False)
    target = RESULTS / f"{area}.json"
    target.write_bytes(msgspec.json.format(msgspec.json.encode(claims)) + b"\n")
    console.print(
        f"medians of {claims[0].runs} alternated runs; written to {target.relative_to(ROOT)}", highlight=False
    )
    return int(check and (bool(missing) or not all(row.holds for row in claims)))
