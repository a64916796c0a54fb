"""The memory of a mapped file, given back by a process that has read much of it.

LMDB reads through a map of its file, and every page once read counts as this process's memory until the kernel is short
of it: a replay of a large log looks as large as the log. `release` takes them out of the process, as madvise(2) has it
for shared maps of files; they stay in the page cache and are found there when they are read again, by this process
or another. Readers and writers of the map may go on meanwhile, but it must neither move nor end.
"""

from __future__ import annotations

import ctypes
import mmap
import os

_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def release(path: str) -> None:
    """Give back the pages of the file at `path` that this process has mapped for reading.

    Where the kernel does not say what is mapped, or refuses, nothing is given back, and no harm done.
    """
    try:
        inode = str(os.stat(path).st_ino)
        with open("/proc/self/maps") as maps:
            ours = [line.split(maxsplit=5) for line in maps]
    except OSError:
        return
    name = os.path.realpath(path)
    for fields in ours:
        # Only a map that is shared and cannot be written through holds nothing but what the file does.
        if len(fields) == 6 and fields[1] == "r--s" and fields[4] == inode and fields[5].rstrip("\n") == name:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            _madvise(start, end - start, mmap.MADV_DONTNEED)
