from __future__ import annotations

from pathlib import Path

import pytest

from sandkeep.events import LmdbLog, LogUnavailable, mounts

TABLE = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:40 / /data rw - nfs4 server:/data rw,vers=4.2
31 30 0:41 / /data/local rw shared:2 master:1 - xfs /dev/sdb rw
32 21 0:42 / /with\\040space rw - cifs //server/share rw
33 21 0:43 / /twice rw - ext4 /dev/sdc rw
34 33 0:44 / /twice rw - fuse.sshfs me@host: rw
35 21 0:45 / /database rw - ext4 /dev/sdd rw
nonsense
"""


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(TABLE)
    monkeypatch.setattr(mounts, "MOUNTINFO", path)
    return path


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/home/x", "ext4"),
        ("/data", "nfs4"),
        ("/data/deep/er", "nfs4"),
        ("/data/local/x", "xfs"),
        ("/database/x", "ext4"),
        ("/with space/x", "cifs"),
        ("/twice/x", "fuse.sshfs"),
    ],
)
def test_the_mount_that_holds_a_path_is_found(path: str, kind: str) -> None:
    assert mounts.kind_of(Path(path)) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "glusterfs", "lustre"])
def test_a_log_on_a_network_is_refused_before_anything_is_made(tmp_path: Path, table: Path, kind: str) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "link").symlink_to("shared")
    table.write_text(f"{TABLE}40 21 0:50 / {tmp_path.resolve()}/shared rw - {kind} server rw\n")
    with pytest.raises(LogUnavailable, match=f"a network file system \\({kind}\\).*; keep it on a local disk"):
        LmdbLog(tmp_path / "link" / "log")
    assert list((tmp_path / "shared").iterdir()) == []


def test_where_the_kernel_does_not_tell_nothing_is_refused(tmp_path: Path, table: Path) -> None:
    table.unlink()
    assert mounts.kind_of(tmp_path) is None
    LmdbLog(tmp_path / "log").close()
