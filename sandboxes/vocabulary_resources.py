"""The verbs for what sandboxes are made of, may reach and may use.

They are for people: an agent that could call them would give itself more than it was given.
"""

from __future__ import annotations

from sandkeep.sandboxes.vocabulary_terms import LIMITS, REACH, TASK, TOKEN, Parameter, Verb

_RESOURCES = "Networks and resources"
_IMAGES = "Images and caches"
_REASON = Parameter(name="reason", help="Why, for the record.", default="", metavar="TEXT")
_NAME = Parameter(
    name="name",
    help="What the image is called: base, developer, or your own.",
    metavar="NAME",
    positional=True,
    required=True,
)

VERBS = (
    Verb(
        name="network-policy",
        theme=_RESOURCES,
        help="Show what a task's sandbox may reach and how much it has, or set it; that holds at once.",
        example="sandkeep network-policy 4f1c allow --allow pypi.org --allow '*.pythonhosted.org'",
        result="documents_keep.Network",
        run="verbs_resources:network_policy",
        show="show_resources:network",
        parameters=(
            TASK,
            Parameter(name="mode", help="What it may reach.", positional=True, metavar="[none|services|allow|open]"),
            *REACH,
            TOKEN,
        ),
    ),
    Verb(
        name="offer-ports",
        theme=_RESOURCES,
        help=(
            "Offer ports of a task's sandbox to other tasks, whose policies may then name them as services; no others."
        ),
        example="sandkeep offer-ports 4f1c 5432",
        result="documents_keep.Offers",
        run="verbs_resources:offer_ports",
        show="show_resources:offers",
        parameters=(
            TASK,
            Parameter(
                name="ports",
                help="The ports; none withdraws what was offered.",
                type=int,
                many=True,
                positional=True,
                metavar="[PORT]...",
            ),
            TOKEN,
        ),
    ),
    Verb(
        name="isolation-check",
        theme=_RESOURCES,
        help="Try every way out of a sandbox, from inside it. Exit status 1 if any is open.",
        example="sandkeep isolation-check",
        judges=True,
        result="Isolation",
        run="verbs_resources:isolation_check",
        show="show_resources:isolation",
        parameters=(
            Parameter(
                name="task", help="A task's id; by default one is made for this.", positional=True, metavar="[TASK]"
            ),
        ),
    ),
    Verb(
        name="set-limits",
        theme=_RESOURCES,
        help="Change what a task's sandbox may use, at once if one lives; --tmp and --open-files from the next one on.",
        example="sandkeep set-limits 4f1c --memory 4GiB --cpus 2",
        result="documents_keep.TaskLimits",
        run="verbs_resources:set_limits",
        show="show_resources:limits",
        parameters=(TASK, *LIMITS, TOKEN),
    ),
    Verb(
        name="extend-limits",
        theme=_RESOURCES,
        help="Give more memory to a sandbox that stands still for want of it, and let it go on.",
        example="sandkeep extend-limits 4f1c --memory 4GiB",
        result="documents_keep.Answered",
        run="verbs_resources:extend_limits",
        show="show_resources:answered",
        parameters=(
            TASK,
            Parameter(name="memory", help="How much it may have; by default what it asked for.", metavar="SIZE"),
            _REASON,
        ),
    ),
    Verb(
        name="deny-extension",
        theme=_RESOURCES,
        help=(
            "Let a sandbox that stands still for want of memory go on with what it has, where something in it may be"
            " ended."
        ),
        example="sandkeep deny-extension 4f1c --stop",
        result="documents_keep.Answered",
        run="verbs_resources:deny_extension",
        show="show_resources:answered",
        parameters=(
            TASK,
            Parameter(name="stop", help="End it; its workspace was recorded.", type=bool, default=False),
            _REASON,
        ),
    ),
    Verb(
        name="top",
        theme=_RESOURCES,
        help="Show what the live sandboxes use now, and what they, and those started ahead, have been promised.",
        example="sandkeep top",
        result="documents_keep.Top",
        run="verbs_resources:top",
        show="show_resources:top",
    ),
    Verb(
        name="images",
        theme=_IMAGES,
        help="Show our images that the engine has, and how often a task found the one it asked for.",
        example="sandkeep images",
        result="documents_keep.Images",
        run="verbs_images:images",
        show="show_images:images",
    ),
    Verb(
        name="build-image",
        theme=_IMAGES,
        help="Make an image that tasks can be created with, from a recipe of ours or from what you name.",
        example="sandkeep build-image node --package nodejs --package npm",
        result="documents_keep.Image",
        run="verbs_images:build_image",
        show="show_images:made",
        parameters=(
            _NAME,
            Parameter(name="dockerfile", help="Build the Dockerfile in this folder.", metavar="DIR"),
            Parameter(name="source", help="Take a registry's image.", option="--from", metavar="IMAGE"),
            Parameter(
                name="package",
                help="The base and this Debian package; may be repeated.",
                many=True,
                metavar="PACKAGE",
            ),
            Parameter(name="no_network", help="What the Dockerfile runs has no network.", type=bool, default=False),
            Parameter(name="rebuild", help="Even if there is one that is not too old.", type=bool, default=False),
        ),
    ),
    Verb(
        name="prune-images",
        theme=_IMAGES,
        help=(
            "Remove the images of this keep that were not used for longest, until the rest fits; none that a task"
            " needs."
        ),
        example="sandkeep prune-images --budget 2G --dry-run",
        result="documents_keep.PrunedImages",
        run="verbs_images:prune_images",
        show="show_images:pruned",
        parameters=(
            Parameter(
                name="budget",
                help="What images may take on disk, like 500M or 2G.",
                required=True,
                metavar="SIZE",
            ),
            Parameter(name="dry_run", help="Only show what would be removed.", type=bool, default=False),
        ),
    ),
    Verb(
        name="export-image",
        theme=_IMAGES,
        help="Write an image into a file, for an engine that has no network.",
        example="sandkeep export-image base base.tar",
        result="documents_keep.ExportedImage",
        run="verbs_images:export_image",
        show="show_images:exported",
        parameters=(
            _NAME,
            Parameter(
                name="file",
                help="The archive to write; it must not exist.",
                metavar="FILE",
                positional=True,
                required=True,
            ),
        ),
    ),
    Verb(
        name="import-image",
        theme=_IMAGES,
        help="Load an image that was exported, perhaps on another machine. To import one is to trust whoever wrote it.",
        example="sandkeep import-image base.tar",
        result="documents_keep.Image",
        run="verbs_images:import_image",
        show="show_images:made",
        parameters=(
            Parameter(name="file", help="What 'export-image' wrote.", metavar="FILE", positional=True, required=True),
            Parameter(name="expected", help="The id that it must have.", option="--id", metavar="ID"),
        ),
    ),
    Verb(
        name="caches",
        theme=_IMAGES,
        help="List the caches that tasks share: who may use them how, what they take, and what they may.",
        example="sandkeep caches",
        result="list[documents_keep.Cache]",
        run="verbs_resources:caches",
        show="show_images:caches",
    ),
    Verb(
        name="prune-caches",
        theme=_IMAGES,
        help=(
            "Remove from caches what was not used for longest, until each is as large as it may be; and all of those"
            " that are not declared any more."
        ),
        example="sandkeep prune-caches pip --all",
        result="list[Pruned]",
        run="verbs_resources:prune_caches",
        show="show_images:emptied",
        parameters=(
            Parameter(name="name", help="Only this cache.", positional=True, metavar="[NAME]"),
            Parameter(
                name="everything",
                help="Remove all that is in them.",
                type=bool,
                default=False,
                option="--all",
            ),
        ),
    ),
)
