"""Archives: the same image gives the same bytes, and nothing is believed of one from elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from sandkeep.sandboxes import docker_archive
from sandkeep.sandboxes.docker_archive import Contents, compose, read, write, write_files
from sandkeep.sandboxes.errors import BadImage
from sandkeep.sandboxes.image import unmeasured
from sandkeep.sandboxes.recipe import File

from .test_recipe import FIXED

FILES = (File("/etc/greeting", b"hello\n", 0o600), File("/bin/hi", target="/etc/greeting"))
Members = dict[str, bytes | str]


def layer(folder: Path, name: str = "layer.tar", files: tuple[File, ...] = FILES) -> Path:
    write_files(files, folder / name, 1)
    return folder / name


def archived(contents: Contents, tag: str | None = "sandkeep/web:0123456789ab") -> bytes:
    out = io.BytesIO()
    write(contents, out, tag, unmeasured)
    return out.getvalue()


def packed(members: Members) -> bytes:
    """A tar with these files, and links for those that are text."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def an_image(layers: int = 1) -> Members:
    """An archive as `docker save` would write it, with `layers` that are all the same."""
    content = packed({"x": b"x"})
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    rootfs = {"type": "layers", "diff_ids": [digest] * layers}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    names = [f"{number}/layer.tar" for number in range(layers)]
    members: Members = {name: config, "0/layer.tar": content} if layers else {name: config}
    members |= dict.fromkeys(names[1:], "../0/layer.tar")
    manifest = [{"Config": name, "RepoTags": ["sandkeep/web:0123456789ab"], "Layers": names}]
    return members | {"manifest.json": json.dumps(manifest).encode()}


def found(path: Path, data: bytes) -> Contents:
    path.write_bytes(data)
    return read(path, unmeasured)


def test_an_image_s_id_depends_on_its_content_and_recipe_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, same = compose(FIXED, [layer(tmp_path)]), compose(FIXED, [layer(tmp_path / "other", "y.tar", FILES[::-1])])
    assert one.id == same.id == f"sha256:{hashlib.sha256(one.config).hexdigest()}"
    assert archived(one) == archived(same)
    others = (
        compose(FIXED, [layer(tmp_path, "more.tar", (*FILES, File("/z")))]),
        compose(FIXED, [layer(tmp_path, "mode.tar", (msgspec.structs.replace(FILES[0], mode=0o644), FILES[1]))]),
        compose(msgspec.structs.replace(FIXED, version=99), [tmp_path / "layer.tar"]),
        compose(FIXED, []),
    )
    assert len({one.id, *(other.id for other in others)}) == 5


def test_what_is_written_is_read(tmp_path: Path) -> None:
    contents = compose(FIXED, [layer(tmp_path), layer(tmp_path, "b.tar", ()), tmp_path / "layer.tar"])
    seen: list[tuple[int, int]] = []
    data = archived(contents)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert len(tar.getnames()) == 4  # the layer that stands in it twice is there once
    (tmp_path / "image.tar").write_bytes(data)
    again = read(tmp_path / "image.tar", lambda done, total: seen.append((done, total)))
    assert (again.id, again.architecture, again.tags) == (contents.id, "amd64", ("sandkeep/web:0123456789ab",))
    assert [each.digest for each in again.layers] == [each.digest for each in contents.layers]
    assert archived(again) == data
    assert read(tmp_path / "image.tar", unmeasured).tags
    assert found(tmp_path / "untagged.tar", archived(contents, None)).tags == ()
    assert all(0 < done <= total == len(data) for done, total in seen)
    assert len(seen) == 3


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_an_archive_of_docker_save_is_read(tmp_path: Path, layers: int) -> None:
    assert len(found(tmp_path / "a", packed(an_image(layers))).layers) == layers


def put(name: str, content: bytes | str) -> bytes:
    """An archive with something else in this place."""
    return packed(an_image() | {name: content})


def changed(change: Callable[[Members], object]) -> bytes:
    members = an_image()
    change(members)
    return packed(members)


def manifest(**changes: object) -> Callable[[Members], object]:
    def change(members: Members) -> None:
        [found] = json.loads(members["manifest.json"])
        members["manifest.json"] = json.dumps([found | changes]).encode()

    return change


def other_config(members: Members) -> None:
    name = next(iter(members))
    content = members[name]
    assert isinstance(content, bytes)
    members[name] = content.replace(b"amd64", b"arm64")


def config_of(document: object) -> Callable[[Members], object]:
    def change(members: Members) -> None:
        text = json.dumps(document).encode()
        name = f"{hashlib.sha256(text).hexdigest()}.json"
        members[name] = text
        manifest(Config=name)(members)

    return change


def with_header(**fields: object) -> bytes:
    """An archive that begins with an entry of a kind that `docker save` does not write."""
    entry = tarfile.TarInfo("x")
    for name, value in fields.items():
        setattr(entry, name, value)
    return entry.tobuf(tarfile.GNU_FORMAT) + packed(an_image())


HOSTILE: dict[str, tuple[bytes, str]] = {
    "no tar": (b"x" * 2000, "is no tar file"),
    "nothing": (b"", "lacks 'manifest.json'"),
    "cut": (packed(an_image())[:2000], "ends too early"),
    "no manifest": (changed(lambda members: members.pop("manifest.json")), "lacks 'manifest.json'"),
    "no JSON": (
        put("manifest.json", b"\xff["),
        "is no archive of a Docker image",
    ),
    "deep JSON": (put("manifest.json", b"[" * 10**5), "is no archive"),
    "no image": (put("manifest.json", b"[]"), "holds 0 images"),
    "two images": (
        changed(
            lambda members: members.update(
                {"manifest.json": b'[{"Config":"a","Layers":[]},{"Config":"a","Layers":[]}]'}
            )
        ),
        "holds 2 images",
    ),
    "a huge manifest": (put("manifest.json", b" " * (5 << 20)), "and may have"),
    "another configuration": (changed(other_config), "but holds"),
    "another id": (changed(manifest(Config="0/layer.tar")), "is no archive"),
    "a configuration outside": (changed(manifest(Config="/etc/passwd")), "lacks '/etc/passwd'"),
    "a link outside": (put("0/layer.tar", "/etc/passwd"), "lacks '0/layer.tar'"),
    "a link to itself": (put("0/layer.tar", "layer.tar"), "lacks '0/layer.tar'"),
    "another layer": (put("0/layer.tar", b"other"), "layer 1 is not"),
    "a layer too few": (changed(manifest(Layers=[])), "holds no Linux image"),
    "a layer too many": (changed(manifest(Layers=["0/layer.tar"] * 2)), "holds no Linux image"),
    "many layers": (packed(an_image(128)), "holds no Linux image"),
    "another system": (
        changed(config_of({"architecture": "a", "os": "windows", "rootfs": {"diff_ids": []}})),
        "holds no Linux image",
    ),
    "no configuration": (changed(config_of({"os": "linux"})), "is no archive of a Docker image"),
    "an extended header": (with_header(type=tarfile.XHDTYPE), "has an entry of the kind b'x'"),
    "a long name": (with_header(type=tarfile.GNUTYPE_LONGNAME), "has an entry of the kind b'L'"),
    "a sparse file": (with_header(type=tarfile.GNUTYPE_SPARSE), "has an entry of the kind b'S'"),
    "a hard link": (with_header(type=tarfile.LNKTYPE), "has an entry of the kind b'1'"),
    "a size of eternity": (with_header(size=2**60), "ends too early"),
    "a size below nothing": (with_header(size=-(10**12)), "ends too early"),
    "many entries": (tarfile.TarInfo("x").tobuf() * 5000, "more than 4096 entries"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path: Path, name: str) -> None:
    data, reason = HOSTILE[name]
    with pytest.raises(BadImage, match=reason) as caught:
        found(tmp_path / "archive", data)
    assert caught.value.code == "bad-image"


def test_every_byte_that_counts_is_covered(tmp_path: Path) -> None:
    data = packed(an_image())
    whole = found(tmp_path / "a", data)
    for offset in range(0, len(data), 7):
        damaged = data[:offset] + bytes([data[offset] ^ 0x20]) + data[offset + 1 :]
        try:
            assert found(tmp_path / "a", damaged).id == whole.id
        except BadImage:
            continue


def test_an_archive_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_archive, "MAX_BYTES", 100)
    with pytest.raises(BadImage, match="more than 100 is not read"):
        found(tmp_path / "a", packed(an_image()))
