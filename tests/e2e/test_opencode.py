"""An agent finds us: what `sandkeep install` writes starts our server, and real OpenCode is told its tools by it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from sandkeep.sandboxes import Keep, clients, installation, jsonc
from sandkeep.sandboxes.vocabulary import VERBS

from ..crash.support import LONG
from ..sandboxes.support import SCRIPT

TOOLS = {verb.tool for verb in VERBS if verb.tool}
OPENCODE = "opencode-ai@1.18.33"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a keep, for which OpenCode was told of a server that writes down what it answers."""
    folder = tmp_path / "project"
    Keep.init(folder / ".sandkeep").close()
    program = tmp_path / "sandkeep"
    program.write_text(f'#!/bin/sh\n"{SCRIPT}" "$@" | tee -a "{tmp_path}/answers"\n')
    program.chmod(0o755)
    monkeypatch.setattr(clients, "program", lambda *, user: str(program))
    installation.install(["opencode"], project=folder)
    return folder


def tools(answers: Path) -> set[str]:
    """The tools that the server has listed."""
    found: set[str] = set()
    for line in answers.read_text().splitlines():
        listed = json.loads(line).get("result", {}).get("tools", [])
        found |= {tool["name"] for tool in listed}
    return found


def test_what_install_writes_starts_our_server(project: Path, tmp_path: Path) -> None:
    found = jsonc.parse((project / "opencode.json").read_text())
    assert isinstance(found, dict)
    servers = found["mcp"]
    assert isinstance(servers, dict)
    entry = servers["sandkeep"]
    assert clients.is_ours(entry)
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a test", "version": "1"}}
    asked = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
    ]
    with subprocess.Popen(clients.argv(entry), cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for message in asked:
            server.stdin.write(json.dumps(message).encode() + b"\n")
        server.stdin.flush()
        while json.loads(server.stdout.readline()).get("id") != 2:
            pass
        server.stdin.close()
        assert server.wait(60) == 0
    assert tools(tmp_path / "answers") == TOOLS


if LONG:  # npm brings 350 MB

    def test_opencode_lists_our_server_and_its_tools_as_connected(project: Path, tmp_path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            npm = ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, OPENCODE]
            subprocess.run(npm, check=True, capture_output=True)
            environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
            done = subprocess.run(
                [f"{folder}/node_modules/.bin/opencode", "mcp", "list"],
                cwd=project,
                env=environment | {"HOME": folder},
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            )
        said = done.stdout + done.stderr
        assert "sandkeep" in said, said
        assert "connected" in said, said
        assert tools(tmp_path / "answers") == TOOLS
