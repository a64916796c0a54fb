"""The worker behind the front: `python -P -m sandkeep.sandboxes.mcp_worker KEEP SESSION [AGENT]`.

It ends when its input does, having put its things in order.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from sandkeep.sandboxes import mcp_pipes

_ORDER_SECONDS = 15.0


def main() -> None:
    """Serve the front until it closes its end."""
    stdin, stdout = mcp_pipes.moved()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="sandkeep: %(message)s")
    path, session, agent = Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None

    import anyio

    from sandkeep.sandboxes.mcp_server import McpServer

    served = McpServer(path, agent=agent, session=session)
    pipes = mcp_pipes.Pipes(served.head, served.hung_up)
    served.on_open = pipes.tell

    async def serve() -> None:
        await pipes.open(stdin, stdout)
        await pipes.serve(served.serve)

    try:
        anyio.run(serve)
    finally:
        if not served.close(_ORDER_SECONDS):
            os._exit(0)  # the thread that waits for what goes on would hold us up as long


if __name__ == "__main__":
    main()
