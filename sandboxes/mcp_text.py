"""What an agent is shown of a result: a document that is short enough to be read by a model, and the same as text.

Of long output the beginning and the end are shown, and between them how the rest is read: by `read_output`.
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

HEAD, TAIL = 6_000, 10_000
"""How many characters of the beginning and the end of long output are shown."""

MOST_TEXT, MOST_ITEMS = 60_000, 1_000
"""How much text is shown in all, and how many results of a verb that gives one after another."""

Document = dict[str, Any]


def shown(result: Any) -> Document:
    """A result as the object that an agent gets; what is none is its field `result`."""
    if isinstance(result, Iterator):
        result = list(islice(result, MOST_ITEMS))
    found = msgspec.to_builtins(result, str_keys=True)
    if not isinstance(found, dict):
        return {"result": found}
    for stream in ("stdout", "stderr"):
        text = found.get(stream)
        if isinstance(text, str) and len(text) > HEAD + TAIL and "command" in found:
            found[stream] = _cut(
                text,
                stream,
                found["command"],
                found.get(f"{stream}_bytes", len(text)),
                found.pop(f"{stream}_base64", None),
            )
    return found


def text(document: Document, notes: Iterable[str] = ()) -> str:
    """The same for a model: of a command what it wrote, of everything else the document."""
    lines = _ran(document) if "exit_code" in document else [msgspec.json.encode(document).decode()]
    said = "\n".join([*lines, *(f"note: {each}" for each in notes)])
    if len(said) > MOST_TEXT:
        return said[:MOST_TEXT] + f"\n[{len(said) - MOST_TEXT} characters are left out; ask for less at a time]"
    return said


def _ran(document: Document) -> Sequence[str]:
    lines = [f"exit code {document['exit_code']} after {document['duration_s']:.3g} s"]
    for stream in ("stdout", "stderr"):
        if document.get(stream):
            lines += [f"{stream}:", str(document[stream]).rstrip("\n")]
    return lines


def _cut(text: str, stream: str, command: str, size: int, exact: str | None) -> str:
    # What is no UTF-8 is longer as text than it is.
    raw = text[:HEAD].encode() if exact is None else base64.b64decode(exact[: 4 * HEAD])[:HEAD]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    head = decoder.decode(raw)
    offset = len(raw) - len(decoder.getstate()[0])
    return (
        f"{head}\n[... {size} bytes in all; the middle is left out: read_output with command {command!r}, stream"
        f" {stream!r} and offset {offset} goes on from here ...]\n{text[-TAIL:]}"
    )
