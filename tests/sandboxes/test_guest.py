"""The archive that sandboxes run: the same every time, compiled for our version of Python, and good for any other."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import pytest

from sandkeep.sandboxes import guest

DIGEST = "import hashlib\nfrom sandkeep.sandboxes import guest\nprint(hashlib.sha256(guest.archive()).hexdigest())"
WHERE = "import sys; sys.path.insert(0, sys.argv[1]); from sandkeep.sandboxes.guest import wire; print(wire.__file__)"


def where(archive: Path) -> str:
    """Which file of the archive a module comes from."""
    command = [sys.executable, "-I", "-S", "-c", WHERE, str(archive)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("seed", ["1", "2"])
def test_it_is_the_same_in_every_process(seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", seed)
    found = subprocess.run([sys.executable, "-c", DIGEST], check=True, capture_output=True, text=True).stdout.strip()
    assert found == hashlib.sha256(guest.archive()).hexdigest()


def test_what_is_compiled_is_used_by_our_version_of_python_only(tmp_path: Path) -> None:
    ours = guest.install(tmp_path)
    assert where(ours).endswith("guest/wire.pyc")
    other = tmp_path / "other.pyz"
    with zipfile.ZipFile(ours) as known, zipfile.ZipFile(other, "w") as file:
        for name in known.namelist():
            file.writestr(name, known.read(name).replace(MAGIC_NUMBER, b"\x01\x02\r\n", 1))
    assert where(other).endswith("guest/wire.py")
