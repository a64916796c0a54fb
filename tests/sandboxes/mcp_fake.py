"""A worker that only plays one, and a front before it: `mcp_fake.py worker FOLDER`, `mcp_fake.py front FOLDER`.

It answers `echo` with its number and what it was given, and does as other methods say: crash, hang, never answer. How
often it was started, and what it was given, stands in the folder."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from sandkeep.sandboxes.mcp_breaker import Breaker
from sandkeep.sandboxes.mcp_front import Front


def say(**message: Any) -> None:
    """Tell the front something."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
    sys.stdout.flush()


def work(folder: Path) -> None:
    """Serve until the input ends."""
    with open(folder / "starts", "a") as file:
        file.write(f"{os.getpid()}\n")
    number = len((folder / "starts").read_text().splitlines())
    if (folder / "broken").exists():
        sys.exit(3)
    say(method="sandkeep/alive", params={"head": number * 10})
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("method") == "sandkeep/ping":
            say(method="sandkeep/alive", params={"head": number * 10})
            continue
        with open(folder / "given", "a") as file:
            file.write(line)
        meta = message.get("params", {}).get("_meta", {})
        first = not meta.get("sandkeep/again")
        match message.get("method"):
            case "crash" if first or message["params"].get("always"):
                say(method="notifications/progress", params={"progressToken": meta.get("progressToken"), "progress": 5})
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang" if first:
                os.kill(os.getpid(), signal.SIGSTOP)
            case "ask":
                say(id=1, method="elicitation/create", params={"message": "?"})
            case "large":
                say(id=message["id"], result={"text": "x" * message["params"]["size"]})
            case "never":
                continue
            case _ if "id" in message:
                say(method="notifications/progress", params={"progressToken": meta.get("progressToken"), "progress": 2})
                say(id=message["id"], result={"worker": number, "meta": meta})
    (folder / "ended").touch()
    time.sleep(0.1)


def main() -> None:
    """The one or the other."""
    folder = Path(sys.argv[2])
    if sys.argv[1] == "worker":
        work(folder)
    else:
        command = [sys.executable, "-P", __file__, "worker", os.fspath(folder)]
        Front(command, heartbeat=0.2, patience=2.0, breaker=Breaker(most=4, window=60.0, rest=1.0)).run()


if __name__ == "__main__":
    main()
