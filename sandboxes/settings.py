"""What the owner of a keep chooses and grants in its `keep.toml`:

    [sandboxes]
    idle_pause_s = 300      # a sandbox without a command for so long is frozen by the steward; 0 for never
    restart = "command"     # one that died is started again by the next command, or "always": by the steward
    pool = 0                # so many sandboxes are started ahead by the steward, for tasks to come
    runtime = "runsc"       # what runs new sandboxes (here gVisor) instead of the engine's own runtime
    writable_root = true    # tasks may ask for a sandbox that can be written to outside the workspace, without limit

    [network]
    open = true                             # tasks may ask for the whole public internet
    private = ["127.0.0.1:8080"]            # and for these, which the public internet does not reach
    containers = ["pg:5432"]                # and for these containers of the engine, as services
    sidecar = true                          # the way out leads by a sidecar even where a socket of ours could be shared

    [sessions]
    commands = "stop"       # what an agent runs is ended when it hangs up, or "keep": it goes on in the background
    checkpoint = true       # the workspaces it has worked in are recorded then
    detach = true           # and its locks are given back at once; otherwise when their leases run out
    sources = ["/src"]      # where agents may clone from, beside the folder that holds the keep

Only people write there, so that no agent grants itself anything. Read again whenever it is asked for, so that a change
takes effect at once.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sandkeep.sandboxes.errors import KeepFormat

MOST_SLOTS = 64
"""How many sandboxes may be started ahead."""


class SandboxSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When sandboxes are started and frozen."""

    idle_pause_s: Annotated[float, Meta(ge=0)] = 300.0
    restart: Literal["command", "always"] = "command"
    pool: Annotated[int, Meta(ge=0, le=MOST_SLOTS)] = 0
    runtime: Annotated[str, Meta(max_length=64)] = ""
    writable_root: bool = False


class NetworkGrants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which network policies may be set, and how they are kept."""

    open: bool = False
    private: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    sidecar: bool = False


class SessionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What agents may clone beside what lies where the keep does, and what is done when one is gone."""

    commands: Literal["stop", "keep"] = "stop"
    checkpoint: bool = True
    detach: bool = True
    sources: tuple[str, ...] = ()


class Settings(msgspec.Struct, frozen=True):
    """All settings and grants."""

    sandboxes: SandboxSettings = SandboxSettings()
    network: NetworkGrants = NetworkGrants()
    sessions: SessionSettings = SessionSettings()


def load(keep: Path) -> Settings:
    """The settings of the keep in the folder `keep`. Raises `KeepFormat`."""
    path = keep / "keep.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), type=Settings)
    except (OSError, ValueError) as error:  # of TOML, of UTF-8, or of what msgspec expects
        raise KeepFormat(f"{path} cannot be read: {error}; correct it, or restore it from a copy") from error
