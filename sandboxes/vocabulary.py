"""The vocabulary: every verb there is, as data. From this table the command line, the tools that agents are offered and
the slash commands are made; see `vocabulary_terms` for what a verb is.

Importing it loads nothing that does anything.
"""

from __future__ import annotations

from sandkeep.sandboxes import (
    vocabulary_agents,
    vocabulary_checkpoints,
    vocabulary_commands,
    vocabulary_keep,
    vocabulary_record,
    vocabulary_resources,
    vocabulary_serve,
    vocabulary_setup,
    vocabulary_tasks,
)
from sandkeep.sandboxes.vocabulary_terms import JSON, KEEP, Parameter, Verb

__all__ = ["JSON", "KEEP", "NAMED", "VERBS", "Parameter", "Verb"]

VERBS: tuple[Verb, ...] = (
    *vocabulary_tasks.VERBS,
    *vocabulary_commands.VERBS,
    *vocabulary_checkpoints.VERBS,
    *vocabulary_agents.VERBS,
    *vocabulary_record.VERBS,
    *vocabulary_resources.VERBS,
    *vocabulary_keep.VERBS,
    *vocabulary_setup.VERBS,
    *vocabulary_serve.VERBS,
)
"""All verbs, in the order in which they are listed."""

NAMED: dict[str, Verb] = {verb.name: verb for verb in VERBS}
"""All verbs by their names."""
