"""What runs inside of sandboxes, as one archive that Python runs: the agent and what it consists of.

The modules here are written for Python 3.9 and need nothing but its standard library. Each sandbox is given the archive
of the library that started it, so both sides always agree. The modules are in it compiled too, for images with our own
version of Python: compiling them takes longer than all else that the agent does before it answers.
"""

from __future__ import annotations

import functools
import hashlib
import io
import marshal
import os
import struct
import zipfile
from importlib import resources, util
from pathlib import Path

_PACKAGE = "sandkeep.sandboxes.guest"
_MODULES = ("agent", "child", "filter", "processes", "supervisor", "wire")
_MAIN = f"from {_PACKAGE}.agent import main\nmain()\n"


_UNCHECKED = 1  # PEP 552: a hash stands in it, which nobody compares
_WITHOUT_REFERENCES = 2  # marshal's later formats depend on what else refers to an object


@functools.cache
def archive() -> bytes:
    """The program, for `python3 -I -S FILE`. The same bytes every time, under one version of Python."""
    folder = _PACKAGE.replace(".", "/")
    files = {"__main__.py": _MAIN, "sandkeep/__init__.py": "", "sandkeep/sandboxes/__init__.py": ""}
    files[f"{folder}/__init__.py"] = ""
    for name in _MODULES:
        files[f"{folder}/{name}.py"] = (resources.files(_PACKAGE) / f"{name}.py").read_text()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:
        for name, text in files.items():
            file.writestr(zipfile.ZipInfo(name), text)
            file.writestr(zipfile.ZipInfo(f"{name}c"), _compiled(name, text))
    return packed.getvalue()


def _compiled(name: str, text: str) -> bytes:
    code = marshal.dumps(compile(text, name, "exec", dont_inherit=True, optimize=0), _WITHOUT_REFERENCES)
    return util.MAGIC_NUMBER + struct.pack("<I", _UNCHECKED) + util.source_hash(text.encode()) + code


def install(folder: Path) -> Path:
    """A file of `folder` that holds the program, for sandboxes to mount; it is never changed."""
    program = archive()
    path = folder / f"agent-{hashlib.sha256(program).hexdigest()[:16]}.pyz"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(program)
        # The agent is root without the right to read what is not its own.
        temporary.chmod(0o644)
        temporary.rename(path)
    return path
