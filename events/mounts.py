"""What file system a folder lies on, so that a log is not put where LMDB cannot work.

LMDB maps its file into memory and relies on file locks; over a network, neither is what other machines see. The kernel
tells the kind of each mount in /proc/self/mountinfo (proc_pid_mountinfo(5)); where there is none, nothing is refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sandkeep.events.errors import LogUnavailable

MOUNTINFO = Path("/proc/self/mountinfo")

NETWORK = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.davfs", "fuse.davfs2",
        "fuse.gcsfuse", "fuse.glusterfs", "fuse.mfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs", "gfs2",
        "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs"
    }
)  # fmt: skip
"""The kinds that are refused, as mountinfo names them."""

_ESCAPED = re.compile(r"\\([0-7]{3})")


def refuse_network(path: Path) -> None:
    """Raise `LogUnavailable` if `path`, which need not exist yet, lies on a network file system."""
    kind = kind_of(path)
    if kind in NETWORK:
        raise LogUnavailable(
            f"{path} lies on a network file system ({kind}), where a log would be damaged; keep it on a local disk"
        )


def kind_of(path: Path) -> str | None:
    """The kind of the file system that holds the real `path`; None if it cannot be told."""
    real = os.path.realpath(path)
    try:
        lines = os.fsdecode(MOUNTINFO.read_bytes()).splitlines()
    except OSError:  # no Linux, or no /proc
        return None
    longest, kind = -1, None
    for line in lines:
        mount, separator, rest = line.partition(" - ")
        words = mount.split(" ")
        if not separator or len(words) < 5:
            continue
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), words[4]).rstrip("/")
        # The last of several mounts on one point hides those before.
        if (real == point or real.startswith(point + "/")) and len(point) >= longest:
            longest, kind = len(point), rest.split(" ")[0]
    return kind
