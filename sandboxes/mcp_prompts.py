"""Prompts for the verbs that are slash commands: each asks the agent to call a tool with what the person has given."""

from __future__ import annotations

import mcp_types as types
from mcp.shared.exceptions import MCPError

from sandkeep.sandboxes.mcp_tools import TOOLS
from sandkeep.sandboxes.vocabulary_terms import Verb

_SLASH: dict[str, Verb] = {verb.name: verb for verb in TOOLS.values() if verb.slash}


def listed() -> list[types.Prompt]:
    """All prompts."""
    return [
        types.Prompt(
            name=verb.name,
            description=verb.help,
            arguments=[
                types.PromptArgument(name=each.name, description=each.help, required=each.required)
                for each in verb.offered
            ],
        )
        for verb in _SLASH.values()
    ]


def prompt(name: str, given: dict[str, str] | None) -> types.GetPromptResult:
    """What the agent is asked to do. Raises `MCPError` for what is no prompt, or lacks an argument."""
    verb = _SLASH.get(name)
    if verb is None:
        raise MCPError(types.INVALID_PARAMS, f"there is no prompt {name[:80]!r}; list the prompts there are")
    given = {each.name: given[each.name] for each in verb.offered if given and given.get(each.name)}
    missing = [each.name for each in verb.offered if each.required and each.name not in given]
    if missing:
        raise MCPError(types.INVALID_PARAMS, f"the prompt {name} needs {', '.join(missing)}")
    listed = "".join(f"\n- {name}: {value}" for name, value in given.items())
    text = f"Call the tool {verb.tool}{' with these arguments:' + listed if given else ''}\n\nTell me what it gave."
    return types.GetPromptResult(
        description=verb.help,
        messages=[types.PromptMessage(role="user", content=types.TextContent(type="text", text=text))],
    )
