"""A process that judges damaged keeps: `judge.py ORIGINAL SCRATCH SEED ROUNDS`. It prints a line a round, and "done".

Each round damages one file of the log or of its journal in a copy of the keep, and asks `verify` and `recover`. Since
the other copy is whole, nothing may be lost, no answer may be wrong, and this process must not die of it.
"""

from __future__ import annotations

import random
import shutil
import sys
from contextlib import closing
from pathlib import Path

from sandkeep.events import LmdbLog, LogUnavailable, Record
from sandkeep.events import catalogue as ev
from sandkeep.events.recovery import Mode, recover
from sandkeep.events.verify import verify, verify_journal

PAGE = 4096


def damage(path: Path, chance: random.Random) -> str:
    """Damage a file in a way that is told."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(max(1, len(content)))
    kind = chance.choice(["flip", "flip", "flips", "zero", "random", "cut", "stale"])
    match kind:
        case "flip" | "flips":
            for _ in range(1 if kind == "flip" else 30):
                if content:
                    at = chance.randrange(len(content))
                    content[at] ^= 1 << chance.randrange(8)
        case "cut":
            del content[at:]
        case _:
            start = at // PAGE * PAGE
            other = chance.randrange(max(1, len(content))) // PAGE * PAGE
            size = len(content[start : start + PAGE])
            new = {"zero": bytes(size), "random": chance.randbytes(size), "stale": content[other : other + size]}[kind]
            content[start : start + len(new)] = new
    path.write_bytes(content)
    return f"{path.name} {kind} {at}"


def read(folder: Path) -> list[Record]:
    with closing(LmdbLog[None](folder / "log", journal=folder / "journal")) as log:
        return list(log.read())


def judge(folder: Path, wanted: list[Record]) -> str:
    """What came of a damaged keep. Raises `AssertionError` for what must not be."""
    report = verify(folder / "log", deep=True)
    detected = not report.ok or verify_journal(folder / "journal", report, deep=True) != ()
    done = recover(folder, Mode.STRICT, actor="judge")
    assert done.ok
    found = read(folder)
    assert found[: len(wanted)] == wanted
    assert [type(record.event) for record in found[len(wanted) :]] == [ev.LogRecovered] * done.recovered
    with closing(LmdbLog[None](folder / "log", journal=folder / "journal")) as log:
        for record in wanted:
            events = [record.event]
            receipt = log.append(record.stream, events, actor="again", key=record.key)
            assert receipt.repeated
            assert (receipt.first, receipt.revision) == (record.position, record.revision)
        try:
            for number in range(5):
                log.append("task/new", [ev.TaskCompleted(summary=f"{number}" * 3000)], actor="judge")
        except LogUnavailable:
            late = True
        else:
            late = False
    report = verify(folder / "log", deep=True)
    if late or not report.ok:  # damage to the list of free pages, which only writing reads
        assert recover(folder, Mode.STRICT, actor="judge").ok
        assert read(folder)[: len(wanted)] == wanted
        report = verify(folder / "log", deep=True)
    assert report.ok, report.damage
    return f"{'detected' if detected else 'harmless'}, {'recovered' if done.recovered else 'left'}"


def main() -> None:
    original, scratch, seed, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    wanted = read(original)
    for number in range(seed, seed + rounds):
        chance = random.Random(number)
        shutil.copytree(original, scratch)
        files = sorted(path for path in scratch.rglob("*") if path.is_file() and path.stat().st_size)
        print(number, end=" ", flush=True)
        print(damage(chance.choice(files), chance), end=": ", flush=True)
        print(judge(scratch, wanted), flush=True)
        shutil.rmtree(scratch)
    print("done")


if __name__ == "__main__":
    main()
