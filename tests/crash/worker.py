"""A process to be killed: `worker.py FOLDER NAME SEGMENT_BYTES [FILE_BYTES]`.

It appends to the keep in FOLDER for ever, and writes a line `position word` to `FOLDER/acks/NAME` for each append that
was acknowledged. With FILE_BYTES no file may grow beyond it: then it ends with status 3 once an append was refused.
"""

from __future__ import annotations

import os
import random
import resource
import sys
from pathlib import Path

from sandkeep.events import LmdbLog, LogUnavailable
from sandkeep.events import catalogue as ev


def main() -> None:
    folder, name, segment_bytes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    log: LmdbLog[None] = LmdbLog(folder / "log", journal=folder / "journal", segment_bytes=segment_bytes)
    (folder / "acks").mkdir(exist_ok=True)
    acks = os.open(folder / "acks" / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    if len(sys.argv) > 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
    number = 0
    while True:
        word = f"{name}-{number}"
        # 3,900 bytes fill a page of the log, and more than a page of the journal: so that is the first to be full.
        events = [
            ev.TaskCompleted(summary=word + "." * random.choice((0, 300, 5000) if len(sys.argv) <= 4 else (3900,)))
        ]
        try:
            receipt = log.append(f"task/{number % 3}", events, actor=name, key=word)
        except LogUnavailable:
            # What is written at exit, as the measured coverage is, shall not be half.
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            sys.exit(3)
        os.write(acks, f"{receipt.first} {word}\n".encode())
        number += 1


if __name__ == "__main__":
    main()
