"""The real server, with a front that lets workers die as often as a test likes: `mcp_serve.py KEEP AGENT`."""

from __future__ import annotations

import secrets
import sys

from sandkeep.sandboxes.mcp_breaker import Breaker
from sandkeep.sandboxes.mcp_front import Front

if __name__ == "__main__":
    command = [
        sys.executable,
        "-P",
        "-m",
        "sandkeep.sandboxes.mcp_worker",
        sys.argv[1],
        secrets.token_hex(8),
        sys.argv[2],
    ]
    Front(command, breaker=Breaker(most=10**6, window=1.0)).run()
