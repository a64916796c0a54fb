"""What locks cost: uncontended beside the disk, and fifty processes contending for ten tasks. See `_locks`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import _locks
from benchmarks._harness import options, report, versions, workspace


def main() -> int:
    chosen = options(__doc__)
    with workspace() as folder:
        claims, floor = _locks.claims(folder, chosen.runs, chosen.scale)
    return report("locks", claims, versions("sandkeep", "lmdb"), floor, check=chosen.check)


if __name__ == "__main__":
    sys.exit(main())
