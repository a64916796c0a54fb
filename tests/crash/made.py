"""A keep that was made is there after a power failure: `made FOLDER`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from sandkeep.sandboxes import Keep

from .disk import Disk
from .recorder import Recorder


def main() -> None:
    root = Path(sys.argv[1])
    root.mkdir()
    recorder = Recorder(root)
    with recorder.running():
        Keep.init(root / "keep", actor="me").close()
    disk = Disk(512)
    for call in recorder.calls:
        disk.apply(call)
    wanted = {path: (root / path).read_bytes() for path in ("keep/keep.toml", "keep/keys/audit.pem")}
    states = list(disk.states(random.Random(0), 100))
    assert len(states) == 100
    for state in states:
        assert {path: state[path].content for path in wanted if path in state} == wanted
        assert "keep/log/data.mdb" in state
