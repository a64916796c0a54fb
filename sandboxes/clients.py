"""The agents that sandkeep can be installed for: where each keeps its configuration, and what it wants to read there.

The formats are the clients' own: OpenCode's `mcp` (the first generation's, which the second reads too), `mcpServers` of
Claude Code and Cursor, Codex's `mcp_servers`. A project's files are often shared by its repository, so they name our
program without its folder where the shell finds it like that; a user's files always name the folder, because what is
started from a desktop may have another search path.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import msgspec

from sandkeep.sandboxes.toml_table import Setting

SERVER = "sandkeep"
"""What our server is called in every configuration."""

_PROGRAM = "sandkeep"
_START_SECONDS, _CALL_SECONDS = 30, 600


class Client(msgspec.Struct, frozen=True):
    """One agent. Of `files` the first that is there is used, or else the last; a path that begins with `~` is of the
    user, others are below a project. `commands` is empty if it has no commands of that form."""

    name: str
    title: str
    program: str
    path: tuple[str, ...]
    project_files: tuple[str, ...]
    user_files: tuple[str, ...]
    project_traces: tuple[str, ...]
    user_traces: tuple[str, ...]
    project_commands: str = ""
    user_commands: str = ""

    @property
    def is_toml(self) -> bool:
        """Whether its configuration is TOML, and not JSON."""
        return self.project_files[-1].endswith(".toml")


CLIENTS = (
    Client(
        "opencode",
        "OpenCode",
        "opencode",
        ("mcp", SERVER),
        ("opencode.jsonc", "opencode.json"),
        ("~/.config/opencode/opencode.jsonc", "~/.config/opencode/opencode.json"),
        (".opencode", "opencode.json", "opencode.jsonc"),
        ("~/.config/opencode",),
        ".opencode/commands",
        "~/.config/opencode/commands",
    ),
    Client(
        "claude-code",
        "Claude Code",
        "claude",
        ("mcpServers", SERVER),
        (".mcp.json",),
        ("~/.claude.json",),
        (".claude", ".mcp.json", "CLAUDE.md"),
        ("~/.claude", "~/.claude.json"),
        ".claude/commands",
        "~/.claude/commands",
    ),
    Client(
        "codex",
        "Codex",
        "codex",
        ("mcp_servers", SERVER),
        (".codex/config.toml",),
        ("~/.codex/config.toml",),
        (".codex",),
        ("~/.codex",),
    ),
    Client(
        "cursor",
        "Cursor",
        "cursor",
        ("mcpServers", SERVER),
        (".cursor/mcp.json",),
        ("~/.cursor/mcp.json",),
        (".cursor",),
        ("~/.cursor",),
    ),
)

Entry = dict[str, Setting | bool]


def home(path: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Where a path that begins with `~` is, by the variables that the clients themselves go by."""
    for beginning, variable in (("~/.config/", "XDG_CONFIG_HOME"), ("~/.codex/", "CODEX_HOME")):
        if path.startswith(beginning) and (folder := environment.get(variable)):
            return Path(folder) / path.removeprefix(beginning)
    if folder := environment.get("CLAUDE_CONFIG_DIR"):
        if path == "~/.claude.json":
            return Path(folder) / ".claude.json"
        if path == "~/.claude" or path.startswith("~/.claude/"):
            return Path(folder) / path.removeprefix("~/.claude").removeprefix("/")
    return Path(environment.get("HOME") or Path.home()) / path.removeprefix("~/")


def traces(client: Client, project: Path) -> list[str]:
    """What shows that somebody uses this client: files in the project or of the user, and its program."""
    found = [name for name in client.project_traces if os.path.lexists(project / name)]
    found += [name for name in client.user_traces if os.path.lexists(home(name))]
    return found + [f"the program {client.program}"] * (shutil.which(client.program) is not None)


def program(*, user: bool) -> str:
    """What a configuration calls our program: its path, unless a project's file can do with the name."""
    found = shutil.which(_PROGRAM)
    called = Path(sys.argv[0]).absolute()
    beside = Path(sys.executable).with_name(_PROGRAM)
    # Used as a library, nobody called our program; it lies beside the interpreter, if it is installed as usual.
    path = next((each for each in (called, beside) if each.name == _PROGRAM and each.is_file()), Path(found or beside))
    named = found is not None and os.path.realpath(found) == os.path.realpath(path)
    return _PROGRAM if named and not user else os.fspath(path)


def entry(client: Client, *, keep: Path | None, project: Path | None) -> Entry:
    """What the client's configuration says of our server: in that of a `project`, or of the user if there is none. The
    `keep` is `.sandkeep` in the folder that the client works in, unless one is named."""
    arguments = ["mcp"]
    if keep is not None and project is not None and keep.is_relative_to(project):
        arguments += ["--keep", _below(client, keep.relative_to(project))]
    elif keep is not None:
        arguments += ["--keep", os.fspath(keep)]
    elif client.name == "cursor":
        arguments += ["--keep", _below(client, Path(".sandkeep"))]
    command = program(user=project is None)
    if client.name == "opencode":
        return {"type": "local", "command": [command, *arguments], "enabled": True}
    if client.name == "claude-code":
        return {"type": "stdio", "command": command, "args": arguments}
    if client.name == "codex":
        times = {"startup_timeout_sec": _START_SECONDS, "tool_timeout_sec": _CALL_SECONDS}
        return {"command": command, "args": arguments, **times}
    return {"command": command, "args": arguments}


TUNED = ("enabled", "startup_timeout_sec", "tool_timeout_sec")
"""Settings that are the user's, once the entry is there."""


def argv(found: Mapping[str, object]) -> list[str]:
    """The command line that an entry starts; empty if it is none."""
    command, arguments = found.get("command"), found.get("args", [])
    words = [
        *(command if isinstance(command, list) else [command]),
        *(arguments if isinstance(arguments, list) else []),
    ]
    return [word for word in words if isinstance(word, str)] if all(isinstance(word, str) for word in words) else []


def is_ours(found: object) -> TypeGuard[Mapping[str, object]]:
    """Whether an entry starts our server, wherever our program lies."""
    line = argv(found) if isinstance(found, Mapping) else []
    return len(line) > 1 and Path(line[0]).name == _PROGRAM and line[1] == "mcp"


def _below(client: Client, path: Path) -> str:
    # Cursor starts servers in whatever folder it pleases; the others in the project's.
    return f"${{workspaceFolder}}/{path.as_posix()}" if client.name == "cursor" else path.as_posix()
