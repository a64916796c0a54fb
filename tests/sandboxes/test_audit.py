"""The audit of a keep, from the Python API and from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sandkeep.events import BadInput, BlobMissing, LogDamaged
from sandkeep.events import catalogue as ev
from sandkeep.events.errors import BadKey
from sandkeep.events.note import open_checkpoint
from sandkeep.sandboxes import Keep, audit, verify_bundle
from sandkeep.sandboxes.errors import KeyUnavailable, TaskNotFound
from sandkeep.sandboxes.keep import PUBLISH_EVERY

TASK = "0123456789ab"
OUTPUT = b"a long output" * 5000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keep"


@pytest.fixture
def filled(path: Path) -> Path:
    """A keep with one task that has an output and a checkpoint, made without an engine; notes for 1 and 3 records."""
    with Keep.init(path, actor="me") as keep:
        keep.publish_checkpoint()
        stream = f"task/{TASK}"
        keep.log.append(stream, [ev.TaskCreated("i", "a task", None, "image")], actor="me")
        output = ev.Output(len(OUTPUT), blob=keep.blobs.put(OUTPUT))
        keep.log.append(stream, [ev.CommandExecuted("i", 0, 1, False, output, ev.Output(0, b""))], actor="me")
        keep.publish_checkpoint()
        from sandkeep.sandboxes.manifest import Entry, Kind, store

        inner = store({b"f": Entry(b"f", Kind.FILE, 0o644, 0, 0, 0, 6, keep.blobs.put(b"a file"))}, keep.blobs)
        root = store({b"d": Entry(b"d", Kind.FOLDER, 0o755, 0, 0, 0, content=inner)}, keep.blobs)
        keep.log.append(stream, [ev.CheckpointCreated("c", root, 1, 6, "")], actor="me")
        keep.log.append("keep", [ev.TaskCompleted("x")], actor="me")
    return path


@pytest.mark.parametrize(
    ("what", "records", "blobs"),
    [({}, 5, 4), ({"task": TASK[:6]}, 3, 4), ({"first": 2, "last": 3}, 2, 1), ({"blobs": False}, 5, None)],
)
def test_what_is_exported_holds(filled: Path, tmp_path: Path, what: dict[str, int], records: int, blobs: int) -> None:
    with Keep.open(filled) as keep:
        done = keep.export_audit(tmp_path / "bundle", **what)  # type: ignore[arg-type]
        key, note = str(keep.audit_key), keep.publish_checkpoint()
    assert (done.records, done.blobs, done.size) == (records, blobs, 5)
    assert done.bytes == (tmp_path / "bundle").stat().st_size
    report = verify_bundle(tmp_path / "bundle", key, seen=[note])
    assert report.problems == ()
    assert (report.records, report.blobs, report.notes, report.size) == (records, blobs, 3, 5)


def test_what_cannot_be_exported_leaves_no_file(filled: Path, tmp_path: Path) -> None:
    file = tmp_path / "bundle"
    with Keep.open(filled) as keep:
        with pytest.raises(BadInput, match="not both"):
            keep.export_audit(file, task=TASK, first=1)
        for first, last in ((6, 6), (1, 6), (4, 3)):
            with pytest.raises(BadInput, match="no range"):
                keep.export_audit(file, first=first, last=last)
        with pytest.raises(TaskNotFound):
            keep.export_audit(file, task="ffff")
        (filled / "blobs" / (digest := blake3(OUTPUT).hexdigest())[:2] / digest[2:]).unlink()
        with pytest.raises(BlobMissing):
            keep.export_audit(file)
        assert not file.exists()
        file.write_bytes(b"mine")
        with pytest.raises(BadInput, match="exists already"):
            keep.export_audit(file)
    assert file.read_bytes() == b"mine"


def test_a_checkpoint_is_published_at_close_when_there_is_much_new(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Keep.init(path) as keep:
        keep.log.append("keep", [ev.TaskCompleted("x")] * (PUBLISH_EVERY - 2), actor="me")
    with Keep.open(path) as keep:
        assert keep.log.notes() == []
        keep.log.append("keep", [ev.TaskCompleted("x")], actor="me")
    with Keep.open(path) as keep:
        [(size, published)] = keep.log.notes()
        assert open_checkpoint(published.note, keep.audit_key).size == size == PUBLISH_EVERY
        keep.log.append("keep", [ev.TaskCompleted("x")] * PUBLISH_EVERY, actor="me")
        (path / "keys" / "audit.pem").unlink()
        keep.close()
        keep.close()
    assert "no checkpoint was published" in caplog.text


def test_a_key_that_is_not_the_logs_signs_nothing(filled: Path) -> None:
    pem = filled / "keys" / "audit.pem"
    for key in (Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())):
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        with Keep.open(filled) as keep:
            with pytest.raises(KeyUnavailable):
                keep.publish_checkpoint()
            assert not keep.verify().ok
    pem.write_bytes(b"no key")
    with Keep.open(filled) as keep, pytest.raises(KeyUnavailable, match="cannot be read"):
        _ = keep.audit_key


def test_a_log_that_is_not_what_was_signed_is_not_exported(filled: Path, tmp_path: Path) -> None:
    with Keep.open(filled) as keep:
        forged = audit.signer(filled, keep.id).sign(f"{keep.audit_key.name}\n4\n{'A' * 43}=\n")
        from sandkeep.events.lmdb_layout import Published

        keep.log.add_note(4, Published(forged, ()))
        keep.log.add_note(5, keep.log.notes()[0][1])
        with pytest.raises(LogDamaged):
            keep.export_audit(tmp_path / "bundle")


def test_a_key_is_given_as_text_or_as_a_file(filled: Path, tmp_path: Path) -> None:
    with Keep.open(filled) as keep:
        key = keep.audit_key
    (tmp_path / "pub").write_text(f"{key}\n")
    assert audit.read_key(str(key)) == audit.read_key(str(tmp_path / "pub")) == key
    (tmp_path / "binary").write_bytes(b"\xff")
    for bad in ("", "no key", "a\0b", str(tmp_path), str(tmp_path / "binary"), str(tmp_path / "none")):
        with pytest.raises(BadKey):
            audit.read_key(bad)


def sandkeep(*words: str | Path, status: int = 0) -> str:
    code = "from sandkeep.sandboxes.cli import main; main()"
    command = [sys.executable, "-P", "-c", code, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_the_command_line(filled: Path, tmp_path: Path) -> None:
    key = sandkeep("audit", "key", "--keep", filled).strip()
    assert msgspec.json.decode(sandkeep("audit", "key", "--keep", filled, "--json")) == {"key": key}
    note = sandkeep("audit", "checkpoint", "--keep", filled)
    assert note.splitlines()[:2] == [key.partition("+")[0], "5"]
    (tmp_path / "note").write_text(note)
    file = tmp_path / "bundle"
    assert "wrote 5 records and 4 blobs" in sandkeep("audit", "export", file, "--keep", filled)
    kept = ("--key", key, "--note", tmp_path / "note")
    assert sandkeep("audit", "verify", file, *kept).startswith("all holds: 5 records")
    assert msgspec.json.decode(sandkeep("audit", "verify", file, *kept, "--json"))["ok"]
    assert "3 published notes" in sandkeep("verify", "--keep", filled)

    file.write_bytes(file.read_bytes().replace(b"a task", b"\x1b[2J!!"))
    text = sandkeep("audit", "verify", file, "--key", key, status=1)
    assert "[changed-record]" in text
    assert "DOES NOT HOLD" in text
    assert "\x1b" not in text
    document = msgspec.json.decode(sandkeep("audit", "verify", file, "--key", key, "--json", status=1))
    assert document["problems"][0]["code"] == "changed-record"

    assert "[bad-key]" in sandkeep("audit", "verify", file, "--key", "nonsense", status=2)
    assert "[not-a-bundle]" in sandkeep("audit", "verify", tmp_path / "note", "--key", key, status=2)
    assert "[os-error]" in sandkeep("audit", "verify", tmp_path / "none", "--key", key, status=1)
    task = sandkeep("audit", "export", tmp_path / "task", "--task", TASK, "--blobs", "digests", "--keep", filled)
    assert "wrote 3 records and 0 blobs" in task
    assert "content left out" in sandkeep("audit", "verify", tmp_path / "task", "--key", key)
