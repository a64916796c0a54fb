"""The verbs that serve agents: the server, and what is only asked through it."""

from __future__ import annotations

from sandkeep.sandboxes.vocabulary_terms import TASK, Parameter, Verb

VERBS = (
    Verb(
        name="read-output",
        theme="Commands",
        help="Show what a command of a task wrote, a part at a time.",
        example="sandkeep read-output 4f1c 77ab0c6d19e2f358 --offset 16000",
        tool="read_output",
        tool_help=(
            "Read what a command wrote to stdout or stderr, a part at a time. Long output is shortened in the result of"
            " execute_in_task; this gives all of it. Begin at offset 0, or at the offset that you were told, and go on"
            " with next until that is null. It also shows what a command in the background has written so far."
        ),
        result="documents_agents.OutputPart",
        run="verbs_output:read_output",
        show="show_agents:output",
        parameters=(
            TASK,
            Parameter(
                name="command",
                help="The command's id, as it was told when it ran.",
                metavar="COMMAND",
                positional=True,
                required=True,
            ),
            Parameter(name="stream", help="Which of the two.", default="stdout", choices=("stdout", "stderr")),
            Parameter(
                name="offset", help="How much of it to leave out.", type=int, default=0, least=0, metavar="BYTES"
            ),
            Parameter(name="length", help="How much at most.", type=int, default=16_000, least=1, metavar="BYTES"),
        ),
    ),
    Verb(
        name="mcp",
        theme="Agents and conflicts",
        help=(
            "Serve a keep to a coding agent by the Model Context Protocol, on standard input and output; with --http,"
            " to any number of them on this machine."
        ),
        example="sandkeep mcp --keep ~/project/.sandkeep",
        result="None",
        run="verbs_serve:mcp",
        show="verbs_serve:nothing",
        document=False,
        parameters=(
            Parameter(
                name="agent",
                help="Who does what is asked for; by default the client's name and a word for each session.",
                metavar="NAME",
                envvar="SANDKEEP_AGENT",
            ),
            Parameter(
                name="http",
                help="Serve HTTP on this port of the loopback interface instead; 0 for any.",
                type=int,
                least=0,
                metavar="PORT",
            ),
        ),
    ),
)
