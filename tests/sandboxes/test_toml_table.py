"""A table of a TOML file: what is put in or cut out is all that changes, whatever else the text holds."""

from __future__ import annotations

import re
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandkeep.sandboxes import toml_table
from sandkeep.sandboxes.toml_table import MARK, NotToml, Setting

PATH = ("mcp_servers", "ours")
SETTINGS: dict[str, Setting] = {"command": "prog", "args": ["a", 'b"\\'], "patience": 30}

LINES = (
    "# a comment",
    "",
    "a = 1  # one",
    'b = """\n[mcp_servers.ours]\n# not a table\n"""',
    f"c = '''\n{MARK}\n'''",
    "d = nan",
    'e = [\n  "x", # first\n]',
)
TABLES = ("[t]", "[mcp_servers.theirs]\ncommand = 'x' # mine", "[[u]]\nn = 1", "[mcp_servers]", "[ours]\ncommand = 2")

texts = st.tuples(
    st.lists(st.sampled_from(LINES), unique=True),
    st.lists(st.sampled_from(TABLES), unique=True),
    st.sampled_from(["", "\n", "\n\n", "\n# the end"]),
    st.sampled_from(["\n", "\r\n"]),
).map(lambda made: ("\n".join((*made[0], *made[1])) + made[2]).replace("\n", made[3]))


def valid(text: str) -> bool:
    """Whether the lines make a TOML together."""
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


@settings(max_examples=80)
@given(texts.filter(valid))
def test_cutting_undoes_putting_byte_for_byte(text: str) -> None:
    made = toml_table.put(text, PATH, SETTINGS, ())
    assert made.startswith(text or MARK)
    assert tomllib.loads(made)["mcp_servers"]["ours"] == SETTINGS
    assert toml_table.put(made, PATH, SETTINGS, ()) == made
    assert toml_table.cut(made, PATH) == text


@settings(max_examples=80)
@given(texts.filter(valid))
def test_what_others_write_behind_it_stays(text: str) -> None:
    made = toml_table.put(text, PATH, SETTINGS, ())
    added = "\n# theirs\n[later]\nx = 1 # one\n"
    assert toml_table.cut(made + added, PATH) == text + added


def test_only_what_is_ours_is_set_anew() -> None:
    text = toml_table.put("a = 1\n", PATH, SETTINGS, ())
    tuned = text.replace("patience = 30", "patience = 99 # I wait") + '[mcp_servers.ours.env]\nK = "v"\n'
    made = toml_table.put(tuned, PATH, SETTINGS | {"command": "other"}, ("patience",))
    assert made == tuned.replace('"prog"', '"other"')
    assert toml_table.cut(made, PATH) == "a = 1\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = ", "Invalid value"),
        ("mcp_servers = 1", "mcp_servers is no table"),
        ("mcp_servers = {}", "cannot be changed"),
        ('[mcp_servers.ours]\ncommand = "old"\n', "cannot be changed"),
        ("a = " + "[" * 5000, "recursion"),
    ],
)
def test_what_cannot_be_put_in_safely_is_refused(text: str, words: str) -> None:
    with pytest.raises(NotToml, match=re.escape(words)):
        toml_table.put(text, PATH, SETTINGS, ())


def test_a_table_that_is_written_otherwise_is_not_cut() -> None:
    with pytest.raises(NotToml, match="by hand"):
        toml_table.cut('mcp_servers = {ours = {command = "prog"}}', PATH)
    assert toml_table.cut("a = 1", PATH) == "a = 1"
