"""Installing for agents: their files hold our entry, are theirs in everything else, and are as before in the end."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings

from sandkeep.events import BadInput
from sandkeep.sandboxes import clients, config_file, installation, integrations, jsonc, slash
from sandkeep.sandboxes.errors import ClientNotFound, ConfigRefused
from sandkeep.sandboxes.vocabulary import VERBS

from .support import Cli
from .test_jsonc import texts as json_texts
from .test_toml_table import texts as toml_texts
from .test_toml_table import valid

NAMES = [client.name for client in clients.CLIENTS]
FILES = {
    "opencode": "opencode.json",
    "claude-code": ".mcp.json",
    "codex": ".codex/config.toml",
    "cursor": ".cursor/mcp.json",
}


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, in which nothing is."""
    for variable in ("XDG_CONFIG_HOME", "CODEX_HOME", "CLAUDE_CONFIG_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project, in which nothing is."""
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entry(project: Path, name: str) -> Any:
    """What a client's file says of our server."""
    text = (project / FILES[name]).read_text()
    found: Any = tomllib.loads(text) if name == "codex" else jsonc.parse(text)
    for key in next(client for client in clients.CLIENTS if client.name == name).path:
        found = found[key]
    return found


def test_each_client_gets_what_its_format_says(project: Path) -> None:
    installation.install(NAMES, project=project)
    program = clients.program(user=False)
    assert Path(program).is_absolute()  # it is not on this path
    local = {"type": "local", "command": [program, "mcp"], "enabled": True}
    assert json.loads((project / "opencode.json").read_text()) == {
        "$schema": "https://opencode.ai/config.json",
        "mcp": {"sandkeep": local},
    }
    assert entry(project, "claude-code") == {"type": "stdio", "command": program, "args": ["mcp"]}
    times = {"startup_timeout_sec": 30, "tool_timeout_sec": 600}
    assert entry(project, "codex") == {"command": program, "args": ["mcp"], **times}
    assert entry(project, "cursor") == {
        "command": program,
        "args": ["mcp", "--keep", "${workspaceFolder}/.sandkeep"],
    }
    before = snapshot(project)
    assert {change.action for change in installation.install(NAMES, project=project)} == {"unchanged"}
    assert snapshot(project) == before
    installation.uninstall(project=project)
    assert snapshot(project) == {}
    assert list(project.iterdir()) == []


def test_a_project_names_our_program_as_the_shell_finds_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(clients.program(user=False)).parent
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert clients.program(user=False) == "sandkeep"
    assert clients.program(user=True) == str(folder / "sandkeep")


@pytest.mark.parametrize("name", NAMES)
def test_a_keep_is_named_by_its_place_in_the_project_or_by_its_path(name: str, project: Path, tmp_path: Path) -> None:
    for keep, named in ((project / "k", "k"), (tmp_path / "far", str(tmp_path / "far"))):
        installation.install([name], project=project, keep=keep)
        line = clients.argv(entry(project, name))
        workspace = "${workspaceFolder}/" if name == "cursor" and named == "k" else ""
        assert line[1:] == ["mcp", "--keep", workspace + named]


def round_trip(name: str, data: bytes) -> None:
    """Install into a file that holds `data` and uninstall: it is as before, also without the copy but for space."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILES[name]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o640)
        installation.install([name], project=folder)
        assert clients.is_ours(entry(Path(folder), name))
        assert path.with_name(path.name + installation.KEPT).read_bytes() == data
        installation.uninstall([name], project=folder)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (data, 0o640)
        assert list(snapshot(Path(folder))) == [FILES[name]]


@settings(max_examples=15)
@given(json_texts.map(lambda text: text.replace('"servers"', '"mcpServers"').encode()))
def test_json_is_byte_for_byte_as_before_once_uninstalled(data: bytes) -> None:
    round_trip("cursor", data)


@settings(max_examples=15)
@given(toml_texts.filter(valid).map(str.encode))
def test_toml_is_byte_for_byte_as_before_once_uninstalled(data: bytes) -> None:
    round_trip("codex", data)


def test_what_others_wrote_since_stays(project: Path) -> None:
    path = project / "opencode.jsonc"
    path.write_text('{\n  // mine\n  "theme": "dark" // at night\n}\n')
    installation.install(["opencode"], project=project)
    text = path.read_text()
    path.write_text(text.replace('"dark"', '"light"').replace('"enabled": true', '"enabled": false'))
    installation.install(["opencode"], project=project, keep=project / "other")
    assert '"enabled": false' in path.read_text()
    assert '"mcp", "--keep", "other"' in path.read_text()
    (change,) = installation.uninstall(["opencode"], project=project)[:1]
    assert change.action == "changed"
    assert path.read_text() == '{\n  // mine\n  "theme": "light" // at night\n}\n'
    assert (project / "opencode.jsonc.before-sandkeep").exists()  # it is not what is there now


def test_a_server_of_another_with_our_name_is_left_alone(project: Path) -> None:
    text = '{"mcpServers": {"sandkeep": {"command": "evil", "args": ["mcp"]}}}'
    (project / ".mcp.json").write_text(text)
    with pytest.raises(ConfigRefused, match="not ours"):
        installation.install(["claude-code"], project=project)
    assert [change.action for change in installation.uninstall(project=project)] == ["foreign"]
    assert snapshot(project) == {".mcp.json": text.encode()}


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("opencode", b'{"mcp": ', "ends too early"),
        ("claude-code", b'{"a": 1,, "b": 2}', "line 1, column 9"),
        ("cursor", b'{"mcpServers": []}', "no object"),
        ("codex", b"[a", "does not parse"),
        ("codex", b"a = 1\n[a]\n\xff", "not UTF-8"),
    ],
)
def test_a_file_that_does_not_parse_refuses_all(project: Path, name: str, data: bytes, words: str) -> None:
    (project / FILES[name]).parent.mkdir(exist_ok=True)
    (project / FILES[name]).write_bytes(data)
    with pytest.raises(ConfigRefused, match=words) as refused:
        installation.install(NAMES, project=project)
    assert str(project / FILES[name]) in str(refused.value)
    assert snapshot(project) == {FILES[name]: data}


def test_no_link_leads_out_of_a_project(project: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mcp.json").write_text("{}")
    (project / ".cursor").symlink_to(outside)
    (project / ".mcp.json").symlink_to(outside / "mcp.json")
    for name in ("cursor", "claude-code"):
        with pytest.raises(ConfigRefused, match="symbolic link"):
            installation.install([name], project=project)
    assert snapshot(outside) == {"mcp.json": b"{}"}


def test_a_pipe_does_not_hold_us_up(project: Path) -> None:
    os.mkfifo(project / ".mcp.json")
    with pytest.raises(ConfigRefused, match="no file"):
        installation.install(["claude-code"], project=project)


def test_the_users_own_links_are_followed(user: Path) -> None:
    elsewhere = user / "dotfiles" / "claude.json"
    elsewhere.parent.mkdir()
    elsewhere.write_text('{"projects": {}}\n')
    (user / ".claude.json").symlink_to(elsewhere)
    installation.install(["claude-code"], project=None)
    assert (user / ".claude.json").is_symlink()
    assert clients.is_ours(json.loads(elsewhere.read_text())["mcpServers"]["sandkeep"])
    assert (user / ".claude" / "commands" / "execute.md").exists()
    installation.uninstall(project=None)
    assert elsewhere.read_text() == '{"projects": {}}\n'


def test_what_another_program_has_written_meanwhile_is_not_lost(project: Path) -> None:
    place = config_file.Place(project, PurePosixPath("x"))
    config_file.replace(place, b"one", None)
    was = config_file.read(place)
    assert was is not None
    (project / "x").write_text("theirs")
    with pytest.raises(ConfigRefused, match="meanwhile"):
        config_file.replace(place, b"two", was)
    with pytest.raises(ConfigRefused, match="meanwhile"):
        config_file.replace(place, b"two", None)
    assert snapshot(project) == {"x": b"theirs"}


def test_the_agents_that_are_used_here_are_found(
    project: Path, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClientNotFound) as refused:
        installation.install(project=project)
    for client in clients.CLIENTS:
        assert all(trace in str(refused.value) for trace in (*client.project_traces, *client.user_traces))
    (project / ".cursor").mkdir()
    (user / ".codex").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "claude").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "claude").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert [client.name for client in installation.chosen((), project)] == ["claude-code", "codex", "cursor"]
    with pytest.raises(BadInput, match="no agent that we know"):
        installation.install(["emacs"], project=project)


def test_a_dry_run_changes_nothing_and_shows_all(project: Path, cli: Cli) -> None:
    (project / "opencode.json").write_text('{"theme": "x"}\n')
    before = snapshot(project)
    answer = cli("install", "opencode", "--project", str(project), "--dry-run")
    assert snapshot(project) == before
    assert b'-{"theme": "x"}\n+{"theme": "x", "mcp": {"sandkeep"' in answer.stdout
    done = cli("install", "opencode", "--project", str(project), "--json")
    assert {each["action"] for each in done.json} == {"changed", "added"}
    assert b"there is no keep in" in answer.stderr
    assert b"there is no keep in" in done.stderr
    assert snapshot(project)["opencode.json"] != before["opencode.json"]


def test_a_slash_command_says_which_tool_to_call(project: Path) -> None:
    installation.install(["opencode", "claude-code"], project=project)
    for folder, own in ((".opencode", "agent: build"), (".claude", "allowed-tools: mcp__sandkeep__{tool}")):
        written = {path.stem: path.read_text() for path in (project / folder / "commands").iterdir()}
        assert written.keys() == {verb.name for verb in VERBS if verb.slash}
        for verb in VERBS:
            if verb.slash:
                text = written[verb.name]
                head = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
                assert head is not None
                assert own.format(tool=verb.tool) in head[1].splitlines()
                assert f"`{verb.tool}` of the MCP server `sandkeep` with: $ARGUMENTS" in head[2]


def test_a_slash_command_that_somebody_changed_is_theirs(project: Path) -> None:
    installation.install(["claude-code"], project=project)
    path = project / ".claude" / "commands" / "execute.md"
    mine = path.read_text().replace("Run a command", "Do it")
    path.write_text(mine)
    for change in (installation.install, installation.uninstall):
        foreign = [each.path for each in change(["claude-code"], project=project) if each.action == "foreign"]
        assert foreign == [str(path)]
        assert path.read_text() == mine
    assert snapshot(project) == {".claude/commands/execute.md": mine.encode()}
    assert not slash.is_ours(mine.encode())


def test_the_doctor_says_which_agents_know_of_us(project: Path, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(integrations.describe(project)) == []
    (project / ".claude").mkdir()
    (project / "opencode.json").write_text('{"mcp": ')
    (project / ".cursor").mkdir()
    (project / ".cursor" / "mcp.json").write_text('{"mcpServers": {"sandkeep": {"command": "evil"}}}')
    found = {what: (advice, act) for _, what, advice, act in integrations.describe(project)}
    assert found.pop("Claude Code does not know of us") == ("run 'sandkeep install claude-code'", False)
    assert [act for _, act in found.values()] == [False, False]
    assert "ends too early" in " ".join(found)
    assert "not ours" in " ".join(found)
    installation.install(["codex"], project=None)
    installation.install(["claude-code"], project=project)
    told = [said for said in integrations.describe(project) if "our server" in said[1]]
    assert [said[2:] for said in told] == [("", False), ("", False)]
    monkeypatch.setattr(clients, "program", lambda *, user: "/nowhere/sandkeep")
    installation.install(["claude-code"], project=project)
    (gone,) = [said for said in integrations.describe(project) if said[3]]
    assert gone[1:3] == (
        f"{project}/.mcp.json starts /nowhere/sandkeep, which is not there",
        "run 'sandkeep install claude-code'",
    )
