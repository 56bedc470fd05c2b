from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_router.errors import Overloaded
from mlx_router.protocol.sse import DONE, SSEReader, error_event, event


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=5),
    st.lists(st.integers(1, 40), max_size=30),
)
def test_events_come_back_however_they_are_cut(bodies: list[dict[str, str]], cuts: list[int]) -> None:
    raw = b"".join(event(body) for body in bodies) + DONE
    reader, seen = SSEReader(), []
    for cut in cuts:
        seen += reader.feed(raw[:cut])
        raw = raw[cut:]
    seen += reader.feed(raw)
    assert [json.loads(item) for item in seen[:-1]] == bodies
    assert seen[-1] == "[DONE]"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_comments_and_several_data_lines(end: str) -> None:
    raw = f": ping{end}event: x{end}data: a{end}data:b{end}{end}data:  c{end}{end}{end}id: 3{end}{end}".encode()
    for size in (1, 2, 3, len(raw)):
        reader = SSEReader()
        seen = [item for at in range(0, len(raw), size) for item in reader.feed(raw[at : at + size])]
        assert seen == ["a\nb", " c"], size


def test_an_event_without_end_is_bounded() -> None:
    reader = SSEReader(max_bytes=100)
    for _ in range(40):
        reader.feed(b"data: xx\n")
    with pytest.raises(ValueError, match="100 bytes"):
        reader.feed(b"data: " + b"x" * 40)


def test_error_events() -> None:
    body = json.loads(SSEReader().feed(error_event(Overloaded("full")))[0])
    assert body["error"]["code"] == "overloaded"
