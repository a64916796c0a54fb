"""The difference of two texts as unified hunks, in bounded time.

What both begin and end with is set aside first; what is then still too long is not matched line by line, but shown as
taken away and added.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

CONTEXT = 3
"""How many equal lines stand around a change."""

MOST_MATCHED = 4_000
"""Up to so many lines, on both sides together and without what is equal at the ends, are matched with each other."""

NO_LINE_END = "\\ No newline at end of file"
"""What follows a last line that has no end, as patch(1) knows it."""

_Block = tuple[str, int, int, int, int]


def hunks(old: bytes, new: bytes) -> Iterator[str]:
    """The lines of the hunks, without line ends; what is not UTF-8 is escaped."""
    before, after = _lines(old), _lines(new)
    for group in _groups(_blocks(before, after)):
        yield f"@@ -{_span(group[0][1], group[-1][2])} +{_span(group[0][3], group[-1][4])} @@"
        for tag, start, end, other, other_end in group:
            if tag == "equal":
                yield from _shown(" ", before[start:end])
                continue
            yield from _shown("-", before[start:end])
            yield from _shown("+", after[other:other_end])


def _lines(text: bytes) -> list[bytes]:
    lines = text.split(b"\n")
    # A text that ends with a line end has no last line; one that does not differs from one that does.
    return [*(line + b"\n" for line in lines[:-1]), *([lines[-1]] if lines[-1] else [])]


def _shown(sign: str, lines: Sequence[bytes]) -> Iterator[str]:
    for line in lines:
        yield sign + line.removesuffix(b"\n").decode("utf-8", "backslashreplace")
        if not line.endswith(b"\n"):
            yield NO_LINE_END


def _blocks(before: Sequence[bytes], after: Sequence[bytes]) -> list[_Block]:
    """What is equal, replaced, deleted and inserted, one behind the other."""
    least = min(len(before), len(after))
    head = next((at for at in range(least) if before[at] != after[at]), least)
    tail = next((at for at in range(least - head) if before[-1 - at] != after[-1 - at]), least - head)
    old, new = before[head : len(before) - tail], after[head : len(after) - tail]
    middle: list[_Block] = [("replace", 0, len(old), 0, len(new))] if old or new else []
    if old and new and len(old) + len(new) <= MOST_MATCHED:
        middle = list(difflib.SequenceMatcher(None, old, new).get_opcodes())
    blocks = [("equal", 0, head, 0, head)] if head else []
    blocks += ((tag, a + head, b + head, c + head, d + head) for tag, a, b, c, d in middle)
    if tail:
        blocks.append(("equal", len(before) - tail, len(before), len(after) - tail, len(after)))
    return blocks


def _groups(blocks: Sequence[_Block]) -> Iterator[list[_Block]]:
    """The blocks of each hunk: changes, and as much around them as is shown."""
    group: list[_Block] = []
    for at, (tag, start, end, other, other_end) in enumerate(blocks):
        if tag != "equal":
            group.append((tag, start, end, other, other_end))
            continue
        first, last = at == 0, at == len(blocks) - 1
        if not first and (last or end - start > 2 * CONTEXT):
            shown = min(CONTEXT, end - start)
            yield [*group, ("equal", start, start + shown, other, other + shown)]
            group = []
        if not last and (first or not group):
            shown = min(CONTEXT, end - start)
            group = [("equal", end - shown, end, other_end - shown, other_end)]
        elif not last:
            group.append((tag, start, end, other, other_end))
    if group:
        yield group


def _span(start: int, end: int) -> str:
    """A range of lines as unified diffs have it: an empty one is named by the line before it."""
    length = end - start
    return str(start + 1) if length == 1 else f"{start + 1 if length else start},{length}"
