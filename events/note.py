"""Signed notes and the checkpoints of a log, as C2SP has them: https://c2sp.org/signed-note and
https://c2sp.org/tlog-checkpoint.

A note is a text, an empty line, and one line a signature, "— NAME BASE64", whose first four bytes are the key's id. A
checkpoint is a note whose text is the log's origin, the number of its leaves and the root of its tree (see `merkle`).
Signatures are Ed25519 (RFC 8032). A key is named `NAME+ID+BASE64`, which is how it is handed to whoever verifies.

What is parsed here comes from anybody. A note is refused unless it is exactly of that form and at least one known key
signed it; a wrong signature of a known key spoils it, and signatures of unknown keys are passed over.
Everything here is pure and safe to call from any thread.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import msgspec

from sandkeep.events import late
from sandkeep.events.errors import BadKey, BadNote, BadSignature, UnknownKey

if TYPE_CHECKING:
    from cryptography import exceptions
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519
else:  # every keep that is closed looks for the newest note, and few notes are signed or verified
    globals().update(late.bound("cryptography", "exceptions"))
    globals().update(late.bound("cryptography.hazmat.primitives", "serialization"))
    globals().update(late.bound("cryptography.hazmat.primitives.asymmetric", "ed25519"))

MAX_NOTE_BYTES = 1 << 20
MAX_SIGNATURES = 100
"""Verifiers must take 16 at least; these are the limits that others set."""

_ED25519 = b"\x01"
_KEY_BYTES = 32
_ROOT_BYTES = 32
_MAX_SIZE_DIGITS = 20
_SIZE = re.compile(r"0|[1-9][0-9]*")
_DASH = "\u2014 "


class VerifierKey(msgspec.Struct, frozen=True):
    """The public half of a key, and its name."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """The key that is written as `NAME+ID+BASE64`. Raises `BadKey`."""
        name, _, rest = text.partition("+")
        identity, _, encoded = rest.partition("+")
        kind_and_key = _base64(encoded)
        if not _is_name(name) or kind_and_key is None or len(kind_and_key) != 1 + _KEY_BYTES:
            raise BadKey("that is no verifier key; one reads NAME+ID+BASE64, as 'sandkeep audit key' prints it")
        if kind_and_key[:1] != _ED25519:
            raise BadKey("the verifier key is not an Ed25519 key, and no other kind is known here")
        key = cls(name, kind_and_key[1:])
        if key.id.hex() != identity:
            raise BadKey("the verifier key does not fit the id it states; copy all of it")
        return key

    @property
    def id(self) -> bytes:
        """Four bytes that tell a name's keys apart."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"


@final
class Signer:
    """A private key and its name."""

    def __init__(self, name: str, private: ed25519.Ed25519PrivateKey) -> None:
        """Raises `BadKey` if no key can have that name."""
        if not _is_name(name):
            raise BadKey(f"{name!r} is no key name; it has no spaces and no '+'")
        public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.key = VerifierKey(name, public)
        self._private = private

    def sign(self, text: str) -> bytes:
        """The note with this text. Raises `BadNote` if no note can have it."""
        signature = base64.b64encode(self.key.id + self._private.sign(text.encode())).decode()
        note = f"{text}\n{_DASH}{self.key.name} {signature}\n".encode()
        if open_note(note, [self.key]) != text:
            raise BadNote("a note's text is lines of printable characters, each ended")
        return note


def open_note(note: bytes, keys: Sequence[VerifierKey]) -> str:
    """The text of a note that one of `keys` signed. Raises `BadNote`, `BadSignature` and `UnknownKey`."""
    text, signatures = _parse(note)
    known = {(key.name, key.id): key for key in keys}
    signed = False
    for name, signature in signatures:
        key = known.get((name, signature[:4]))
        if key is None:
            continue
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(key.public).verify(signature[4:], text.encode())
        except (exceptions.InvalidSignature, ValueError) as error:  # ValueError: the key is no point of the curve
            raise BadSignature(f"the note's signature of {name} is wrong") from error
        signed = True
    if not signed:
        raise UnknownKey("the note is signed by another key than the one given")
    return text


class Checkpoint(msgspec.Struct, frozen=True):
    """What a log commits itself to: its first `size` records, by the root of their tree."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text to sign."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """The checkpoint that a note's text is; lines that later versions may add are passed over. Raises `BadNote`."""
        lines = text.split("\n")
        if len(lines) < 4 or lines.pop() or not all(lines):
            raise BadNote("the note is no checkpoint: it lacks a line, or one is empty")
        origin, size, encoded = lines[:3]
        root = _base64(encoded)
        if len(size) > _MAX_SIZE_DIGITS or not _SIZE.fullmatch(size) or int(size) >= 1 << 63:
            raise BadNote("the note is no checkpoint: its second line is no size")
        if root is None or len(root) != _ROOT_BYTES:
            raise BadNote("the note is no checkpoint: its third line is no root")
        return cls(origin, int(size), root)


def open_checkpoint(note: bytes, key: VerifierKey) -> Checkpoint:
    """The checkpoint that a log signed with its own key, which has the log's origin for a name.

    Raises what `open_note` raises, and `BadNote` if it is the checkpoint of another log.
    """
    checkpoint = Checkpoint.parse(open_note(note, [key]))
    if checkpoint.origin != key.name:
        raise BadNote(f"the note speaks of {checkpoint.origin[:200]!r}, which is not the log of this key")
    return checkpoint


def _parse(note: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The text and the signatures, unchecked."""
    if len(note) > MAX_NOTE_BYTES:
        raise BadNote(f"a note has at most {MAX_NOTE_BYTES} bytes")
    try:
        content = note.decode()
    except UnicodeDecodeError as error:
        raise BadNote("the note is not UTF-8") from error
    if any(character < " " and character != "\n" for character in content):
        raise BadNote("the note holds control characters")
    text, empty_line, tail = content.rpartition("\n\n")
    lines = tail.split("\n")
    if not empty_line or not text or lines.pop() or not lines:
        raise BadNote("the note has no text, no signature, or not its last newline")
    if len(lines) > MAX_SIGNATURES:
        raise BadNote(f"a note has at most {MAX_SIGNATURES} signatures")
    return text + "\n", [_signature(line) for line in lines]


def _signature(line: str) -> tuple[str, bytes]:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    signature = _base64(encoded)
    if not line.startswith(_DASH) or not _is_name(name) or signature is None or len(signature) < 5:
        raise BadNote("a line below the note's text is no signature")
    return name, signature


def _base64(text: str) -> bytes | None:
    """The bytes that `text` is the one encoding of (RFC 4648 section 4); None if it is none."""
    try:
        data = base64.b64decode(text.encode(), validate=True)
    except binascii.Error:
        return None
    return data if base64.b64encode(data) == text.encode() else None


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(c.isspace() or c < " " for c in name)
