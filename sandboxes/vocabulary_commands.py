"""The verbs for commands: run them in a task's sandbox, in the foreground, in the background, or in a terminal."""

from __future__ import annotations

from sandkeep.sandboxes.vocabulary_terms import TASK, TOKEN, Parameter, Verb

_COMMANDS = "Commands"
_COMMAND = Parameter(
    name="command",
    help="The command's id, or the beginning of it.",
    metavar="COMMAND",
    positional=True,
    required=True,
)

VERBS = (
    Verb(
        name="execute",
        theme=_COMMANDS,
        help="Run a command in a task's sandbox; its streams and its exit status are those of this program.",
        example="sandkeep execute 4f1c --timeout 60 -- pytest -q",
        tool="execute_in_task",
        tool_help=(
            "Run a command in the task's sandbox and wait for it; its working directory is the workspace, which stays"
            " as the command leaves it. argv is the program and its arguments, one string each and no shell: for a"
            ' shell line give ["sh", "-c", LINE]. A non-zero exit_code is a result, not an error. With in_background it'
            " returns at once with the id of a command that goes on; use that for servers. If you have attached to the"
            " task, give the token."
        ),
        slash=True,
        speaks=True,
        result="documents.Ran | documents.Process",
        run="verbs_execute:execute",
        show="show_execute:executed",
        parameters=(
            TASK,
            Parameter(
                name="argv",
                help="The program and its arguments.",
                many=True,
                positional=True,
                metavar="-- ARGV...",
            ),
            Parameter(
                name="timeout",
                help=(
                    "When it is up, all that the command started is ended (124). By default 600, a day in the"
                    " background."
                ),
                type=float,
                metavar="SECONDS",
            ),
            Parameter(name="env", help="A variable; may be repeated.", many=True, metavar="K=V"),
            # The variables of whoever runs a server are not its agents' to pass on.
            Parameter(
                name="secret",
                help="A variable of yours whose value is kept out of the record; may be repeated.",
                many=True,
                metavar="NAME",
                people_only=True,
            ),
            Parameter(name="cwd", help="Where to run, inside the workspace.", default=".", metavar="DIR"),
            # These name files of the host, which an agent has no business to read through us.
            Parameter(name="stdin", help="What it reads; - is our own input.", metavar="FILE", people_only=True),
            Parameter(
                name="script",
                help="A shell script to run; ARGV are its arguments.",
                metavar="FILE",
                people_only=True,
            ),
            Parameter(
                name="in_background",
                help="Do not wait; see 'processes'.",
                type=bool,
                default=False,
                option="--background",
            ),
            TOKEN,
        ),
    ),
    Verb(
        name="processes",
        theme=_COMMANDS,
        help="List the commands that run in the background of a task.",
        example="sandkeep processes 4f1c",
        tool="processes",
        tool_help="List the commands that run in the background of a task: their ids, argv and time limits.",
        result="list[documents.Process]",
        run="verbs_execute:processes",
        show="show_execute:processes",
        parameters=(TASK,),
    ),
    Verb(
        name="process-output",
        theme=_COMMANDS,
        help="Show what a command in the background has written so far.",
        example="sandkeep process-output 4f1c 77ab --after 4096",
        tool="process_output",
        tool_help=(
            "Read what a command in the background has written so far, as base64; give the next that this returns as"
            " after to read only what is new. Once the command has ended, use wait_process for its result."
        ),
        speaks=True,
        result="documents_work.Written",
        run="verbs_execute:process_output",
        show="show_execute:shown_already",
        parameters=(
            TASK,
            _COMMAND,
            Parameter(name="stderr", help="What it wrote to standard error instead.", type=bool, default=False),
            Parameter(
                name="after",
                help="Only what came behind these.",
                type=int,
                default=0,
                least=0,
                metavar="BYTES",
            ),
        ),
    ),
    Verb(
        name="wait-process",
        theme=_COMMANDS,
        help="Wait until a command in the background has ended. Exit status: its own; 124 if it runs on.",
        example="sandkeep wait-process 4f1c 77ab --timeout 30",
        tool="wait_process",
        tool_help=(
            "Wait until a command in the background has ended and get its result, as execute_in_task gives it; null if"
            " it still runs when timeout seconds are over. Always give a timeout."
        ),
        result="documents.Ran | None",
        run="verbs_execute:wait_process",
        show="show_execute:waited",
        parameters=(
            TASK,
            _COMMAND,
            Parameter(name="timeout", help="How long; for ever, if left out.", type=float, metavar="SECONDS"),
        ),
    ),
    Verb(
        name="stop-process",
        theme=_COMMANDS,
        help="End a command in the background, with all that it started.",
        example="sandkeep stop-process 4f1c 77ab",
        tool="stop_process",
        tool_help="End a command in the background, with all that it started, and get its result.",
        result="documents.Ran",
        run="verbs_execute:stop_process",
        show="show_execute:stopped",
        parameters=(TASK, _COMMAND),
    ),
    Verb(
        name="terminal",
        theme=_COMMANDS,
        help="Open a terminal in a task's sandbox. What it shows is recorded.",
        example="sandkeep terminal 4f1c",
        speaks=True,
        document=False,
        result="documents_work.Ended",
        run="verbs_execute:terminal",
        show="show_execute:ended",
        parameters=(
            TASK,
            Parameter(name="argv", help="By default, a shell.", many=True, positional=True, metavar="-- ARGV..."),
            TOKEN,
        ),
    ),
)
