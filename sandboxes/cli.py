"""The command line: `sandkeep VERB`. It holds no logic: each verb is one of the `vocabulary`, done by the function that
it names there, and this shows what came of it.

Exit status: 0 done; 1 refused or failed; 2 bad input; for `execute` without `--json`, that of the command. With
`--json` one JSON document is printed (`events` and `steward` print one a line), `{"error": ...}` when it could not be
done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer

from sandkeep.events import SandkeepError
from sandkeep.sandboxes import commands, stdout
from sandkeep.sandboxes.door import named, run
from sandkeep.sandboxes.terminal_door import TerminalDoor
from sandkeep.sandboxes.text import escaped
from sandkeep.sandboxes.vocabulary import KEEP, VERBS, Verb

_HELP = "Isolated Docker sandboxes for coding agents, with a verifiable record of everything that happens in them."


def main() -> NoReturn:
    """The entry point: run a verb, and turn what goes wrong into one line and an exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    json = "--json" in sys.argv[: sys.argv.index("--") if "--" in sys.argv else None]
    try:
        program = commands.group("sandkeep", _HELP, VERBS, _act)
        status = program.main(sys.argv[1:] or ["--help"], "sandkeep", standalone_mode=False)
    except SandkeepError as error:
        _fail(error.code, str(error), error.exit_status, json)
    except typer.TyperException as error:
        _fail("bad-usage", error.format_message(), 2, json)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail("os-error", f"the operating system refused: {error.strerror or error}{where}", 1, json)
    sys.exit(status if isinstance(status, int) else 0)


def _act(verb: Verb, given: dict[str, Any]) -> int:
    """Do a verb and show what it gave; returns the exit status."""
    json = given.pop("json", False)
    with TerminalDoor(Path(given.pop("keep", KEEP.default)), json=json, speaks=verb.speaks) as door:
        result = run(verb, door, given)
        if verb.streams:
            _show_all(verb, result, given, json)
            return 0
    status = _show(verb, result, given, json)
    return 1 if verb.judges and not result.ok else status


def _show(verb: Verb, result: Any, given: dict[str, Any], json: bool) -> int:
    if json:
        stdout.print_json(result)
        return 0
    status: int | None = named(verb.show)(result, given)
    return status or 0


def _show_all(verb: Verb, results: Any, given: dict[str, Any], json: bool) -> None:
    try:
        for each in results:
            _show(verb, each, given, json)
    except KeyboardInterrupt as interrupt:
        # It may have come while one was shown; what it means is for the verb to say.
        with contextlib.suppress(StopIteration):
            results.throw(interrupt)


def _fail(code: str, message: str, status: int, json: bool) -> NoReturn:
    line = escaped(" ".join(message.split()))
    print(f"sandkeep: {line} [{code}]", file=sys.stderr)
    if json:
        # A path in it may be none that JSON can hold.
        message = message.encode("utf-8", "backslashreplace").decode()
        stdout.print_json({"error": {"code": code, "message": message}})
    sys.exit(status)


def _terminate(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
