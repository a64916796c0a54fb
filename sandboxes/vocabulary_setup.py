"""The verbs that set sandkeep up for the programs around it."""

from __future__ import annotations

from sandkeep.sandboxes.vocabulary_terms import Parameter, Verb

_SETUP = "Setting up"
_CLIENTS = ("opencode", "claude-code", "codex", "cursor")

_NAMES = Parameter(
    name="clients",
    help="Which agents: opencode, claude-code, codex, cursor. By default all that are used here.",
    many=True,
    positional=True,
    choices=_CLIENTS,
    metavar="[AGENT]...",
)
_PROJECT = Parameter(name="project", help="The folder of the project.", default=".", metavar="DIR")
_USER = Parameter(name="user", help="For all projects of yours, instead of one.", type=bool, default=False)
_DRY_RUN = Parameter(name="dry_run", help="Change nothing, and show what would be changed.", type=bool, default=False)

# None of these is for agents: whoever could change what starts with a program could start anything.
VERBS = (
    Verb(
        name="install",
        theme=_SETUP,
        help=(
            "Tell agents where our server is, and give them the slash commands. Their configuration keeps every other"
            " byte, and a copy of what it was is kept beside it."
        ),
        example="sandkeep install claude-code --dry-run",
        result="list[documents_setup.Change]",
        run="verbs_setup:install",
        show="show_setup:changes",
        parameters=(
            _NAMES,
            _PROJECT,
            _USER,
            Parameter(
                name="for_keep",
                help="The keep that the server works on; by default .sandkeep in the agent's folder.",
                option="--keep",
                metavar="DIR",
            ),
            _DRY_RUN,
        ),
        keep=False,
    ),
    Verb(
        name="uninstall",
        theme=_SETUP,
        help="Take out of agents' configuration what 'install' put in; all else stays.",
        example="sandkeep uninstall",
        result="list[documents_setup.Change]",
        run="verbs_setup:uninstall",
        show="show_setup:changes",
        parameters=(_NAMES, _PROJECT, _USER, _DRY_RUN),
        keep=False,
    ),
)
