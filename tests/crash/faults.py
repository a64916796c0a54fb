"""Let each call fail in turn: `faults WORKLOAD SCRATCH WAY ERROR SHARD SHARDS`, for the calls that this SHARD has.

WAY is that of a `Fault`, or "lasting". After each the keep is opened again and judged. It prints how many calls failed,
and how often that refused something; what is under way is written to standard error.
"""

from __future__ import annotations

import errno
import itertools
import logging
import shutil
import sys
from pathlib import Path
from typing import cast

from sandkeep.events import LogUnavailable

from .recorder import Fault, Way
from .states import Promises
from .workloads import WORKLOADS, Work


def main() -> None:
    name, scratch, error = sys.argv[1], Path(sys.argv[2]), sys.argv[4]
    lasting = sys.argv[3] == "lasting"
    way = cast("Way", "before" if lasting else sys.argv[3])
    shard, shards = map(int, sys.argv[5:7])
    logging.disable()  # that a segment is not compressed yet is told often
    failed = refused = 0
    for number in itertools.count(shard, shards):
        work = Work(scratch, Fault(number, getattr(errno, error), way, lasting))
        scratch.mkdir()
        print(f"\r{name}: {error} {way} call {number}", end="", file=sys.stderr, flush=True)
        try:
            WORKLOADS[name](work)
        except LogUnavailable:
            refused += 1
        promises = Promises()
        for call in work.calls:
            promises.apply(call)
        promises.judge(scratch, recovering=name == "recovered")
        shutil.rmtree(scratch)
        if work.made <= number:
            break
        failed += 1
    print(failed, refused)
