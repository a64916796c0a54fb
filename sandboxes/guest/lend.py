"""Run in the base image: `lend.py FOLDER` copies its Python into a folder, with all that it needs of its image.

What is there then runs on any image of the same machine, whatever C library that has or lacks. See `interpreter`.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys

UNUSED = ("test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "pydoc_data", "dist-packages", "config-*")


def main() -> None:
    """Copy interpreter, standard library, shared libraries and the loader."""
    target = sys.argv[1]
    program, library = os.path.realpath(sys.executable), os.path.dirname(os.__file__)
    ignored = shutil.ignore_patterns(*UNUSED)
    shutil.copytree(library, f"{target}/lib/{os.path.basename(library)}", ignore=ignored, ignore_dangling_symlinks=True)
    os.mkdir(f"{target}/bin")
    shutil.copy(program, f"{target}/bin/python3")
    asked = ["ldd", program, *glob.glob(f"{library}/lib-dynload/*.so")]
    needed = set(re.findall(r"(/\S+) \(0x", subprocess.run(asked, check=True, capture_output=True, text=True).stdout))
    for path in sorted(needed):
        name = os.path.basename(path)
        shutil.copy(path, f"{target}/lib/{'loader' if name.startswith('ld-') else name}")


if __name__ == "__main__":
    main()
