"""A call of a tool: made on a thread of its own, at most once whatever crashes, and answered whatever comes of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import mcp_types as types
import msgspec

from sandkeep.events import SandkeepError, calls
from sandkeep.sandboxes import mcp_text, mcp_tools, settings
from sandkeep.sandboxes.door import run
from sandkeep.sandboxes.mcp_door import McpDoor
from sandkeep.sandboxes.mcp_session import AGAIN, SINCE
from sandkeep.sandboxes.vocabulary_terms import Verb

if TYPE_CHECKING:
    from sandkeep.sandboxes.attendance import Attendance
    from sandkeep.sandboxes.keep import Keep

_WORKS = ("execute", "restore-checkpoint")
"""The verbs after which a workspace is worth recording."""

_logger = logging.getLogger(__name__)


class Call(msgspec.Struct, frozen=True):
    """A call of a verb, as the front gave it: `meta` holds its key, and whether it was made before."""

    verb: Verb
    door: McpDoor
    arguments: dict[str, Any]
    meta: Mapping[str, Any]
    attendance: Attendance

    def result(self) -> types.CallToolResult:
        """Make the call. What comes of it is never an exception."""
        try:
            made = self._noted()
            document = mcp_text.shown(made)
            text = mcp_text.text(document, self.door.notes)
            failed = self.verb.judges and document.get("ok") is False
            return types.CallToolResult(
                content=[types.TextContent(type="text", text=text)], structured_content=document, is_error=failed
            )
        except SandkeepError as error:
            return refused(error)
        except OSError as error:
            return _error("os-error", f"the operating system refused: {error.strerror or error}")
        except Exception:  # told to the log; an agent can do nothing with it
            _logger.exception("%s failed", self.verb.name)
            return _error("internal", "the server failed, and its log says why; what was recorded before that stands")

    def _noted(self) -> Any:
        """Make the call, and note what its agent has taken up by it."""
        door, attendance = self.door, self.attendance
        if self.verb.name in _WORKS:
            attendance.worked(door.keep.task(self.arguments["task"]).id)
        made = self._made()
        match self.verb.name:
            case "attach":
                attendance.attached(made.task, made.token)
                if door.cancelled.is_set():  # nobody would ever release it
                    door.keep.locking.release(made.task, made.token)
                    attendance.detached(made.token)
            case "detach":
                attendance.detached(made.token)
            case "checkpoint":
                attendance.recorded(made.task)
            case "cleanup-task":
                attendance.recorded(made.id)
        return made

    def _made(self) -> Any:
        """The result, also if the call was made before."""
        do, since = partial(run, self.verb, self.door, self.arguments), self.meta.get(SINCE)
        if self.door.key is None:
            return do()
        if self.meta.get(AGAIN) and isinstance(since, int):
            from sandkeep.sandboxes import mcp_repeat

            return mcp_repeat.again(self.door, self.verb, self.arguments, self.door.key, since, do)
        with calls.call(self.door.key):
            return do()


def lasting(keep: Keep) -> bool:
    """Whether what an agent runs goes on when it is gone."""
    return settings.load(keep.path).sessions.commands == "keep"


def tool(verb: Verb) -> types.Tool:
    """A verb as it is listed for agents."""
    return types.Tool(
        name=verb.tool,
        description=verb.tool_help or verb.help,
        input_schema=mcp_tools.input_schema(verb),
        output_schema=mcp_tools.output_schema(verb),
    )


def refused(error: SandkeepError) -> types.CallToolResult:
    """An error of the library as one that the model is shown."""
    return _error(error.code, str(error))


def _error(code: str, text: str) -> types.CallToolResult:
    said = f"{' '.join(text.split())} [{code}]"
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=said)], is_error=True, _meta={"sandkeep/code": code}
    )
