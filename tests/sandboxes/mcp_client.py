"""A client of the MCP server that says what it likes, for what the official one would never say."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATIENCE = 60.0


class Client:
    """A client by hand: what it is told is read line by line. `words` say which server to start."""

    def __init__(self, folder: Path, *words: str | os.PathLike[str], env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-P", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=None if env is None else os.environ | env,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self._begun = b""
        self._calls = 1000
        self._answers: dict[int | str | None, dict[str, Any]] = {}

    def send(self, **message: Any) -> None:
        self.write(json.dumps({"jsonrpc": "2.0"} | message).encode())

    def write(self, line: bytes) -> None:
        data = memoryview(line + b"\n")
        while data:
            data = data[self.stdin.write(data) :]

    def read(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\n" not in self._begun:
            assert select.select([self.stdout], [], [], max(until - time.monotonic(), 0))[0], "nothing is said"
            data = os.read(self.stdout.fileno(), 1 << 20)
            assert data, "the front has hung up"
            self._begun += data
        line, _, self._begun = self._begun.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def answer(self, number: int | str | None) -> dict[str, Any]:
        """The answer to a request; those that come before it are kept."""
        while number not in self._answers:
            if "method" not in (found := self.read()):
                self._answers[found["id"]] = found
        return self._answers.pop(number)

    def initialize(self) -> None:
        """Shake hands."""
        asked = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "by-hand", "version": "1"}}
        self.send(id="hello", method="initialize", params=asked)
        assert self.answer("hello")["result"]["serverInfo"]["name"] == "sandkeep"
        self.send(method="notifications/initialized")

    def send_call(self, number: int, tool: str, **arguments: Any) -> None:
        """Call a tool."""
        self.send(id=number, method="tools/call", params={"name": tool, "arguments": arguments})

    def call(self, tool: str, **arguments: Any) -> Any:
        """What a tool gives, which it has to."""
        self._calls += 1
        self.send_call(self._calls, tool, **arguments)
        result = self.answer(self._calls)["result"]
        assert not result.get("isError"), result["content"]
        return result["structuredContent"]

    def worker(self) -> int | None:
        """The worker that runs, if one does."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def kill_worker(self) -> None:
        """As the kernel would when memory is out."""
        if (worker := self.worker()) is not None:
            os.kill(worker, signal.SIGKILL)

    def close(self) -> None:
        """Hang up, and wait until the server has ended as it should."""
        self.stdin.close()
        assert self.process.wait(PATIENCE) == 0
        self.stdout.close()
