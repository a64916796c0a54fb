"""The verbs for tasks: what there is, and what it is told to do."""

from __future__ import annotations

from dataclasses import replace

from sandkeep.sandboxes.vocabulary_terms import (
    ADD,
    AS_OF,
    LIMIT,
    LIMITS,
    REACH,
    REMOVE,
    TASK,
    TOKEN,
    Parameter,
    Verb,
)

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
    Verb(
        name="find-task",
        theme=_TASKS,
        help="Find tasks by words in any order, also begun or misspelt; the best first, then the newest.",
        example="sandkeep find-task login tets",
        tool="find_task",
        tool_help=(
            "Find tasks by words of their titles or tags, in any order, also begun or misspelt, or by the beginning of"
            " an id. The best fit comes first."
        ),
        slash=True,
        result="list[documents_record.FoundTask]",
        run="verbs_tasks:find_task",
        show="show_tasks:found",
        parameters=(
            Parameter(
                name="words",
                help="Words of the title or of tags, or the beginning of an id.",
                many=True,
                positional=True,
                required=True,
                metavar="WORDS...",
            ),
            replace(LIMIT, default=20),
            AS_OF,
        ),
    ),
    Verb(
        name="changes",
        theme=_TASKS,
        help="Show which tasks were created, changed (field by field) and ended between two moments.",
        example="sandkeep changes --from 2026-01-31 --to 2026-02-01",
        result="list[documents_record.Changed]",
        run="verbs_tasks:changes",
        show="show_tasks:changes",
        parameters=(
            Parameter(
                name="since",
                help="A position or a time; what came after it.",
                required=True,
                option="--from",
                metavar="MOMENT",
            ),
            Parameter(name="until", help="Only up to here, not to now.", option="--to", metavar="MOMENT"),
        ),
    ),
    Verb(
        name="tag-task",
        theme=_TASKS,
        help="Give a task tags, and take tags from it.",
        example="sandkeep tag-task 4f1c --add urgent --remove later",
        tool="tag_task",
        tool_help="Give a task tags, and take tags from it; list_tasks and find_task find it by them.",
        result="documents.Task",
        run="verbs_tasks:tag_task",
        show="show_tasks:tags",
        parameters=(TASK, ADD, REMOVE),
    ),
    Verb(
        name="pause-task",
        theme=_TASKS,
        help="Freeze a task's sandbox; commands are refused until resume-task.",
        example="sandkeep pause-task 4f1c",
        tool="pause_task",
        tool_help="Freeze a task's sandbox with all that runs in it; commands are refused until resume_task.",
        result="documents.Task",
        run="verbs_life:pause_task",
        show="show_tasks:state",
        parameters=(TASK, TOKEN),
    ),
    Verb(
        name="resume-task",
        theme=_TASKS,
        help="Let a paused task go on, and say what whoever goes on with it must know.",
        example="sandkeep resume-task 4f1c",
        tool="resume_task",
        tool_help=(
            "Go on with a task that somebody else began, or you in an earlier session: it is resumed if it was paused,"
            " and you get a briefing: the plan, the last commands and how the tests stood, what was decided, which"
            " files changed since the last checkpoint, what still runs, and who else works on it. Call this before"
            " anything else in a task that you did not create."
        ),
        slash=True,
        result="documents_agents.Resumed",
        run="verbs_life:resume_task",
        show="show_agents:resumed",
        parameters=(TASK, TOKEN),
    ),
    Verb(
        name="stop-task",
        theme=_TASKS,
        help="Remove a task's sandbox. The workspace stays, and the next command starts another sandbox.",
        example="sandkeep stop-task 4f1c",
        tool="stop_task",
        tool_help=(
            "Remove a task's sandbox, ending all that runs in it. The workspace stays, and the next command starts"
            " another sandbox."
        ),
        result="documents.Task",
        run="verbs_life:stop_task",
        show="show_tasks:state",
        parameters=(TASK, TOKEN),
    ),
    Verb(
        name="complete-task",
        theme=_TASKS,
        help="End a task: its sandbox is removed; workspace and checkpoints stay until cleanup-task.",
        example='sandkeep complete-task 4f1c --summary "the test passes"',
        tool="complete_task",
        tool_help=(
            "End a task when its work is done, with a summary of what came of it, or as failed with the reason. Its"
            " sandbox is removed; its workspace and its checkpoints stay, and reopen_task lets it go on."
        ),
        slash=True,
        result="documents.Task",
        run="verbs_life:complete_task",
        show="show_tasks:state",
        parameters=(
            TASK,
            Parameter(name="summary", help="What came of it.", default="", metavar="TEXT"),
            Parameter(name="failed", help="It was given up; --summary says why.", type=bool, default=False),
            TOKEN,
        ),
    ),
    Verb(
        name="reopen-task",
        theme=_TASKS,
        help="Let a completed or failed task go on in the workspace that it had, unless it has been cleaned up.",
        example='sandkeep reopen-task 4f1c --reason "one more case"',
        tool="reopen_task",
        tool_help="Let a completed or failed task go on in the workspace that it had, unless it was cleaned up.",
        result="documents.Task",
        run="verbs_life:reopen_task",
        show="show_tasks:state",
        parameters=(TASK, Parameter(name="reason", help="Why it goes on.", default="", metavar="TEXT"), TOKEN),
    ),
    Verb(
        name="cleanup-task",
        theme=_TASKS,
        help="Remove what an ended task has on disk and in Docker. Its history and its checkpoints stay.",
        example="sandkeep cleanup-task 4f1c",
        tool="cleanup_task",
        tool_help=(
            "Remove the workspace of a task that has ended. Its history and its checkpoints stay, but it cannot go on:"
            " do this only when the user has what they wanted of it."
        ),
        result="documents.Task",
        run="verbs_life:cleanup_task",
        show="show_tasks:state",
        parameters=(TASK, TOKEN),
    ),
)
