"""What the verb does that reads the output of a command, a part at a time. It holds no logic of its own."""

from __future__ import annotations

import codecs

from sandkeep.events import BadInput
from sandkeep.events.catalogue import CommandExecuted
from sandkeep.sandboxes import background, documents_agents, execution
from sandkeep.sandboxes.door import Door

MOST_BYTES = 1 << 20


def read_output(
    door: Door,
    *,
    task: str,
    command: str,
    stream: str = "stdout",
    offset: int = 0,
    length: int = 16_000,
) -> documents_agents.OutputPart:
    """A part of what a command has written; of one in the background, so far. Raises `BadInput`, and what reading
    blobs raises."""
    found, most = door.keep.task(task), min(length, MOST_BYTES)
    for record in found.history(types=(CommandExecuted.__name__,)):
        event = record.event
        if isinstance(event, CommandExecuted) and event.intent == command:
            output = event.stdout if stream == "stdout" else event.stderr
            data = execution.part(output, door.keep.blobs, offset, most)
            return _part(found.id, command, stream, offset, data, output.size, False)
    running = background.find(door.keep, found.id, command)
    data = running.output(stream, offset, most)
    return _part(found.id, running.id, stream, offset, data, offset + len(data), True)


def _part(
    task: str, command: str, stream: str, offset: int, data: bytes, size: int, runs: bool
) -> documents_agents.OutputPart:
    if offset > size:
        raise BadInput(f"there are {size} bytes of {stream}; begin at one of them")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final=offset + len(data) == size and not runs)
    left = len(decoder.getstate()[0])  # of a character that the next part has the rest of
    if left == len(data) and not runs:
        text, left = data.decode("utf-8", "replace"), 0
    data = data[: len(data) - left]
    end = offset + len(data)
    after = end if runs or end < size else None
    return documents_agents.OutputPart(task, command, stream, offset, len(data), size, text, runs, after)
