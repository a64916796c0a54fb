"""What the verb does that serves agents: it starts the front, and the front a worker. It holds no logic."""

from __future__ import annotations

import os
import secrets
import sys
from typing import Any

from sandkeep.sandboxes.door import Door


def mcp(door: Door, *, agent: str | None = None) -> None:
    """Serve until the client hangs up; see `mcp_front`."""
    from sandkeep.sandboxes.mcp_front import Front

    path = os.path.abspath(door.path)
    words = [path, secrets.token_hex(2), *([] if agent is None else [agent])]
    Front([sys.executable, "-P", "-m", "sandkeep.sandboxes.mcp_worker", *words]).run()


def nothing(result: None, given: dict[str, Any]) -> None:
    """All was said to the client."""
