"""The slash commands: a file for each, which tells an agent which of our tools to call with what was typed behind it.

They are made from the vocabulary. The last line of each holds a digest of all above it: what has another was changed by
somebody, is theirs, and is left alone.
"""

from __future__ import annotations

import hashlib
import re

from sandkeep.sandboxes.clients import SERVER, Client
from sandkeep.sandboxes.vocabulary import VERBS, Parameter, Verb

_MARK = re.compile(rb"(.*)<!-- sandkeep install ([0-9a-f]{16}) -->\n", re.DOTALL)


def commands(client: Client) -> dict[str, str]:
    """The files for a client, by the names of the commands."""
    return {verb.name: _file(client, verb) for verb in VERBS if verb.slash}


def is_ours(data: bytes) -> bool:
    """Whether a file is as `commands` made it, in whichever version."""
    found = _MARK.fullmatch(data)
    return found is not None and _digest(found[1]).encode() == found[2]


def _file(client: Client, verb: Verb) -> str:
    head = [f"description: {_quoted(verb.help.partition('. ')[0].rstrip('.'))}"]
    if client.name == "opencode":
        head.append("agent: build")
    else:
        head.append(f"argument-hint: {_quoted(' '.join(map(_hint, _asked(verb))))}")
        head.append(f"allowed-tools: mcp__{SERVER}__{verb.tool}")
    lines = [
        "---",
        *head,
        "---",
        f"Call the tool `{verb.tool}` of the MCP server `{SERVER}` with: $ARGUMENTS",
        "",
        *(f"- `{each.name}`{' (needed)' * each.required}: {each.help}" for each in _asked(verb)),
        "",
        "Take what is not said from the conversation; ask for what is needed and cannot be found there.",
        "Then say in a few words what came of it.",
    ]
    text = "\n".join(lines) + "\n"
    return f"{text}<!-- sandkeep install {_digest(text.encode())} -->\n"


def _asked(verb: Verb) -> list[Parameter]:
    return [each for each in verb.offered if each.required or each.positional]


def _hint(asked: Parameter) -> str:
    name = asked.name + "..." * asked.many
    return name if asked.required else f"[{name}]"


def _quoted(text: str) -> str:
    """A YAML string, whatever it holds."""
    return "'" + text.replace("'", "''") + "'"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
