"""Streams are passed on in whole events."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_router.gateway.relay import MAX_EVENT_BYTES, split_events
from mlx_router.protocol.sse import SSEReader


@pytest.mark.parametrize(
    ("data", "whole", "rest"),
    [
        (b"data: 1\n\n", b"data: 1\n\n", b""),
        (b"data: 1\n\ndata: 2", b"data: 1\n\n", b"data: 2"),
        (b"data: 1\r\n\r\ndata: 2", b"data: 1\r\n\r\n", b"data: 2"),
        (b"data: 1", b"", b"data: 1"),
        (b"", b"", b""),
        (b"\n\n", b"\n\n", b""),
    ],
)
def test_split(data: bytes, whole: bytes, rest: bytes) -> None:
    assert split_events(data) == (whole, rest)


def test_an_event_without_end_is_passed_on() -> None:
    data = b"x" * (MAX_EVENT_BYTES + 1)
    assert split_events(data) == (data, b"")


EVENTS = st.lists(
    st.sampled_from([b'data: {"a":1}', b"data: [DONE]", b": ping", b"event: x\ndata: y", "data: é".encode()]),
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EVENTS, st.sampled_from([b"\n", b"\r\n"]), st.lists(st.integers(1, 20), max_size=30))
def test_however_a_stream_is_cut_the_reader_gets_the_same(events: list[bytes], newline: bytes, cuts: list[int]) -> None:
    stream = b"".join(event.replace(b"\n", newline) + newline * 2 for event in events)
    pieces, position = [], 0
    for cut in cuts:
        pieces.append(stream[position : position + cut])
        position += cut
    pieces.append(stream[position:])
    reader, held, passed, seen = SSEReader(), b"", b"", []
    for piece in pieces:
        whole, held = split_events(held + piece)
        passed += whole
        seen += reader.feed(whole)
        # Whatever happens now, an event of our own would be read as one.
        assert SSEReader().feed(passed + b"data: end\n\n")[-1] == "end"
    assert passed + held == stream
    assert seen == SSEReader().feed(stream)
