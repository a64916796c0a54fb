"""The verbs for tasks: what there is, and what it is told to do."""

from __future__ import annotations

from sandkeep.sandboxes.vocabulary_terms import AS_OF, LIMIT, LIMITS, REACH, TASK, Parameter, Verb

_TASKS = "Tasks"
_STATES = ("created", "active", "paused", "completed", "failed", "cleaned")


def _time(name: str) -> Parameter:
    return Parameter(name=name, help="A time, as 2026-01-31 or 2026-01-31T12:00:00Z.", metavar="TIME")


VERBS = (
    Verb(
        name="create-task",
        theme=_TASKS,
        help="Create a task; its workspace is a clone of --source, or empty. Its first command starts its sandbox.",
        example='sandkeep create-task "Fix the login test" --source . --network allow --allow pypi.org',
        tool="create_task_sandbox",
        tool_help=(
            "Create a task: a piece of work with a workspace folder of its own and an isolated Docker sandbox in which"
            " its commands run. Do this first, then run commands with execute_in_task and the id that this returns."
            " Give source, the path of a git repository on the host, to start from a clone of it; the repository itself"
            " is never changed. The sandbox has no network unless its owner allows it; ask the user if you need some."
        ),
        slash=True,
        result="documents.MadeTask",
        run="verbs_tasks:create_task",
        show="show_tasks:made",
        parameters=(
            Parameter(
                name="title", help="What the task is, in a few words.", metavar="TITLE", positional=True, required=True
            ),
            Parameter(name="source", help="A git repository to clone.", metavar="DIR"),
            Parameter(
                name="image",
                help="One of ours (see 'images'), or any other; by default the base.",
                metavar="NAME",
            ),
            Parameter(name="owner", help="Whose task it is; by default yours.", metavar="NAME"),
            Parameter(name="tag", help="A tag; may be repeated.", many=True, metavar="TAG"),
            Parameter(name="parent", help="The task that it is a part of.", metavar="TASK"),
            Parameter(
                name="network",
                help="What it may reach: none, services, allow or open.",
                default="none",
                metavar="MODE",
                people_only=True,
            ),
            *REACH,
            *LIMITS,
            Parameter(
                name="cache",
                help="A cache of the keep, or NAME=read-only; may be repeated.",
                many=True,
                metavar="NAME",
                people_only=True,
            ),
            Parameter(
                name="no_caches",
                help="Not even those that every task has.",
                type=bool,
                default=False,
                people_only=True,
            ),
            Parameter(
                name="writable_root",
                help="Commands may write outside the workspace; keep.toml has to grant it.",
                type=bool,
                default=False,
                people_only=True,
            ),
        ),
    ),
    Verb(
        name="list-tasks",
        theme=_TASKS,
        help="List tasks, a page at a time: all but the cleaned ones, unless --state says otherwise.",
        example="sandkeep list-tasks --state active --tag urgent --sort updated",
        tool="list_tasks",
        tool_help=(
            "List tasks, newest first: their ids, titles, states and numbers. Use it to find work that was begun"
            " before. Filters can be combined; if next is not null, give it as cursor to get the following page."
        ),
        slash=True,
        result="documents.TaskPage",
        run="verbs_tasks:list_tasks",
        show="show_tasks:page",
        parameters=(
            Parameter(
                name="state",
                help="Only tasks in this state; may be repeated.",
                many=True,
                choices=_STATES,
                metavar="STATE",
            ),
            Parameter(name="owner", help="Only tasks of this owner.", metavar="NAME"),
            Parameter(name="tag", help="Only with this tag; may be repeated.", many=True, metavar="TAG"),
            Parameter(name="parent", help="Only the parts of this task.", metavar="TASK"),
            Parameter(name="text", help="Only with these words, or words so begun.", default="", metavar="WORDS"),
            _time("created_since"),
            _time("created_before"),
            _time("updated_since"),
            _time("updated_before"),
            Parameter(
                name="sort",
                help="Newest first, last updated first, or by title.",
                default="created",
                choices=("created", "updated", "title"),
            ),
            Parameter(name="reverse", help="The other way round.", type=bool, default=False),
            LIMIT,
            Parameter(name="cursor", help="Go on where a page ended.", metavar="CURSOR"),
            AS_OF,
        ),
    ),
    Verb(
        name="show-task",
        theme=_TASKS,
        help=(
            "Show what is true of a task now, its checkpoints, the own workspaces in it that are not merged, and what"
            " is under way or was left behind by a crash."
        ),
        example="sandkeep show-task 4f1c --as-of 2026-01-31",
        tool="show_task",
        tool_help=(
            "Show all that is true of one task: its state, the host path of its workspace, its checkpoints, and what is"
            " pending. With as_of, a position of the log or a time, it is shown as it was then."
        ),
        slash=True,
        result="documents.ShownTask",
        run="verbs_tasks:show_task",
        show="show_tasks:task",
        parameters=(TASK, AS_OF),
    ),
)
