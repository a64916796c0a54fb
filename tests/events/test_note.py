from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events.errors import BadKey, BadNote, BadSignature, UnknownKey
from sandkeep.events.note import (
    MAX_NOTE_BYTES,
    MAX_SIGNATURES,
    Checkpoint,
    Signer,
    VerifierKey,
    open_checkpoint,
    open_note,
)

# golang.org/x/mod/sumdb/note, note_test.go (TestSign, TestOpen): two keys, a text, and what each signs it with.
PRIVATE = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH_LINE = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
# The same test: a key of the wrong length and one of an unknown kind, each with the id it would have.
LONG_KEY = "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY=="
STRANGE_KEY = "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
# The example of https://c2sp.org/tlog-checkpoint. The specification does not give its key.
EXAMPLE = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"

ROOT = hashlib.sha256(b"root").digest()


def peter() -> Signer:
    return Signer("PeterNeumann", Ed25519PrivateKey.from_private_bytes(base64.b64decode(PRIVATE)[1:]))


def known(*keys: str) -> list[VerifierKey]:
    return [VerifierKey.parse(key) for key in keys]


def note(*lines: str, text: str = TEXT) -> bytes:
    return (text + "\n" + "".join(lines)).encode()


def test_the_reference_note_is_signed_byte_for_byte() -> None:
    assert peter().sign(TEXT) == note(PETER_LINE)
    assert str(peter().key) == PETER


@pytest.mark.parametrize("key", [PETER, ENOCH])
def test_the_reference_keys_are_read_and_written(key: str) -> None:
    assert str(VerifierKey.parse(key)) == key


def test_the_reference_notes_are_opened() -> None:
    both = note(PETER_LINE, ENOCH_LINE)
    for keys in (known(PETER), known(ENOCH), known(PETER, ENOCH)):
        assert open_note(both, keys) == TEXT
    assert open_note(note(PETER_LINE, PETER_LINE), known(PETER)) == TEXT


def test_a_note_that_no_known_key_signed_is_refused() -> None:
    for keys in (known(ENOCH), []):
        with pytest.raises(UnknownKey):
            open_note(note(PETER_LINE), keys)
    impostor = Signer("PeterNeumann", Ed25519PrivateKey.generate())
    with pytest.raises(UnknownKey):  # the same name, another id
        open_note(impostor.sign(TEXT), known(PETER))


def test_a_wrong_signature_of_a_known_key_spoils_the_note() -> None:
    wrong = PETER_LINE.replace("UG/S", "UG/T")
    for lines in ([wrong], [ENOCH_LINE, wrong], [PETER_LINE, wrong]):
        with pytest.raises(BadSignature):
            open_note(note(*lines), known(PETER, ENOCH))
    assert open_note(note(ENOCH_LINE, wrong), known(ENOCH)) == TEXT
    with pytest.raises(BadSignature):
        open_note(note(PETER_LINE, text=TEXT.replace("problem", "Problem")), known(PETER))


@pytest.mark.parametrize(
    "malformed",
    [
        b"",
        TEXT.encode(),
        (TEXT + "\n").encode(),
        ("\n" + PETER_LINE).encode(),
        ("\n\n" + PETER_LINE).encode(),
        note(PETER_LINE)[:-1],
        note(PETER_LINE) + b"\n",
        b"\x01" + note(PETER_LINE),
        b"\xff" + note(PETER_LINE),
        note(PETER_LINE).replace(b"\n", b"\r\n"),
        note(PETER_LINE, "Unexpected line.\n"),
        note(PETER_LINE.replace("PeterNeumann", "Bad Name")),
        note(PETER_LINE.replace("PeterNeumann", "Bad+Name")),
        note(PETER_LINE.replace("PeterNeumann", "Bad\u00a0Name")),
        note(PETER_LINE.replace("—", "-")),
        note("— PeterNeumann x08gow==\n"),
        note("—  x08go/ZJkuBS\n"),
        note(PETER_LINE.replace("AM=", "AN=")),  # bits that are not of the last byte
        note(PETER_LINE.replace("AM=", "AM")),
        note(PETER_LINE.replace("x08go", "x08 go")),
        note(PETER_LINE.replace("x08go/Z", "x08go_Z")),
        note(PETER_LINE.replace("x08go", "x08gö")),
        note(*[PETER_LINE] * (MAX_SIGNATURES + 1)),
        note(PETER_LINE, text="x" * MAX_NOTE_BYTES + "\n"),
    ],
)
def test_what_is_not_exactly_a_note_is_refused(malformed: bytes) -> None:
    with pytest.raises(BadNote) as caught:
        open_note(malformed, known(PETER))
    assert type(caught.value) in (BadNote, BadSignature)


def test_sixteen_signatures_are_taken() -> None:
    assert open_note(note(*[ENOCH_LINE] * 15, PETER_LINE), known(PETER)) == TEXT


@pytest.mark.parametrize("text", ["", "no newline", "two\n\n", "bell\a\n"])
def test_what_no_note_can_say_is_not_signed(text: str) -> None:
    if text == "two\n\n":  # the text ends with an empty line, and reads back the same
        assert open_note(peter().sign(text), known(PETER)) == text
        return
    with pytest.raises(BadNote):
        peter().sign(text)


@given(st.data())
def test_a_changed_note_is_refused(data: st.DataObject) -> None:
    good = bytearray(note(PETER_LINE))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadNote):
        open_note(bytes(good), known(PETER))


@pytest.mark.parametrize("key", [LONG_KEY, STRANGE_KEY, "", "+", "++", "a b+00000000+AA=="])
def test_keys_that_are_none_are_refused(key: str) -> None:
    with pytest.raises(BadKey):
        VerifierKey.parse(key)


def test_every_mangling_of_a_key_is_refused() -> None:
    for i in range(len(PETER)):
        for j in range(i + 1, len(PETER) + 1):
            if j - i < len(PETER):
                with pytest.raises(BadKey):
                    VerifierKey.parse(PETER[i:j])
        with pytest.raises(BadKey):
            VerifierKey.parse(PETER[:i] + chr(ord(PETER[i]) + 1) + PETER[i + 1 :])


def test_a_key_that_is_no_point_of_the_curve_verifies_nothing() -> None:
    bad = VerifierKey("PeterNeumann", b"\x02" + bytes(30) + b"\x80")
    line = "— PeterNeumann " + base64.b64encode(bad.id + bytes(64)).decode() + "\n"
    with pytest.raises(BadSignature):
        open_note(note(line), [VerifierKey.parse(str(bad))])


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb"])
def test_no_key_has_such_a_name(name: str) -> None:
    with pytest.raises(BadKey):
        Signer(name, Ed25519PrivateKey.generate())


def test_the_example_checkpoint_is_read_and_written() -> None:
    checkpoint = Checkpoint.parse(EXAMPLE)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text == EXAMPLE
    assert Checkpoint.parse(EXAMPLE + "an extension\n") == checkpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n1\n",
        EXAMPLE[:-1],
        EXAMPLE + "\n",
        EXAMPLE.replace("example", "\nexample"),
        EXAMPLE.replace("20852163", "020852163"),
        EXAMPLE.replace("20852163", "-1"),
        EXAMPLE.replace("20852163", "+1"),
        EXAMPLE.replace("20852163", "1e3"),
        EXAMPLE.replace("20852163", "٣"),
        EXAMPLE.replace("20852163", "9" * 5000),
        EXAMPLE.replace("20852163", str(2**63)),
        EXAMPLE.replace("Cs", ""),
        EXAMPLE.replace("q2I=", "q2J="),
        EXAMPLE.replace("CsUY", "CsU Y"),
    ],
)
def test_what_is_not_exactly_a_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(BadNote):
        Checkpoint.parse(text)


def test_a_checkpoint_of_another_log_is_refused() -> None:
    own, other = (Checkpoint(origin, 3, ROOT) for origin in ("PeterNeumann", "EnochRoot"))
    [key] = known(PETER)
    assert open_checkpoint(peter().sign(own.text), key) == own
    with pytest.raises(BadNote, match="not the log of this key"):
        open_checkpoint(peter().sign(other.text), key)
