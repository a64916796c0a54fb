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
    Verb(
        name="completion",
        theme=_SETUP,
        help=(
            "Print what a shell reads to complete verbs, options and the ids of tasks and checkpoints.\n\nIn bash or"
            ' zsh: eval "$(sandkeep completion bash)"; in fish: sandkeep completion fish | source. With words it'
            " answers what the last of them may become."
        ),
        example='eval "$(sandkeep completion bash)"',
        result="list[str]",
        run="verbs_setup:completion",
        show="show_lines:lines",
        parameters=(
            Parameter(
                name="shell",
                help="Which shell.",
                choices=("bash", "zsh", "fish"),
                metavar="bash|zsh|fish",
                positional=True,
                required=True,
            ),
            Parameter(name="words", help="The words on its line.", many=True, positional=True, metavar="[-- WORD...]"),
        ),
        document=False,
    ),
    Verb(
        name="watch",
        theme=_SETUP,
        help=(
            "Watch tasks, agents, locks, resource use and events as they change. Type q to end it.\n\nIt only reads."
            " For machines there are 'list-tasks', 'top', 'locks' and 'events --follow', with --json."
        ),
        example="sandkeep watch",
        result="Picture | None",
        run="verbs_watch:watch_keep",
        show="show_watch:watched",
        parameters=(Parameter(name="once", help="Show how it is now, and end.", type=bool, default=False),),
        document=False,
    ),
)
