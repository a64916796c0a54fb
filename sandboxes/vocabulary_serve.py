"""The verb that serves agents: it is asked nothing by them, so it is no tool."""

from __future__ import annotations

from sandkeep.sandboxes.vocabulary_terms import Parameter, Verb

VERBS = (
    Verb(
        name="mcp",
        theme="Agents and conflicts",
        help="Serve a keep to a coding agent by the Model Context Protocol, on standard input and output.",
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
        ),
    ),
)
