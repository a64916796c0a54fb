"""The verbs for a keep as a whole: make it, look whether all is well, show that to others.

Agents may look. What makes, mends, or signs is for people: an agent has no business with the keys that vouch for what
it did, nor with what repairs the record of it.
"""

from __future__ import annotations

from sandkeep.sandboxes.vocabulary_terms import Parameter, Verb

_KEEP = "The keep"
_AUDIT = "Audit"

VERBS = (
    Verb(
        name="init",
        theme=_KEEP,
        help="Make a keep: the folder that holds the log, the tasks and their checkpoints.",
        example="sandkeep init",
        result="documents_keep.MadeKeep",
        run="verbs_keep:init",
        show="show_keep:made",
    ),
    Verb(
        name="doctor",
        theme=_KEEP,
        help=(
            "Look at the engine, the keep, its steward and this host, and say what to do. Exit status 1 if it is"
            " needed."
        ),
        example="sandkeep doctor",
        tool="doctor",
        tool_help=(
            "Look at the Docker engine, the keep and this host, and say what is wrong and what to do about it. Use it"
            " when calls fail for reasons that are not yours, and tell the user what it says."
        ),
        judges=True,
        result="documents_keep.Examined",
        run="verbs_keep:doctor",
        show="show_keep:examined",
    ),
    Verb(
        name="steward",
        theme=_KEEP,
        help=(
            "Do a keep's background work until interrupted: settle what crashed, freeze what is idle, fill the pool."
            "\n\nOne process does it for a keep; another one waits to take over. With --json, one document a line."
        ),
        example="sandkeep steward",
        streams=True,
        result="Generator[documents_keep.Did, None, None]",
        run="verbs_keep:steward",
        show="show_keep:did",
    ),
    Verb(
        name="verify",
        theme=_KEEP,
        help=("Check the log, its journal, the blobs it vouches for and the projections. Exit status 1 if any is off."),
        example="sandkeep verify --deep",
        tool="verify",
        tool_help=(
            "Check that the record of all tasks is whole: every event, the content it vouches for, and what is derived"
            " from it. It reads everything, and may take minutes."
        ),
        judges=True,
        result="KeepReport",
        run="verbs_keep:verify",
        show="show_keep:verified",
        parameters=(
            Parameter(
                name="deep",
                help="Also unpack the journal, and check the log's pages.",
                type=bool,
                default=False,
            ),
        ),
    ),
    Verb(
        name="recover",
        theme=_KEEP,
        help=(
            "Make a damaged log whole again, from itself and its journal. Exit status 1 if anything is lost, or would"
            " be.\n\nWhat was damaged goes to quarantine/; nothing is deleted."
        ),
        example="sandkeep recover --mode truncate-tail",
        judges=True,
        result="Recovery",
        run="verbs_keep:recover",
        show="show_keep:recovered",
        parameters=(
            Parameter(
                name="mode",
                help="What may be lost; see docs/guides/recovery.md.",
                default="strict",
                choices=("strict", "truncate-tail", "salvage"),
            ),
        ),
    ),
    Verb(
        name="replay",
        theme=_KEEP,
        help=(
            "Rebuild what is true now from the log, and compare it with what was stored. Exit status 1 if they differ."
        ),
        example="sandkeep replay",
        judges=True,
        result="documents_keep.Replayed",
        run="verbs_keep:replay",
        show="show_keep:replayed",
    ),
    Verb(
        name="audit key",
        theme=_AUDIT,
        help="Print the key that whoever verifies must have; hand it out once, by another way than the bundles.",
        example="sandkeep audit key",
        result="documents_keep.Key",
        run="verbs_keep:audit_key",
        show="show_keep:key",
    ),
    Verb(
        name="audit checkpoint",
        theme=_AUDIT,
        help=(
            "Sign what the log holds now and print the note; whoever keeps it can show later that nothing was"
            " rewritten."
        ),
        example="sandkeep audit checkpoint >note",
        result="documents_keep.Note",
        run="verbs_keep:audit_checkpoint",
        show="show_keep:note",
    ),
    Verb(
        name="audit export",
        theme=_AUDIT,
        help="Write records, proofs, notes and content into one file, which 'audit verify' judges anywhere.",
        example="sandkeep audit export bundle --task 4f1c",
        result="Exported",
        run="verbs_keep:audit_export",
        show="show_keep:exported",
        parameters=(
            Parameter(
                name="file",
                help="The bundle to write; it must not exist.",
                metavar="FILE",
                positional=True,
                required=True,
            ),
            Parameter(name="task", help="Only the records of this task.", metavar="TASK"),
            Parameter(name="first", help="Only from here.", type=int, least=1, option="--from", metavar="POSITION"),
            Parameter(name="last", help="Only up to here.", type=int, least=1, option="--until", metavar="POSITION"),
            Parameter(
                name="blobs",
                help="Content that the records vouch for, or only its digests.",
                default="include",
                choices=("include", "digests"),
            ),
        ),
    ),
    Verb(
        name="audit verify",
        theme=_AUDIT,
        help=(
            "Judge a bundle by its key alone, without a keep. Exit status 1, and a line a problem, if it does not hold."
        ),
        example="sandkeep audit verify bundle --key key.pub",
        judges=True,
        keep=False,
        result="AuditReport",
        run="verbs_keep:audit_verify",
        show="show_keep:judged",
        parameters=(
            Parameter(
                name="bundle", help="What 'audit export' wrote.", metavar="BUNDLE", positional=True, required=True
            ),
            Parameter(
                name="key",
                help="What 'audit key' prints, or a file that holds it.",
                required=True,
                metavar="PUB",
            ),
            Parameter(name="note", help="A note kept from before; may be repeated.", many=True, metavar="FILE"),
        ),
    ),
)
