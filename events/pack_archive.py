"""What has lain for a while is compressed harder: packs that nobody appends to are written anew, a part at a time.

Each part is one batch that moves what it holds (see `pack_sweep.move`), so whoever does this may be killed anywhere:
what was moved is in the archive, the rest where it was, and who goes on begins there. The old pack goes when nothing
is left in it. Until then the store is larger by what was moved; without room for that nothing is begun.
"""

from __future__ import annotations

import contextlib
import os
import time

from sandkeep.events import pack_frame
from sandkeep.events.errors import BlobDamaged, BlobMissing
from sandkeep.events.pack_frame import ARCHIVE_LEVEL
from sandkeep.events.pack_sweep import move
from sandkeep.events.packs import Packs, locked, opened

ROOM = 2
"""How many times the size of a pack must be free for it to be begun with."""


def archive(packs: Packs, age_seconds: float, most_bytes: int) -> tuple[int, int]:
    """Compress more of what has lain for `age_seconds`: `most_bytes`, as they are unpacked, or a little more.

    Returns how many bytes were written into the archive, and how many packs were removed that are empty now. A pack
    that is damaged is left as it is. Raises as `BlobStore.batch` does.
    """
    before, written, removed = time.time() - age_seconds, 0, 0
    for pack in packs.names() if packs.exist() else ():
        with contextlib.suppress(FileNotFoundError, BlobDamaged, BlobMissing), opened(packs.path(pack)) as file:
            found = os.fstat(file)
            if found.st_mtime > before or pack_frame.is_archive(file, pack) or _room(file) < ROOM * found.st_size:
                continue
            if locked(file, packs.path(pack)):
                size, gone = move(packs, pack, ARCHIVE_LEVEL, most_bytes)
                written, removed = written + size, removed + gone
                if not gone:
                    break
    return written, removed


def _room(file: int) -> int:
    found = os.fstatvfs(file)
    return found.f_bavail * found.f_frsize
