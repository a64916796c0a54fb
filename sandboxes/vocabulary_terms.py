"""The terms that the vocabulary is made of: what a verb is, what a parameter is, and the parameters that several verbs
share. It imports nothing of ours, so that a door can show what there is before it loads what does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One thing that a verb is given. A run function takes it by its `name`.

    It is a `type`, or, with `many`, any number of them. It is `required`, or else `default` if it is left out, which is
    an empty sequence for `many`. With `choices` it is one of these, and at least `least`, if that is a number.

    On the command line it is an argument by its place if `positional`, or else the option `--name` or `option`; what
    stands for its value in help is `metavar`, and it is read from the variable `envvar` if it is left out. An agent is
    not asked for what is `people_only`, and has no more than `offered_choices`, if there are any.
    """

    name: str
    help: str
    type: type[str] | type[int] | type[float] | type[bool] = str
    many: bool = False
    required: bool = False
    default: str | int | float | bool | None = None
    choices: tuple[str, ...] = ()
    least: int | None = None
    positional: bool = False
    option: str = ""
    metavar: str = ""
    envvar: str = ""
    people_only: bool = False
    offered_choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """How the command line has it, if it is not `positional`."""
        return self.option or f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One thing that can be done, by whichever door.

    `run` names the function that does it, as "module:function" in `sandkeep.sandboxes`: it is called with a `Door` and
    the parameters by name, and what it returns is a `result`, as its own annotation has it. Of one that `streams` the
    results come one by one for as long as it goes on; one that `speaks` shows more than its result, what a command
    writes. What `judges` has failed if its result is not `ok`. `show` names
    the function that prints the result for people; what that returns, if it is a number, is the exit status.

    `help` is for people, its first paragraph what it does; `example` is what they would type. Where it is listed is its
    `theme`. An agent knows it by the name `tool`, if it is offered to agents, and is told `tool_help` of it, which
    assumes nothing. A `slash` verb is a slash command too. A verb without `keep` needs none; one without `document`
    prints nothing for machines.
    """

    name: str
    help: str
    theme: str
    result: str
    run: str
    show: str
    parameters: tuple[Parameter, ...] = ()
    example: str = ""
    tool: str = ""
    tool_help: str = ""
    slash: bool = False
    streams: bool = False
    speaks: bool = False
    judges: bool = False
    keep: bool = True
    document: bool = True

    @property
    def offered(self) -> tuple[Parameter, ...]:
        """The parameters that an agent is asked for."""
        return tuple(each for each in self.parameters if not each.people_only)


TASK: Final = Parameter(
    name="task",
    help="A task's id, or at least 4 digits of its beginning.",
    metavar="TASK",
    positional=True,
    required=True,
)
CHECKPOINT: Final = Parameter(
    name="checkpoint",
    help="The checkpoint's id, or the beginning of it.",
    metavar="CHECKPOINT",
    positional=True,
    required=True,
)
TOKEN: Final = Parameter(
    name="token",
    help="What 'attach' printed, if one is attached.",
    type=int,
    least=1,
    metavar="N",
    envvar="SANDKEEP_TOKEN",
)
AS_OF: Final = Parameter(name="as_of", help="A position or a time of the past, instead of now.", metavar="MOMENT")
LIMIT: Final = Parameter(name="limit", help="How many at most.", type=int, default=100, metavar="N")
ADD: Final = Parameter(name="add", help="A tag to give; may be repeated.", many=True, metavar="TAG")
REMOVE: Final = Parameter(name="remove", help="A tag to take; may be repeated.", many=True, metavar="TAG")

# What a sandbox may reach and use is for people to say: an agent that could would widen its own policy.
ALLOW: Final = Parameter(
    name="allow",
    help="A host it may reach, or *.HOST; may be repeated.",
    many=True,
    metavar="HOST[:PORT]",
    people_only=True,
)
PRIVATE: Final = Parameter(
    name="private",
    help="One that the internet does not reach; keep.toml has to grant it.",
    many=True,
    metavar="HOST:PORT",
    people_only=True,
)
SERVICES: Final = Parameter(
    name="services",
    help="Under NAME, port PORT of task/TASK or container/CONTAINER.",
    many=True,
    option="--service",
    metavar="NAME=TARGET:PORT",
    people_only=True,
)
REACH: Final = (ALLOW, PRIVATE, SERVICES)


def _limit(name: str, metavar: str, what: str) -> Parameter:
    return Parameter(name=name, metavar=metavar, help=what, people_only=True)


LIMITS: Final = (
    _limit("memory", "SIZE", "Memory, like 2GiB."),
    _limit("swap", "SIZE", "Swap beside the memory."),
    _limit("cpus", "N", "Processors, like 1.5."),
    _limit("pids", "N", "Processes and threads."),
    _limit("tmp", "SIZE", "/tmp, which lies in memory."),
    _limit("disk", "SIZE", "The workspace."),
    _limit("open_files", "N", "Files that one process has open."),
    _limit("output", "SIZE", "What a command writes to one stream."),
    _limit("time", "TIME", "How long a command takes, like 90s or 1h."),
)

# Every verb of the command line has these; other doors have a keep, and answer in their own way.
KEEP: Final = Parameter(
    name="keep", help="The keep's folder.", default=".sandkeep", metavar="DIR", envvar="SANDKEEP_KEEP"
)
JSON: Final = Parameter(name="json", help="Print one JSON document instead of text.", type=bool, default=False)
