"""A process of its own for the tests of the log and the blobs: `worker.py VERB FOLDER ARGUMENT [DOORBELLS]`.

A verb that begins with "journal-" is for the log and the journal in FOLDER. It prints "ready", waits for a line, and
then prints one line for each append that was acknowledged.
"""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

from sandkeep.events import BlobStore, Bus, LmdbLog, LogUnavailable, Subscription
from sandkeep.events import catalogue as ev


def main() -> None:
    verb, path, argument, *doorbells = sys.argv[1:]
    journaled, verb = verb.startswith("journal-"), verb.removeprefix("journal-")
    if verb == "blob":
        print("ready", flush=True)
        sys.stdin.readline()
        print(BlobStore(Path(path)).put(bytes(int(argument))), flush=True)
        return
    if journaled:
        log: LmdbLog[None] = LmdbLog(Path(path) / "log", journal=Path(path) / "journal", segment_bytes=5000)
    else:
        log = LmdbLog(Path(path), doorbells=Path(doorbells[0]) if doorbells else None)
    print("ready", flush=True)
    sys.stdin.readline()
    match verb:
        case "append":
            for number in range(int(argument)):
                append(log, f"{number}")
        case "forever":
            number = 0
            while True:
                append(log, f"{argument}-{number}")
                number += 1
        case "listen":
            Bus(log).live().subscribe(lambda record: print(record.position, flush=True))
            threading.Event().wait()
        case "subscribe":
            place = Path(argument)
            Subscription(
                log, place.parent, place.name, lambda record: print(record.position, flush=True), poll_seconds=0.01
            ).run()
        case "hold-readers":
            held = [log._layout.env.begin() for _ in range(int(argument))]
            print("held", flush=True)
            threading.Event().wait()
            del held
        case "full-disk":
            size = (Path(path) / "data.mdb").stat().st_size
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            try:
                while True:
                    append(log, argument * 1000)
            except LogUnavailable:
                print("refused", flush=True)
            try:
                log.head()
            except LogUnavailable:
                print("closed", flush=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        case "full-disk-snapshot":
            for _ in range(50):
                append(log, argument * 1000)
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
            try:
                log.snapshot(Path(path).with_name("copy"))
            except LogUnavailable:
                print("not copied", log.head().position, flush=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.close()


def append(log: LmdbLog[None], word: str) -> None:
    print(log.append("task/shared", [ev.TaskCompleted(summary=word)], actor="worker").first, flush=True)


if __name__ == "__main__":
    main()
