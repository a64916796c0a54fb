from __future__ import annotations

import base64
import io
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep
from sandkeep.sandboxes.secrets import Secrets

TOKEN = "s3cr3t/t0k+n?~\u00ff\u00fe>"


class Trickle(io.RawIOBase):
    """Gives its content in pieces of the sizes it is told."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data, self._sizes = data, sizes

    def read(self, size: int = -1) -> bytes:
        most = self._sizes.pop() if self._sizes else 1 << 20
        piece, self._data = self._data[: min(most, size)], self._data[min(most, size) :]
        return piece


def drained(secrets: Secrets, data: bytes, sizes: list[int], limit: int = 1 << 30) -> bytes:
    stream = secrets.stream(Trickle(data, sizes), limit)  # type: ignore[arg-type]
    return b"".join(iter(lambda: stream.read(1024), b""))


@pytest.mark.parametrize(
    "printed",
    [
        TOKEN,
        urllib.parse.quote(TOKEN, safe=""),
        urllib.parse.quote(TOKEN),
        urllib.parse.quote_plus(TOKEN),
        base64.b64encode(TOKEN.encode()).decode(),
        base64.urlsafe_b64encode(TOKEN.encode()).decode(),
    ],
    ids=["raw", "quoted", "path", "form", "base64", "base64url"],
)
def test_a_secret_is_found_in_the_forms_programs_print(printed: str) -> None:
    secrets = Secrets({"TOKEN": TOKEN})
    assert secrets.text(f"a {printed} b") == "a [secret TOKEN] b"
    assert secrets.data(f"{printed}\n".encode()) == b"[secret TOKEN]\n"


@pytest.mark.parametrize("before", ["", "u:", "us:", "use:"], ids=repr)
@pytest.mark.parametrize("after", ["", "x", "xy", "xyz"], ids=repr)
def test_a_secret_is_found_within_what_was_encoded(before: str, after: str) -> None:
    encoded = base64.b64encode(f"{before}{TOKEN}{after}".encode()).decode()
    redacted = Secrets({"T": TOKEN}).text(encoded)
    assert "[secret T]" in redacted
    left = redacted.replace("[secret T]", "")
    assert len(left) <= len(base64.b64encode((before + after).encode())) + 4


@given(
    values=st.dictionaries(st.sampled_from("ABC"), st.text("ab", min_size=4, max_size=7), min_size=1),
    data=st.text("ab-", max_size=60),
    sizes=st.lists(st.integers(1, 9), max_size=30),
)
def test_nothing_is_left_however_the_output_comes(values: dict[str, str], data: str, sizes: list[int]) -> None:
    secrets = Secrets(values)
    whole = secrets.data(data.encode())
    assert drained(secrets, data.encode(), list(sizes)) == whole
    for value in values.values():
        assert value.encode() not in whole
    kept = whole
    for name in values:
        kept = kept.replace(f"[secret {name}]".encode(), b"")
    hidden = bytearray(data.encode())
    for value in values.values():
        for at in range(len(data)):
            rest = data[at : at + len(value)]
            if rest == value or (at + len(rest) == len(data) and len(rest) >= 4 and value.startswith(rest)):
                hidden[at : at + len(rest)] = b"*" * len(rest)
    assert kept == bytes(hidden).replace(b"*", b"")


def test_overlapping_and_repeated_secrets_leave_no_half() -> None:
    secrets = Secrets({"A": "abcd", "B": "cdef", "C": "aaaa"})
    assert secrets.text("abcdef") == "[secret A][secret B]"
    assert secrets.text("a" * 9) == "[secret C]"
    assert secrets.text("abcdabcd") == "[secret A][secret A]"


def test_an_end_that_could_be_the_beginning_of_a_secret_is_taken_as_one() -> None:
    secrets = Secrets({"T": "abcdefgh"})
    assert secrets.data(b"x abcdef") == b"x [secret T]"
    assert secrets.data(b"x abc") == b"x abc"
    assert drained(secrets, b"x abcdefgh", [], limit=7) == b"x [secret T]"


def test_without_secrets_nothing_changes() -> None:
    secrets = Secrets({})
    assert not secrets
    assert secrets.text("[secret X]") == "[secret X]"
    assert secrets.data(b"\xff") == b"\xff"


def test_a_short_secret_is_refused_without_telling_it() -> None:
    with pytest.raises(BadInput, match="the secret PIN has fewer than 4 characters") as caught:
        Secrets({"PIN": "qzx"})
    assert "qzx" not in str(caught.value)
    with pytest.raises(BadInput, match="at most 64"):
        Secrets({"N" * 65: "value"})


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    with Keep.init(tmp_path / "keep") as keep:
        yield keep
        for task in keep.tasks():
            keep.task(task.id).complete()
            keep.task(task.id).clean_up()


def stored(folder: Path) -> bytes:
    """All that the keep has on disk, but for its workspaces."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and "tasks" not in path.parts)


@pytest.mark.engine
def test_a_secret_reaches_the_command_and_not_the_record(keep: Keep) -> None:
    task = keep.create_task("Use a secret")
    raw: list[bytes] = []
    script = 'echo "$TOKEN"; printf %s "$TOKEN" | base64; echo "$TOKEN" >&2; test "$TOKEN" = "$1"'
    result = task.execute(
        ["sh", "-c", script, "sh", TOKEN], secrets={"TOKEN": TOKEN}, on_output=lambda name, data: raw.append(data)
    )
    assert result.exit_code == 0
    assert TOKEN.encode() in b"".join(raw)
    assert (result.stdout.data, result.stderr.data) == (b"[secret TOKEN]\n" * 2, b"[secret TOKEN]\n")
    request = next(r.event for r in task.history() if r.type == "CommandRequested")
    assert isinstance(request, ev.CommandRequested)
    assert request.argv[-1] == "[secret TOKEN]"
    assert request.env == ("TOKEN",)
    large = task.execute(
        ["sh", "-c", 'i=0; while [ $i -lt 3000 ]; do echo "$i $TOKEN"; i=$((i+1)); done'], secrets={"TOKEN": TOKEN}
    )
    assert large.stdout.blob is not None
    expected = b"".join(b"%d [secret TOKEN]\n" % number for number in range(3000))
    assert keep.blobs.get(large.stdout.blob) == expected
    assert large.stdout.size == len(expected)
    with pytest.raises(Exception, match="has no program"):
        task.execute([TOKEN], secrets={"TOKEN": TOKEN})
    assert TOKEN.encode() not in stored(keep.path)


@pytest.mark.engine
def test_the_command_line_reads_a_secret_from_its_environment(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    task = keep.create_task("Use a secret")
    monkeypatch.setenv("TOKEN", TOKEN)
    command = [sys.executable, "-P", "-c", "from sandkeep.sandboxes.cli import main; main()", "execute", task.id]
    command += ["--keep", str(keep.path), "--json"]
    tail = ["--", "sh", "-c", 'echo "$TOKEN"']
    done = subprocess.run([*command, "--secret", "TOKEN", *tail], capture_output=True, text=True, check=True)
    assert "[secret TOKEN]" in done.stdout
    assert TOKEN not in done.stdout
    done = subprocess.run([*command, "--secret", "NO_SUCH", *tail], capture_output=True, text=True, check=False)
    assert (done.returncode, "'NO_SUCH' is no variable of yours" in done.stderr) == (2, True)


@pytest.mark.engine
def test_a_variable_is_secret_or_not(keep: Keep) -> None:
    task = keep.create_task("Use a secret")
    before = keep.head().position
    with pytest.raises(BadInput, match="A is given as a variable and as a secret"):
        task.execute(["true"], env={"A": "1234"}, secrets={"A": "1234"})
    with pytest.raises(BadInput, match="fewer than 4"):
        task.execute(["true"], secrets={"A": "123"})
    assert keep.head().position == before
