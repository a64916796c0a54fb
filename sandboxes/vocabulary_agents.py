"""The verbs for agents that share a task: the lock by which they take turns, what collided, and own workspaces."""

from __future__ import annotations

from dataclasses import replace

from sandkeep.sandboxes.vocabulary_terms import TASK, TOKEN, Parameter, Verb

_AGENTS = "Agents and conflicts"

VERBS = (
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
    Verb(
        name="locks",
        theme=_AGENTS,
        help="Show who holds which lock and who waits, for how long, and how contended each was.",
        example="sandkeep locks",
        tool="locks",
        tool_help="Show which agents hold the locks of tasks now, and which wait for one.",
        result="list[documents_work.Lock]",
        run="verbs_agents:locks",
        show="show_agents:locks",
        parameters=(
            Parameter(
                name="ever",
                help="Also those that nobody holds now, for their counts.",
                type=bool,
                default=False,
                option="--all",
            ),
        ),
    ),
    # An agent that could would take the lock of whoever is in its way.
    Verb(
        name="break-lock",
        theme=_AGENTS,
        help="Take a task's lock from those who hold it; who waits for it may not. Their tokens are stale at once.",
        example='sandkeep break-lock 4f1c --reason "its agent is gone"',
        result="documents_work.Broken",
        run="verbs_agents:break_lock",
        show="show_agents:broken",
        parameters=(
            TASK,
            Parameter(name="reason", help="Why; it is recorded.", required=True, metavar="TEXT"),
            Parameter(name="token", help="Only this holder's.", type=int, least=1, metavar="N"),
        ),
    ),
    Verb(
        name="conflicts",
        theme=_AGENTS,
        help="List the open conflicts among the agents that work on a task.",
        example="sandkeep conflicts 4f1c",
        tool="conflicts",
        tool_help=(
            "List the open conflicts of a task: paths that several agents changed without having seen each other's"
            " work. ours is what the later agent wrote, theirs what it had not seen."
        ),
        slash=True,
        result="list[documents.Conflict]",
        run="verbs_agents:conflicts",
        show="show_agents:conflicts",
        parameters=(
            TASK,
            Parameter(name="settled", help="Also those that were settled.", type=bool, default=False, option="--all"),
        ),
    ),
    Verb(
        name="resolve-conflict",
        theme=_AGENTS,
        help="Settle an open conflict; what gives way stays in the record.",
        example="sandkeep resolve-conflict 4f1c 03de --take theirs",
        tool="resolve_conflict",
        tool_help=(
            "Settle an open conflict: take ours, the later agent's version, theirs, what was there, or merged, both if"
            " they merge cleanly. If none is right, take one and then edit the file. Ask the user if you are not sure;"
            " what gives way stays in the record."
        ),
        slash=True,
        result="documents.Conflict",
        run="verbs_agents:resolve_conflict",
        show="show_agents:conflict",
        parameters=(
            TASK,
            Parameter(
                name="conflict",
                help="The conflict's id, or the beginning of it.",
                metavar="CONFLICT",
                positional=True,
                required=True,
            ),
            # A file of the host is not an agent's to name.
            Parameter(
                name="take",
                help="ours: the later agent's; theirs: what was there; merged; or a file that has it right.",
                required=True,
                metavar="SIDE",
                offered_choices=("ours", "theirs", "merged"),
            ),
        ),
    ),
    # How the conflicts of agents are settled is not theirs to say.
    Verb(
        name="conflict-policy",
        theme=_AGENTS,
        help=(
            "Show how a task's conflicts are settled, or set it: reject, last-writer-wins, three-way or ask, by path;"
            " and '*=own-workspace' to have each agent that collaborates work in its own."
        ),
        example="sandkeep conflict-policy 4f1c '*.lock=ask' 'docs/*=last-writer-wins'",
        result="list[Rule]",
        run="verbs_agents:conflict_policy",
        show="show_agents:rules",
        parameters=(
            TASK,
            Parameter(
                name="rules",
                help="The first that matches counts.",
                many=True,
                positional=True,
                metavar="[PATTERN=STRATEGY]...",
            ),
        ),
    ),
    Verb(
        name="merge",
        theme=_AGENTS,
        help="Merge the own workspace of an agent that has gone without detaching into the task's workspace.",
        example="sandkeep merge 4f1c ann",
        tool="merge",
        tool_help=(
            "Merge the own workspace that an agent left behind, when it went without detaching, into the task's"
            " workspace; show_task lists those there are. Your own is merged by detach_agent_from_task."
        ),
        slash=True,
        result="documents_work.Merged",
        run="verbs_agents:merge",
        show="show_agents:merged",
        parameters=(
            TASK,
            Parameter(
                name="which",
                help="Whose own workspace, or its id, if there are several.",
                positional=True,
                metavar="[AGENT|ID]",
            ),
            Parameter(
                name="discard",
                help="Drop what is in it; a checkpoint of it stays.",
                type=bool,
                default=False,
            ),
            TOKEN,
        ),
    ),
    # What goes into a person's repository is for people to say.
    Verb(
        name="publish-task",
        theme=_AGENTS,
        help=(
            "Bring a task's commits into the repository that it was cloned from, as a branch. Nothing that is checked"
            " out is touched."
        ),
        example="sandkeep publish-task 4f1c --branch fix-login",
        result="documents_work.Published",
        run="verbs_agents:publish_task",
        show="show_agents:published",
        parameters=(
            TASK,
            Parameter(
                name="branch",
                help="What it is called; by default after the task, below sandkeep/.",
                metavar="NAME",
            ),
            TOKEN,
        ),
    ),
)
