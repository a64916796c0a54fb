"""The verbs for what is on record: of a task, and of the keep as a whole."""

from __future__ import annotations

from sandkeep.sandboxes.vocabulary_terms import TASK, Parameter, Verb

_RECORD = "The record"
_LAST = Parameter(name="last", help="Only the last N.", type=int, least=1, metavar="N")

VERBS = (
    Verb(
        name="task-history",
        theme=_RECORD,
        help="Show what ever happened in a task; what is on a branch that it has left has a ~.",
        example="sandkeep task-history 4f1c --type CommandExecuted --last 5",
        tool="task_history",
        tool_help=(
            "Show what ever happened in a task, event by event, oldest first. A task may have thousands of events: give"
            " last, or limit and then after, the revision of the last one that you have seen."
        ),
        slash=True,
        result="list[documents_record.HistoryRecord]",
        run="verbs_record:task_history",
        show="show_record:history",
        parameters=(
            TASK,
            Parameter(
                name="after",
                help="Only what came after this revision of the task.",
                type=int,
                default=0,
                least=0,
                metavar="REVISION",
            ),
            Parameter(
                name="types",
                help="Only events of this type; may be repeated.",
                many=True,
                option="--type",
                metavar="TYPE",
            ),
            _LAST,
            Parameter(
                name="limit",
                help="Only the first N; --after gives those behind.",
                type=int,
                least=1,
                metavar="N",
            ),
        ),
    ),
    Verb(
        name="task-executions",
        theme=_RECORD,
        help="List the commands that were run in a task, or show what one of them wrote.",
        example="sandkeep task-executions 4f1c --failed --last 3",
        tool="task_executions",
        tool_help=(
            "List the commands that were run in a task, with their exit codes and times; or, with output, the number of"
            " one of them, show again what it wrote."
        ),
        speaks=True,
        result="list[documents_record.Execution] | documents.Ran | documents_record.Execution",
        run="verbs_record:task_executions",
        show="show_record:executions",
        parameters=(
            TASK,
            Parameter(name="failed", help="Only those that did not end with 0.", type=bool, default=False),
            _LAST,
            Parameter(
                name="output",
                help="Print the output of this one, on the streams it used.",
                type=int,
                least=1,
                metavar="RUN",
            ),
        ),
    ),
    Verb(
        name="record-decision",
        theme=_RECORD,
        help="Put on record what you decided in a task, and why.",
        example='sandkeep record-decision 4f1c "Keep the cache" --reason "it is measured" --alternative "drop it"',
        tool="record_decision",
        tool_help=(
            "Put on record what you decided in a task, why, and what else there was to choose, for whoever works on it"
            " after you. Do this for each choice that is not plain from the code."
        ),
        slash=True,
        result="documents_record.Decision",
        run="verbs_record:record_decision",
        show="show_record:decided",
        parameters=(
            TASK,
            Parameter(
                name="text", help="What was decided, on one line.", metavar="TEXT", positional=True, required=True
            ),
            Parameter(name="reason", help="Why.", default="", metavar="TEXT"),
            Parameter(
                name="alternative", help="What else there was to choose; may be repeated.", many=True, metavar="TEXT"
            ),
        ),
    ),
    Verb(
        name="task-decisions",
        theme=_RECORD,
        help="Show what was decided in a task, and why.",
        example="sandkeep task-decisions 4f1c",
        tool="task_decisions",
        tool_help="Show what was decided in a task, why, and against what. Read it before you go on with a task.",
        result="list[documents_record.Decision]",
        run="verbs_record:task_decisions",
        show="show_record:decisions",
        parameters=(TASK, _LAST),
    ),
    Verb(
        name="task-stats",
        theme=_RECORD,
        help=(
            "Show the numbers of a task: events, runs, failures, time, output, checkpoints, and what its sandboxes"
            " used."
        ),
        example="sandkeep task-stats 4f1c",
        tool="task_stats",
        tool_help="Show the numbers of a task: commands, failures, time, output, checkpoints, memory and processors.",
        result="documents_record.Stats",
        run="verbs_record:task_stats",
        show="show_record:stats",
        parameters=(TASK,),
    ),
    Verb(
        name="rebuild-memory",
        theme=_RECORD,
        help=(
            "Make a task's memory folder anew from the log. Exit status 1 if a page was not what had been written.\n\n"
            "A plan.md that was edited is left as it is; what was damaged goes to quarantine/."
        ),
        example="sandkeep rebuild-memory 4f1c",
        judges=True,
        result="documents_record.Remembered",
        run="verbs_record:rebuild_memory",
        show="show_record:remembered",
        parameters=(TASK,),
    ),
    Verb(
        name="events",
        theme=_RECORD,
        help="Show the log, of all tasks and processes. With --json, one document a line.",
        example="sandkeep events --follow --json",
        tool="events",
        tool_help=(
            "Show what happened in all tasks, event by event, oldest first. There may be very many: give limit, and as"
            " after the position of the last one that you have seen."
        ),
        streams=True,
        result="Iterator[documents_record.Record]",
        run="verbs_record:events",
        show="show_record:event",
        parameters=(
            # One that does not end is nothing for a call that waits for its result.
            Parameter(
                name="follow",
                help="Go on with what happens, until interrupted.",
                type=bool,
                default=False,
                people_only=True,
            ),
            Parameter(name="after", help="Only what came after it.", type=int, default=0, least=0, metavar="POSITION"),
            Parameter(name="limit", help="Only the first N.", type=int, least=1, metavar="N"),
        ),
    ),
)
