"""The verbs for work in a task: commands, checkpoints of its files, and the lock by which agents take turns."""

from __future__ import annotations

from dataclasses import replace

from sandkeep.sandboxes.vocabulary_terms import CHECKPOINT, TASK, TOKEN, Parameter, Verb

_COMMANDS = "Commands"
_CHECKPOINTS = "Checkpoints"
_AGENTS = "Agents and conflicts"

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
        name="checkpoint",
        theme=_CHECKPOINTS,
        help="Record all of a task's workspace, so that it can be set back to what it is now.",
        example='sandkeep checkpoint 4f1c --label "tests pass"',
        tool="checkpoint",
        tool_help=(
            "Record all files of a task's workspace, so that restore_checkpoint can set it back to this moment. It is"
            " quick, costs only what has changed, and may be done while commands run. Do it before anything risky."
        ),
        slash=True,
        result="documents.Checkpoint",
        run="verbs_checkpoints:checkpoint",
        show="show_checkpoints:taken",
        parameters=(
            TASK,
            Parameter(name="label", help="A few words to find it by.", default="", metavar="TEXT"),
            Parameter(name="pin", help="Keep it until it is unpinned.", type=bool, default=False),
            Parameter(name="tag", help="A tag, which keeps it too.", many=True, metavar="TAG"),
            Parameter(
                name="with_system",
                help="Also what lies outside the workspace, in a sandbox that can be written.",
                type=bool,
                default=False,
            ),
            TOKEN,
        ),
    ),
    Verb(
        name="restore-checkpoint",
        theme=_CHECKPOINTS,
        help=(
            "Set a task back to a checkpoint, workspace, tags and decisions; what it was is recorded first, so this can"
            " be undone. With paths, only files are."
        ),
        example="sandkeep restore-checkpoint 4f1c 9ab2 src/ --dry-run",
        tool="restore_checkpoint",
        tool_help=(
            "Set a task's workspace back to what it was at a checkpoint, all of it or only the paths that are given."
            " What it is now is recorded first: to undo this, restore the checkpoint that it returns as undo. It is"
            " refused while commands run. With dry_run nothing is done and you are told what would be."
        ),
        slash=True,
        result="documents_work.Restored",
        run="verbs_checkpoints:restore_checkpoint",
        show="show_checkpoints:restored",
        parameters=(
            TASK,
            CHECKPOINT,
            Parameter(
                name="paths",
                help="Only these, and what is below them.",
                many=True,
                positional=True,
                metavar="[PATH]...",
            ),
            Parameter(name="dry_run", help="Only tell what would be done, path by path.", type=bool, default=False),
            Parameter(
                name="privileges",
                help="Make devices and set-user-id files too.",
                type=bool,
                default=False,
                people_only=True,
            ),
            Parameter(name="files_only", help="Leave its tags and decisions as they are.", type=bool, default=False),
            TOKEN,
        ),
    ),
    Verb(
        name="attach",
        theme=_AGENTS,
        help="Attach an agent to a task by its lock, and print the token that its commands and 'detach' are given.",
        example="export SANDKEEP_TOKEN=$(sandkeep attach 4f1c --agent fixer)",
        tool="attach_agent_to_task",
        tool_help=(
            "Take a task's lock, so that no other agent works on it at the same time, or, with mode collaborative,"
            " beside others that do the same. Returns a token: give it with every call that works on the task, and to"
            " detach_agent_from_task when you are done. Each command renews the lock; one that is silent for"
            " lease seconds loses it. If another agent holds it, this waits for timeout seconds and then says who."
        ),
        slash=True,
        result="documents_work.Attached",
        run="verbs_agents:attach",
        show="show_agents:attached",
        parameters=(
            TASK,
            Parameter(
                name="mode",
                help="Alone, or beside others that collaborate.",
                default="exclusive",
                choices=("exclusive", "collaborative"),
            ),
            Parameter(
                name="timeout",
                help="How long to wait; 0 to try only once.",
                type=float,
                default=60.0,
                metavar="SECONDS",
            ),
            # Nobody renews the lease of an agent while it thinks.
            Parameter(
                name="lease",
                help="How long it is held without a sign of life.",
                type=float,
                default=3600.0,
                metavar="SECONDS",
            ),
            Parameter(name="agent", help="Who; by default who acts.", metavar="NAME"),
        ),
    ),
    Verb(
        name="detach",
        theme=_AGENTS,
        help=(
            "Detach an agent: what it did in a workspace of its own is merged, and its lock goes to whoever waits next."
        ),
        example="sandkeep detach 4f1c --token 17",
        tool="detach_agent_from_task",
        tool_help=(
            "Give back a task's lock with the token that attach_agent_to_task returned, when your work on it is done or"
            " interrupted. If you worked in a workspace of your own, what you did is merged into the task's, and the"
            " conflicts that this made are returned."
        ),
        slash=True,
        result="documents_work.Detached",
        run="verbs_agents:detach",
        show="show_agents:detached",
        parameters=(TASK, replace(TOKEN, required=True, help="What 'attach' printed; 'locks' shows it too.")),
    ),
)
