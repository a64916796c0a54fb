"""Docker archives: one image in one tar file, as `docker save` writes and `docker load` reads it.

What is written here is canonical. The same layers and configuration give the same bytes, and the image's id, which is
the SHA-256 of its configuration, is known before any engine has seen it. What is read may come from anybody: it is
parsed without `tarfile`'s extensions, within bounds, and nothing is believed that does not match its digest. A file is
not to be changed while it is read.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO

import msgspec

from sandkeep.sandboxes.errors import BadImage
from sandkeep.sandboxes.recipe import File, Recipe

CREATED = "2026-01-01T00:00:00Z"
"""When every image of ours was made, as far as its id goes."""

MAX_BYTES = 32 << 30
_MAX_ENTRIES = 4096
_MAX_DOCUMENT = 4 << 20
_MAX_LAYERS = 127
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20

Measured = Callable[[int, int], None]
"""Told how many bytes of how many are done."""


class Layer(msgspec.Struct, frozen=True):
    """A tar file, or the part of a file that is one. `digest` is its SHA-256."""

    digest: str
    file: Path
    offset: int
    size: int


class Contents(msgspec.Struct, frozen=True):
    """An image: its configuration, byte for byte, its layers from the lowest, and the names it came with."""

    config: bytes
    layers: tuple[Layer, ...]
    tags: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The image's id, as the classic image store of an engine has it."""
        return f"sha256:{hashlib.sha256(self.config).hexdigest()}"

    @property
    def architecture(self) -> str:
        """What it runs on."""
        return _config.decode(self.config).architecture


class _RootFs(msgspec.Struct):
    diff_ids: list[str]


class _Config(msgspec.Struct):
    architecture: str
    os: str
    rootfs: _RootFs


class _Manifest(msgspec.Struct):
    Config: str
    Layers: list[str]
    RepoTags: list[str] | None = None


class _Entry(msgspec.Struct, frozen=True):
    offset: int
    size: int
    target: str = ""


_config = msgspec.json.Decoder(_Config)
_manifest = msgspec.json.Decoder(list[_Manifest])


def compose(recipe: Recipe, files: Sequence[Path]) -> Contents:
    """The image of a recipe that consists of these layers."""
    layers = tuple(_layer(file) for file in files)
    settings = {
        "Cmd": ["sh"],
        "Env": recipe.environment.split(),
        "Labels": {"sandkeep.recipe": recipe.digest},
    }
    config = {
        "architecture": recipe.arch,
        "config": settings,
        "created": CREATED,
        # podman builds on no image whose history does not tell of every layer.
        "history": [{"created": CREATED, "created_by": "sandkeep"} for _ in layers],
        "os": "linux",
        "rootfs": {"diff_ids": [f"sha256:{layer.digest}" for layer in layers], "type": "layers"},
    }
    return Contents(msgspec.json.encode(config, order="deterministic"), layers)


def write_files(files: Sequence[File], path: Path, mtime: int) -> None:
    """Write a recipe's files as a layer."""
    with tarfile.open(path, "x", format=tarfile.USTAR_FORMAT) as tar:
        for file in sorted(files, key=lambda file: file.path):
            entry = tarfile.TarInfo(file.path.lstrip("/"))
            entry.mode, entry.mtime = file.mode, mtime
            if file.target:
                entry.type, entry.linkname = tarfile.SYMTYPE, file.target
            else:
                entry.size = len(file.content)
            tar.addfile(entry, io.BytesIO(file.content))


def write(contents: Contents, out: IO[bytes], tag: str | None, measured: Measured) -> None:
    """Write an archive. With a `tag`, an engine that loads it calls it that."""
    name = contents.id.removeprefix("sha256:")
    manifest = {
        "Config": f"{name}.json",
        "Layers": [f"{layer.digest}.tar" for layer in contents.layers],
        "RepoTags": None if tag is None else [tag],
    }
    total, done = sum(layer.size for layer in contents.layers), 0
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member, document in ((f"{name}.json", contents.config), ("manifest.json", msgspec.json.encode([manifest]))):
            entry = tarfile.TarInfo(member)
            entry.size = len(document)
            tar.addfile(entry, io.BytesIO(document))
        written = set()
        for layer in contents.layers:
            if layer.digest not in written:
                written.add(layer.digest)
                entry = tarfile.TarInfo(f"{layer.digest}.tar")
                entry.size = layer.size
                with layer.file.open("rb") as file:
                    file.seek(layer.offset)
                    tar.addfile(entry, file)
            done += layer.size
            measured(done, total)


def read(path: Path, measured: Measured) -> Contents:
    """The image in the archive `path`, all of which was compared with its digests. Raises `BadImage`."""
    if not path.is_file():
        raise BadImage(f"{path} is no file; name one that 'sandkeep export-image' or 'docker save' wrote")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise BadImage(f"{path} has {size} bytes; an archive of more than {MAX_BYTES} is not read")
        entries = dict(_entries(file, path, size))
        try:
            manifests = _manifest.decode(_document(file, path, entries, "manifest.json"))
            if len(manifests) != 1:
                raise BadImage(f"{path} holds {len(manifests)} images; save the one that is wanted alone")
            config = _document(file, path, entries, manifests[0].Config)
            wanted = _config.decode(config)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadImage(f"{path} is no archive of a Docker image: {error}; save it anew") from error
        named = posixpath.basename(manifests[0].Config).removesuffix(".json")
        if named != (found := hashlib.sha256(config).hexdigest()):
            raise BadImage(f"{path} says that it holds {named[:64]!r}, but holds {found}; get a whole copy of it")
        names, digests = manifests[0].Layers, wanted.rootfs.diff_ids
        if wanted.os != "linux" or len(names) != len(digests) or len(names) > _MAX_LAYERS:
            raise BadImage(
                f"{path} holds no Linux image of up to {_MAX_LAYERS} layers that are all named; save it anew"
            )
        layers = []
        for number, (name, digest) in enumerate(zip(names, digests, strict=True), 1):
            entry = _resolve(path, entries, name)
            layer = _layer(path, entry.offset, entry.size)
            if digest != f"sha256:{layer.digest}":
                raise BadImage(f"{path}: layer {number} is not {digest[:80]!r}; get a whole copy of it")
            layers.append(layer)
            measured(entry.offset + entry.size, size)
    return Contents(config, tuple(layers), tuple(manifests[0].RepoTags or ()))


def _layer(path: Path, offset: int = 0, size: int | None = None) -> Layer:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size if size is None else size
        file.seek(offset)
        hasher, left = hashlib.sha256(), size
        while left and (chunk := file.read(min(left, _CHUNK))):
            hasher.update(chunk)
            left -= len(chunk)
    return Layer(hasher.hexdigest(), path, offset, size)


def _entries(file: BinaryIO, path: Path, size: int) -> Iterator[tuple[str, _Entry]]:
    """The files and links of a tar. Of its kinds of entries only those are known that archives of images need, so
    that nothing can give a name or size of any length."""
    offset = 0
    for _ in range(_MAX_ENTRIES):
        file.seek(offset)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK or not any(header):
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BadImage(f"{path} is no tar file: {error}; save the image anew") from error
        offset += _BLOCK
        if not 0 <= info.size <= size - offset:
            raise BadImage(f"{path} ends too early; get a whole copy of it")
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            yield info.name, _Entry(offset, info.size)
        elif info.type == tarfile.SYMTYPE:
            yield info.name, _Entry(offset, 0, info.linkname)
        elif info.type != tarfile.DIRTYPE:
            raise BadImage(f"{path} has an entry of the kind {info.type!r}; save the image anew with 'docker save'")
        offset += -(-info.size // _BLOCK) * _BLOCK
    raise BadImage(f"{path} has more than {_MAX_ENTRIES} entries; no image needs that many")


def _resolve(path: Path, entries: dict[str, _Entry], name: str) -> _Entry:
    """The file of that name. A layer that stands in the image twice is a link the second time."""
    found = entries.get(name)
    if found is not None and found.target:
        found = entries.get(posixpath.normpath(posixpath.join(posixpath.dirname(name), found.target)))
    if found is None or found.target:
        raise BadImage(f"{path} lacks {name[:100]!r}; it is no archive of a Docker image, or a part of one")
    return found


def _document(file: BinaryIO, path: Path, entries: dict[str, _Entry], name: str) -> bytes:
    entry = _resolve(path, entries, name)
    if entry.size > _MAX_DOCUMENT:
        raise BadImage(f"{path}: {name[:100]!r} has {entry.size} bytes, and may have {_MAX_DOCUMENT}")
    file.seek(entry.offset)
    return file.read(entry.size)
