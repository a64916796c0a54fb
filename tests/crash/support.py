"""What the crash tests share: how long they go on, keeps, and what must hold of one afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from sandkeep.events import LmdbLog, Record, segment
from sandkeep.events import catalogue as ev
from sandkeep.events.segment import Entry
from sandkeep.events.verify import verify, verify_journal

LONG = bool(os.environ.get("SANDKEEP_CRASH"))
"""Whether this is `make test-crash`."""

WORKER = Path(__file__).with_name("worker.py")
SHM = Path("/dev/shm")

_RUN = "import sys; sys.path.append(sys.argv.pop(1)); from tests.crash import {0}; {0}.main()"


def command(module: object, *arguments: object) -> list[str]:
    """What runs a module of this package, by name and with arguments."""
    return [sys.executable, "-P", "-c", _RUN.format(module), str(Path(__file__).parents[2]), *map(str, arguments)]


def finish(errors: Path, *commands: tuple[object, ...]) -> list[str]:
    """Run modules of this package, by name and with arguments, all at once; what each wrote to its standard output.

    What they write to standard error goes to files in the folder `errors`, and its end is shown if one fails. Coverage
    is not measured in them: it makes them eight times as slow, and other tests reach the same lines.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    processes, outputs = [], []
    for number, each in enumerate(commands):
        with open(errors / f"errors-{number}", "w") as file:
            line = command(*each)
            processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=file, text=True, env=environment))
    for process in processes:
        outputs.append(process.communicate()[0])
    for number, process in enumerate(processes):
        words = (errors / f"errors-{number}").read_text().replace("\r", "\n").splitlines()
        said = "\n".join(words[-30:])
        assert process.returncode == 0, f"{commands[number]} ended with status {process.returncode}:\n{said}"
    return outputs


def opened(folder: Path, segment_bytes: int = 1 << 20) -> closing[LmdbLog[None]]:
    return closing(LmdbLog[None](folder / "log", journal=folder / "journal", segment_bytes=segment_bytes))


def word(record: Record) -> str:
    assert isinstance(record.event, ev.TaskCompleted)
    return record.event.summary.rstrip(".")


def acknowledged(folder: Path) -> dict[str, int]:
    """The position that each acknowledged word was given."""
    found: dict[str, int] = {}
    for path in (folder / "acks").iterdir():
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                position, text = line.split()
                found[text] = int(position)
    return found


def check(folder: Path) -> int:
    """Log and journal are whole and the same, and all that was acknowledged is there once. The number of those."""
    with opened(folder) as log:
        records = list(log.read())
        log_id = log.log_id
    report = verify(folder / "log", deep=True)
    assert report.ok, report.damage
    assert verify_journal(folder / "journal", report, deep=True) == ()
    places: dict[str, int] = {}
    for position, record in enumerate(records, 1):
        assert record.position == position
        assert places.setdefault(word(record), position) == position
    acks = acknowledged(folder)
    assert {text: places.get(text) for text in acks} == acks
    journaled = [
        record
        for path in segment.listed(folder / "journal")
        for entry in segment.found(path, log_id)
        if isinstance(entry, Entry)
        for record in entry.frame.records()
    ]
    assert journaled == records
    return len(acks)
