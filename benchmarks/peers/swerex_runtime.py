"""SWE-ReX's remote runtime, as a peer of `benchmarks/sandboxes.py`; runs in an environment of its own.

Its server runs in a container beside ours, of the same image, and is asked over HTTP from the host, as its own Docker
deployment does. Reads a JSON list a line, an action and its arguments, and answers each with a line of JSON.

It runs commands in two ways: as a process of its own, with streams apart, as ours; and typed into a shell that stays,
which is what its agents use.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from importlib.metadata import version

# This package is in the peer's environment only, so there is nothing here that its types could be checked against.
from swerex.runtime.abstract import BashAction, Command, CreateBashSessionRequest  # type: ignore[import-not-found]
from swerex.runtime.remote import RemoteRuntime  # type: ignore[import-not-found]

PATIENCE_SECONDS = 60


async def serve(host: str, token: str) -> None:
    """Answer until there are no more questions."""
    runtime = RemoteRuntime(host=f"http://{host}", port=8000, auth_token=token)
    await runtime.wait_until_alive(timeout=PATIENCE_SECONDS)
    await runtime.create_session(CreateBashSessionRequest())
    for line in sys.stdin:
        action, *arguments = json.loads(line)
        if action == "open":
            print(json.dumps({"swe-rex": version("swe-rex")}), flush=True)
            continue
        taken: list[float] = []
        for _ in range(arguments[0]):
            begun = time.perf_counter()
            if action == "process":
                done = await runtime.execute(Command(command=["true"]))
            else:
                done = await runtime.run_in_session(BashAction(command="true"))
            taken.append((time.perf_counter() - begun) * 1e6)
            assert done.exit_code == 0
        print(json.dumps(taken), flush=True)
    await runtime.close()


logging.disable()
asyncio.run(serve(*sys.argv[1:]))
