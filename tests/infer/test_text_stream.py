"""Text token by token: whole characters, stop strings over any number of tokens."""

import itertools

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from mixlab.infer.text_stream import TextStream


class Bytes:
    """One token per byte."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def read(ids, stop=(), prompt=(), decode=None):
    """The pieces, the rest, and whether a stop string was found."""
    stream = TextStream(decode or Bytes().decode, prompt, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            return pieces, "", True
    rest = stream.flush()
    return pieces, rest, stream.stopped


def test_a_character_appears_when_its_last_byte_does():
    pieces, rest, _ = read("a\u00e9\u4e2d\U0001f600!".encode())
    assert pieces == ["a", "", "\u00e9", "", "", "\u4e2d", "", "", "", "\U0001f600", "!"]
    assert rest == ""


def test_an_incomplete_character_is_shown_at_the_end_as_what_it_is():
    pieces, rest, _ = read(b"ab\xe4\xb8")
    assert pieces == ["a", "b", "", ""] and rest == "\ufffd"


@given(st.binary(max_size=40), st.binary(max_size=8))
def test_pieces_add_up_whatever_the_bytes(data, prompt):
    pieces, rest, _ = read(data, prompt=list(prompt.decode("utf-8", "ignore").encode()))
    assert "".join(pieces) + rest == data.decode("utf-8", errors="replace")


def cut_at_first(text, stops):
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


@given(
    st.text("ab\u00e9", max_size=30),
    st.lists(st.text("ab\u00e9", min_size=1, max_size=5), max_size=3),
)
def test_stop_strings_cut_as_in_the_whole_text(text, stops):
    """The first stop string to be complete ends it; then it is the earliest of those there."""
    pieces, rest, stopped = read(text.encode(), stops)
    shortest = next(
        (text[:n] for n in range(len(text) + 1) if any(s in text[:n] for s in stops)), None
    )
    assert stopped == (shortest is not None)
    assert "".join(pieces) + rest == cut_at_first(shortest if stopped else text, stops)
    for n in range(len(pieces)):  # nothing that was shown is taken back
        assert text.startswith("".join(pieces[:n]))


def test_nothing_that_may_become_a_stop_string_is_shown_early():
    pieces, rest, stopped = read(b"one\n\nUse", stop=["\n\nUser:"])
    assert pieces == ["o", "n", "e", *[""] * 5] and rest == "\n\nUse" and not stopped
    pieces, _, stopped = read(b"one\n\nUser: x", stop=["\n\nUser:"])
    assert "".join(pieces) == "one" and stopped


def test_empty_stop_strings_are_ignored():
    assert read(b"ab", stop=["", "c"])[0] == ["a", "b"]


@pytest.fixture(scope="module")
def metaspace():
    """A tokenizer that drops the space in front of a text, as Llama's first one does."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"\u2581the": 0, "\u2581cat": 1, "s": 2}, unk_token="s")
    )
    backend.decoder = tokenizers.decoders.Metaspace()
    return backend


def test_a_space_before_the_first_word_is_that_of_the_whole_text(metaspace):
    ids = [0, 1, 2, 0]
    whole = metaspace.decode(ids)
    for n in range(1, len(ids)):
        pieces, rest, _ = read(ids[n:], prompt=ids[:n], decode=metaspace.decode)
        assert metaspace.decode(ids[:n]) + "".join(pieces) + rest == whole == "the cats the"


def test_decoding_does_not_read_everything_again():
    """A fixed number of tokens per step, however long the text is."""
    seen = []

    def decode(ids):
        seen.append(len(ids))
        return Bytes().decode(ids)

    read(itertools.repeat(97, 300), decode=decode)
    assert max(seen) <= 8
