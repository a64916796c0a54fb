"""The verbs for checkpoints: record what a task's files are, compare, set back, begin anew from there."""

from __future__ import annotations

from sandkeep.sandboxes.vocabulary_terms import ADD, CHECKPOINT, REACH, REMOVE, TASK, TOKEN, Parameter, Verb

_CHECKPOINTS = "Checkpoints"

VERBS = (
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
        name="list-checkpoints",
        theme=_CHECKPOINTS,
        help="List the checkpoints of a task, and what each adds to the one before it, before compression.",
        example="sandkeep list-checkpoints 4f1c",
        tool="list_checkpoints",
        tool_help="List the checkpoints of a task, oldest first: their ids, labels, times and sizes.",
        result="list[documents_work.ListedCheckpoint]",
        run="verbs_checkpoints:list_checkpoints",
        show="show_checkpoints:listed",
        parameters=(
            TASK,
            Parameter(name="every", help="Also those that have expired.", type=bool, default=False, option="--all"),
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
        name="diff",
        theme=_CHECKPOINTS,
        help="Show what differs between two checkpoints of a task, or between one and its workspace as it is.",
        example="sandkeep diff 4f1c --stat",
        tool="diff",
        tool_help=(
            "Show what differs in a task's files, as unified hunks: between two checkpoints, old and new; if new is"
            " left out, between old and the workspace as it is; if both are, since the last checkpoint. Use stat first"
            " if much may have changed: it gives a line for each path, without the text."
        ),
        slash=True,
        result="list[FileDiff]",
        run="verbs_checkpoints:diff",
        show="show_checkpoints:differences",
        parameters=(
            TASK,
            Parameter(
                name="old",
                help="A checkpoint; the last one if none is named.",
                default="",
                positional=True,
                metavar="[OLD]",
            ),
            Parameter(
                name="new",
                help="Another; the workspace as it is if none is.",
                default="",
                positional=True,
                metavar="[NEW]",
            ),
            Parameter(name="path", help="Only this, and what is below it; may be repeated.", many=True, metavar="PATH"),
            Parameter(name="stat", help="Only a line for each path.", type=bool, default=False),
            TOKEN,
        ),
    ),
    Verb(
        name="fork-task",
        theme=_CHECKPOINTS,
        help=(
            "Create a task that begins as another was at a checkpoint: its workspace, tags and decisions, and, unless"
            " others are named, the image, network, limits and caches that it has now."
        ),
        example='sandkeep fork-task 4f1c 9ab2 --title "The other way"',
        tool="fork_task",
        tool_help=(
            "Create a task that begins as another was at a checkpoint, with a workspace of its own: to try another way"
            " without touching the first. Returns the new task, as create_task_sandbox does."
        ),
        result="documents.MadeTask",
        run="verbs_life:fork_task",
        show="show_tasks:made",
        parameters=(
            TASK,
            CHECKPOINT,
            Parameter(name="title", help="What it is; by default the other's title.", metavar="TEXT"),
            Parameter(name="owner", help="Whose task it is; by default yours.", metavar="NAME"),
            Parameter(
                name="tag",
                help="Instead of the tags that the other had; may be repeated.",
                many=True,
                metavar="TAG",
            ),
            Parameter(name="image", help="Instead of the other's.", metavar="NAME"),
            Parameter(
                name="network",
                help="Instead of what the other may reach; see create-task.",
                metavar="MODE",
                people_only=True,
            ),
            *REACH,
        ),
    ),
    # What is kept, and for how long, is for people to say: checkpoints are what shows what an agent did.
    Verb(
        name="pin-checkpoint",
        theme=_CHECKPOINTS,
        help="Keep a checkpoint until it is unpinned, whatever the rules and budgets of keep.toml say.",
        example="sandkeep pin-checkpoint 4f1c 9ab2",
        result="documents.Checkpoint",
        run="verbs_checkpoints:pin_checkpoint",
        show="show_checkpoints:noted",
        parameters=(TASK, CHECKPOINT),
    ),
    Verb(
        name="unpin-checkpoint",
        theme=_CHECKPOINTS,
        help="Let the rules of keep.toml say again whether a checkpoint is kept.",
        example="sandkeep unpin-checkpoint 4f1c 9ab2",
        result="documents.Checkpoint",
        run="verbs_checkpoints:unpin_checkpoint",
        show="show_checkpoints:noted",
        parameters=(TASK, CHECKPOINT),
    ),
    Verb(
        name="tag-checkpoint",
        theme=_CHECKPOINTS,
        help="Give a checkpoint tags, and take tags from it. As long as it has any it is kept.",
        example="sandkeep tag-checkpoint 4f1c 9ab2 --add release",
        result="documents.Checkpoint",
        run="verbs_checkpoints:tag_checkpoint",
        show="show_checkpoints:noted",
        parameters=(TASK, CHECKPOINT, ADD, REMOVE),
    ),
    Verb(
        name="expire-checkpoints",
        theme=_CHECKPOINTS,
        help=(
            "Let go what the rules and budgets of keep.toml do not keep, or the checkpoints that are named.\n\n"
            "They cannot be restored any more, and what only they hold is removed an hour later, at the earliest."
        ),
        example="sandkeep expire-checkpoints --dry-run",
        result="list[documents_work.ExpiredCheckpoint]",
        run="verbs_checkpoints:expire_checkpoints",
        show="show_checkpoints:expired",
        parameters=(
            Parameter(name="task", help="Only those of this task.", positional=True, metavar="[TASK]"),
            Parameter(
                name="checkpoint",
                help="These, whatever the rules say.",
                many=True,
                positional=True,
                metavar="[CHECKPOINT]...",
            ),
            Parameter(name="reason", help="Why, for those that are named.", default="", metavar="TEXT"),
            Parameter(name="dry_run", help="Only tell which would.", type=bool, default=False),
        ),
    ),
    Verb(
        name="repair-checkpoints",
        theme=_CHECKPOINTS,
        help=(
            "Look for another copy of what is damaged or gone: in the packs, in what is named, and in the workspaces as"
            " they are. Exit status 1 if something is still missing."
        ),
        example="sandkeep repair-checkpoints --from /backup/.sandkeep",
        judges=True,
        result="Repaired",
        run="verbs_checkpoints:repair_checkpoints",
        show="show_checkpoints:repaired",
        parameters=(
            Parameter(
                name="source",
                help="A keep, a folder of blobs or an audit bundle; may be repeated.",
                many=True,
                option="--from",
                metavar="PATH",
            ),
        ),
    ),
)
