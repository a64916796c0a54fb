"""Keeps: made, opened, identified and refused, all without an engine."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, identity
from sandkeep.sandboxes.description import check_title
from sandkeep.sandboxes.errors import KeepExists, KeepFormat, KeepNotFound

from .support import git


def test_a_new_keep_is_private_and_has_an_identity(tmp_path: Path) -> None:
    with Keep.init(tmp_path / "a" / "keep", actor="me") as made:
        (record,) = made.events()
    assert isinstance(record.event, ev.KeepCreated)
    assert (record.stream, record.actor, record.event.format) == ("keep", "me", identity.FORMAT)
    key = load_pem_private_key((made.path / "keys" / "audit.pem").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    assert key.public_key().public_bytes_raw() == record.event.public_key
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((made.path / "keys" / "audit.pem").stat().st_mode) == 0o600
    assert identity.identify(made.path) == made.id
    with Keep.open(made.path) as again:
        assert (again.id, again.head().position) == (made.id, 1)
        assert not again.tasks()


def test_two_keeps_have_different_identities_and_keys(tmp_path: Path) -> None:
    with Keep.init(tmp_path / "one") as one, Keep.init(tmp_path / "two") as two:
        assert one.id != two.id
    keys = {(keep.path / "keys" / "audit.pem").read_bytes() for keep in (one, two)}
    assert len(keys) == 2


def test_a_keep_inside_a_repository_is_not_seen_by_git(source: Path) -> None:
    Keep.init(source / ".sandkeep").close()
    assert git(source, "status", "--porcelain") == ""


def test_a_keep_is_made_once(keep: Keep) -> None:
    known = identity.identify(keep.path)
    with pytest.raises(KeepExists, match="is a keep already"):
        Keep.init(keep.path)
    assert identity.identify(keep.path) == known


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    mode = tmp_path.stat().st_mode
    with pytest.raises(BadInput, match="is not empty"):
        Keep.init(tmp_path)
    assert os.listdir(tmp_path) == ["file"]
    assert tmp_path.stat().st_mode == mode


@pytest.mark.parametrize("place", ["file", "file/below", "dangling", "/proc/keep"])
def test_a_place_that_cannot_be_a_keep_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    with pytest.raises(BadInput, match="cannot be made a keep"):
        Keep.init(tmp_path / place)


def test_a_place_that_may_not_be_entered_is_refused(unprivileged: Path) -> None:
    (unprivileged / "locked").mkdir(mode=0o000)
    with pytest.raises(BadInput, match="cannot be made a keep"):
        Keep.init(unprivileged / "locked" / "keep")


@pytest.mark.parametrize("place", ["missing", "file", "empty", "file/below"])
def test_what_is_no_keep_is_not_found(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeepNotFound, match="make one with 'sandkeep init"):
        Keep.open(tmp_path / place)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_keep_of_another_format_is_refused(keep: Keep) -> None:
    file = keep.path / "keep.toml"
    file.write_text(file.read_text().replace("format = 1", "format = 2"))
    with pytest.raises(KeepFormat, match="has format 2, this version of sandkeep reads format 1"):
        identity.identify(keep.path)


@pytest.mark.parametrize(
    "content", [b"", b"format = 1", b'format = "1"\nid = "x"', b"format = true\nid = 'x'", b"{", b"\xff", b"\0"]
)
def test_a_damaged_identity_is_refused(keep: Keep, content: bytes) -> None:
    (keep.path / "keep.toml").write_bytes(content)
    with pytest.raises(KeepFormat, match=r"keep\.toml (is damaged|cannot be read)"):
        identity.identify(keep.path)


def test_an_identity_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keep.toml").mkdir()
    with pytest.raises(KeepFormat, match="cannot be read"):
        identity.identify(tmp_path)


def test_closing_twice_is_harmless(keep: Keep) -> None:
    keep.close()
    keep.close()


def test_the_actor_is_the_environments_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDKEEP_ACTOR", "agent-7")
    assert identity.default_actor() == "agent-7"
    monkeypatch.delenv("SANDKEEP_ACTOR")
    monkeypatch.setenv("LOGNAME", "somebody")
    assert identity.default_actor() == "somebody"

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert identity.default_actor() == f"uid-{os.getuid()}"


@pytest.mark.parametrize(("given", "kept"), [(" a b ", "a b"), ("ünï → ok", "ünï → ok"), ("x" * 200, "x" * 200)])
def test_a_title_is_kept_without_the_spaces_around_it(given: str, kept: str) -> None:
    assert check_title(given) == kept


def test_replaying_a_keep_gives_the_same_state(keep: Keep) -> None:
    seen: list[int] = []
    assert keep.replay(seen.append).same
    assert keep.events(after=1) is not None
    assert list(keep.events(after=1)) == []


def test_a_bad_actor_leaves_no_half_made_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDKEEP_ACTOR", "two\nlines")
    with pytest.raises(BadInput, match="printable"):
        Keep.init(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_generation_of_projections_can_be_entered_by_its_owner(keep: Keep) -> None:
    folders = [path for path in (keep.path / "projections").iterdir() if path.is_dir()]
    assert [path.stat().st_mode & 0o777 for path in folders] == [0o700]
