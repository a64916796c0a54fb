"""Which keep a folder is, and who acts on it."""

from __future__ import annotations

import getpass
import os
import tomllib
from pathlib import Path

import msgspec

from sandkeep.events import BadInput
from sandkeep.sandboxes.errors import KeepFormat, KeepNotFound

FORMAT = 1
"""The version of the layout of a keep."""


class _Identity(msgspec.Struct, frozen=True):
    format: int
    id: str


def folder_of(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a keep. Raises `BadInput` if neither documents nor databases can hold it."""
    found = Path(path).absolute()
    try:
        os.fspath(found).encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"the path {os.fspath(found)!r} is not UTF-8; choose another folder for the keep") from error
    return found


def write(path: Path, identity: str) -> None:
    """Make the folder `path` the keep with this id, durably but for its name. The last step: half of a keep is none."""
    text = f'# A sandkeep keep. All else is in the log beside this.\nformat = {FORMAT}\nid = "{identity}"\n'
    temporary = path / ".keep.toml"
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path / "keep.toml")


def identify(path: Path) -> str:
    """The id of the keep in `path`. Raises `KeepNotFound` and `KeepFormat`."""
    try:
        text = (path / "keep.toml").read_text()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise KeepNotFound(f"there is no keep in {path}; make one with 'sandkeep init --keep {path}'") from error
    except (OSError, UnicodeDecodeError) as error:
        raise KeepFormat(f"{path / 'keep.toml'} cannot be read: {error}; restore it from a copy") from error
    try:
        found = msgspec.convert(tomllib.loads(text), type=_Identity)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise KeepFormat(f"{path / 'keep.toml'} is damaged: {error}; restore it from a copy") from error
    if found.format != FORMAT:
        raise KeepFormat(
            f"{path} has format {found.format}, this version of sandkeep reads format {FORMAT};"
            " use the version that made it"
        )
    return found.id


def default_actor() -> str:
    """Who acts when nobody is named: SANDKEEP_ACTOR, or the user's login name, or else the user's number."""
    try:
        return os.environ.get("SANDKEEP_ACTOR") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"
