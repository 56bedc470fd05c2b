from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from mlx_router.specialist.text import StopStrings, Vocabulary, byte_alphabet
from tests import tiny_chat

VOCABULARY = Vocabulary(tiny_chat.tokenizer(), fallback=lambda: None, keep=frozenset())


def decode(tokens: list[int], vocabulary: Vocabulary = VOCABULARY) -> tuple[str, list[str]]:
    detokenizer = vocabulary.detokenizer()
    pieces = [detokenizer.add(token) for token in tokens]
    pieces.append(detokenizer.finish())
    return "".join(pieces), pieces


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_any_text_comes_back_in_whole_characters(text: str) -> None:
    tokens = tiny_chat.tokenizer().encode(text, add_special_tokens=False).ids
    whole, pieces = decode(tokens)
    assert whole == text
    for piece in pieces:
        piece.encode()  # no half surrogates


@given(st.lists(st.integers(0, VOCABULARY.size + 50), max_size=60))
def test_any_tokens_give_valid_text(tokens: list[int]) -> None:
    whole, _ = decode(tokens)
    whole.encode()
    assert not set(whole) & {"Ġ", "Ċ"}
    kept = [token for token in tokens if token not in VOCABULARY.hidden]
    expected = b"".join(VOCABULARY.raw(token) for token in kept).decode("utf-8", "replace")
    assert expected.startswith(whole)  # what is missing is an unfinished character at the end
    assert expected[len(whole) :] in ("", "\ufffd")


def test_the_alphabet_is_that_of_the_tokenizers_library() -> None:
    from tokenizers import pre_tokenizers

    alphabet = byte_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))
    assert (alphabet["Ġ"], alphabet["Ċ"], alphabet["Ā"]) == (0x20, 0x0A, 0)  # 0: the byte that is easily lost


def test_special_tokens_are_hidden_unless_they_are_markers() -> None:
    start = tiny_chat.token("<|im_start|>")
    assert decode([start, tiny_chat.token("Yes")])[0] == "Yes"
    keeping = Vocabulary(tiny_chat.tokenizer(), fallback=lambda: None, keep=frozenset({"<|im_start|>"}))
    assert decode([start], keeping)[0] == "<|im_start|>"


def test_added_tokens_are_not_byte_level() -> None:
    """An added token's é is an é, not the byte that the alphabet writes as é."""
    made = Tokenizer.from_str(tiny_chat.tokenizer().to_str())
    made.add_tokens([AddedToken("café<|x|>", special=False)])
    vocabulary = Vocabulary(made, fallback=lambda: None)
    assert decode([made.token_to_id("café<|x|>")], vocabulary)[0] == "café<|x|>"


class FakeDetokenizer:
    """What mlx-lm's streaming detokenizers look like from outside."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.last_segment = ""

    def add_token(self, token: int) -> None:
        self.last_segment = f"<{token}>"

    def finalize(self) -> None:
        self.last_segment = "tail\ufffd"


def test_other_tokenizers_go_through_mlx_lm() -> None:
    made: Any = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    made.decoder = decoders.Metaspace()
    vocabulary = Vocabulary(made, fallback=FakeDetokenizer)
    assert not vocabulary.byte_level
    assert decode([0, 1], vocabulary)[1] == ["<0>", "<1>", "tail"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("abc", max_size=4), max_size=10),
)
def test_stop_strings_wherever_pieces_end(stops: list[str], pieces: list[str]) -> None:
    filtered = StopStrings(stops)
    seen = ""
    for piece in pieces:
        seen += filtered.add(piece)
        if filtered.stopped:
            break
    text = "".join(pieces)
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        assert filtered.stopped
        # pieces arrive one after the other, so the stop string that is complete first ends the text
        first = min(text.find(stop, 0) + len(stop) for stop in stops if stop in text)
        ends = [text.find(stop) for stop in stops if stop in text[: first + max(map(len, pieces), default=0)]]
        assert seen in {text[:at] for at in ends}
    else:
        assert seen + filtered.finish() == text


def test_held_text_is_as_short_as_it_can_be() -> None:
    filtered = StopStrings(["###"])
    assert filtered.add("a#b##") == "a#b"
    assert filtered.add("c") == "##c"
    assert filtered.add("#") == ""
    assert filtered.finish() == "#"


@pytest.mark.parametrize("name", ["Sequence", "ByteLevel"])
def test_byte_level_decoders_are_recognised(name: str) -> None:
    description = json.loads(tiny_chat.tokenizer().to_str())
    if name == "Sequence":
        description["decoder"] = {"type": "Sequence", "decoders": [description["decoder"]]}
    assert Vocabulary(Tokenizer.from_str(json.dumps(description)), fallback=lambda: None).byte_level
