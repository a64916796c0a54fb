"""What the owner of a keep grants in its `keep.toml`, beyond what is granted to everybody:

    [network]
    open = true                             # tasks may ask for the whole public internet
    private = ["127.0.0.1:8080"]            # and for these, which the public internet does not reach

Only people write there, so that no agent grants itself anything. Read again whenever it is asked for, so that a change
takes effect at once.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from sandkeep.sandboxes.errors import KeepFormat


class NetworkGrants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which network policies may be set."""

    open: bool = False
    private: tuple[str, ...] = ()


class Settings(msgspec.Struct, frozen=True):
    """All grants."""

    network: NetworkGrants = NetworkGrants()


def load(keep: Path) -> Settings:
    """The settings of the keep in the folder `keep`. Raises `KeepFormat`."""
    path = keep / "keep.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), type=Settings)
    except (OSError, ValueError) as error:  # of TOML, of UTF-8, or of what msgspec expects
        raise KeepFormat(f"{path} cannot be read: {error}; correct it, or restore it from a copy") from error
