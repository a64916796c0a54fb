"""Secrets: values that a command may know and the record may not.

They are set in the command's environment, and whatever is stored of the command (its words, its folder, its output, an
error's message) holds `[secret NAME]` in their place. Recognised are a secret's own bytes and the forms that programs
commonly print it in: percent-encoded, and base64, also where it is only a part of what was encoded. What a command
makes of a secret otherwise (reversed, encrypted, a letter a line), and what it writes to files, is not recognised.

Overlapping secrets are removed together. An end of output that could be the beginning of a secret is removed too, since
a command may be ended, or its output cut, in the middle of one. Everything here is pure, or used by one thread.
"""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import BinaryIO, final

from sandkeep.events import BadInput

SHORTEST = 4
"""A shorter value would be found in all that is harmless."""

MAX_NAME = 64
_SHORTEST_PART = 8


@final
class Secrets:
    """The secrets of one command, by the names of their variables."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """Raises `BadInput`; no message holds a value."""
        forms: dict[bytes, bytes] = {}
        for name, value in values.items():
            if len(value) < SHORTEST:
                raise BadInput(f"the secret {name[:MAX_NAME]} has fewer than {SHORTEST} characters; use a longer one")
            if len(name) > MAX_NAME:
                raise BadInput(f"a secret's name has at most {MAX_NAME} characters; shorten {name[:MAX_NAME]}...")
            for form in _forms(value):
                forms.setdefault(form, f"[secret {name}]".encode())
        self._forms = forms
        self._longest = max(map(len, forms), default=1)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def text(self, text: str) -> str:
        """`text` without secrets."""
        if not self._forms:
            return text
        data = text.encode("utf-8", "surrogateescape")
        return b"".join(self._pieces(iter((data,)), ends=False)).decode("utf-8", "surrogateescape")

    def data(self, data: bytes) -> bytes:
        """Output without secrets."""
        return b"".join(self._pieces(iter((data,)), ends=True))

    def stream(self, source: BinaryIO, limit: int) -> Redacted:
        """The first `limit` bytes of `source`, without secrets, in bounded memory."""
        return Redacted(self._pieces(_chunks(source, limit), ends=True))

    def _pieces(self, chunks: Iterator[bytes], *, ends: bool) -> Iterator[bytes]:
        # `rest` is what is not given out yet; its first `covered` bytes belong to a secret already replaced by `label`.
        rest, covered, label, last = b"", 0, b"", False
        while not last:
            chunk = next(chunks, b"")
            last = not chunk
            rest += chunk
            # A secret that begins before `upto` lies in `rest` completely.
            upto = len(rest) if last else max(0, len(rest) - self._longest + 1)
            out: list[bytes] = []
            for begin, end, found in self._found(rest, upto, ends and last):
                if begin >= covered:
                    out.append(rest[covered:begin])
                    out.append(found)
                elif found != label:
                    out.append(found)
                label, covered = found, max(covered, end)
            out.append(rest[covered:upto])
            rest, covered = rest[upto:], max(0, covered - upto)
            if piece := b"".join(out):
                yield piece

    def _found(self, data: bytes, upto: int, ends: bool) -> list[tuple[int, int, bytes]]:
        """Where secrets begin before `upto`, in order, overlapping ones too."""
        found: list[tuple[int, int, bytes]] = []
        for form, label in self._forms.items():
            at = data.find(form)
            while 0 <= at < upto:
                found.append((at, at + len(form), label))
                at = data.find(form, at + 1)
            if ends:
                for size in range(min(len(form) - 1, len(data)), SHORTEST - 1, -1):
                    if data.endswith(form[:size]):
                        found.append((len(data) - size, len(data), label))
                        break
        return sorted(found)


@final
class Redacted:
    """A stream without secrets (see `Secrets.stream`); it gives pieces of about 64 KiB, and b"" at the end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, size: int = -1) -> bytes:
        """The next piece, of whatever size."""
        return next(self._pieces, b"")


def _forms(value: str) -> Iterator[bytes]:
    raw = value.encode()
    yield raw
    for quoted in (urllib.parse.quote(value, safe=""), urllib.parse.quote(value), urllib.parse.quote_plus(value)):
        yield quoted.encode()
    # Base64 writes three bytes as four letters: where a secret stands in what is encoded decides which letters are its
    # own. Those that it shares with its neighbours are left out.
    for before in range(3):
        whole = base64.b64encode(bytes(before) + raw).rstrip(b"=")
        begin, end = (0, 2, 3)[before], len(whole) - (1 if (before + len(raw)) % 3 else 0)
        part = whole[begin:end]
        if len(part) >= _SHORTEST_PART:
            yield part
            yield part.translate(bytes.maketrans(b"+/", b"-_"))
    yield base64.b64encode(raw)
    yield base64.urlsafe_b64encode(raw)


def _chunks(source: BinaryIO, limit: int) -> Iterator[bytes]:
    while limit > 0 and (chunk := source.read(min(1 << 16, limit))):
        limit -= len(chunk)
        yield chunk
