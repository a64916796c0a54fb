"""What the verb does that serves agents: it starts the front, and the front a worker. It holds no logic."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any

from sandkeep.sandboxes.door import Door


def mcp(door: Door, *, agent: str | None = None, http: int | None = None) -> None:
    """Serve until the client hangs up; see `mcp_front` and `mcp_http`."""
    path = os.path.abspath(door.path)
    if http is not None:
        from sandkeep.sandboxes import mcp_http
        from sandkeep.sandboxes.identity import identify

        identify(Path(path))
        mcp_http.serve(Path(path), http, agent, door.note)
        return
    from sandkeep.sandboxes.mcp_front import Front

    words = [path, secrets.token_hex(8), *([] if agent is None else [agent])]
    Front([sys.executable, "-P", "-m", "sandkeep.sandboxes.mcp_worker", *words]).run()


def nothing(result: None, given: dict[str, Any]) -> None:
    """All was said to the client."""
