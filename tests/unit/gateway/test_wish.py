"""What of a conversation is classified."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_router.gateway.boilerplate import strip
from mlx_router.gateway.followup import follow_up_kind
from mlx_router.gateway.wish import MAX_CHARS, conversation_keys, prompt_text, text_of, wish_of


def talk(*turns: str) -> list[dict[str, Any]]:
    """User turns with an answer after each but the last."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You write COBOL."}]
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "print('sql')"}]
    return messages[:-1]


def test_only_the_users_words_count() -> None:
    messages = talk("Comment router une paire USB ?")
    messages.append({"role": "tool", "content": "SELECT 1", "tool_call_id": "a"})
    assert wish_of(messages).prompt == "Comment router une paire USB ?"


def test_content_parts_are_joined() -> None:
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "text": "this?"},
    ]
    assert wish_of([{"role": "user", "content": parts}]).prompt == "What is\nthis?"


@pytest.mark.parametrize(
    "wrapped",
    [
        "<system-reminder>\nUse Docker.\n</system-reminder>\nFix the query",
        "Fix the query\n<environment_details>\n# VSCode Open Tabs\nmain.rs\n</environment_details>",
        "<context>python</context><user_query>\nFix the query\n</user_query>\n<rules>Rust only</rules>",
        "<task>Fix the query</task> <environment_details>kubernetes</environment_details>",
        '<file path="a.py">' + "import os\n" * 500 + "</file>\nFix the query",
        "<SYSTEM-REMINDER>docker</SYSTEM-REMINDER>Fix the query",
    ],
)
def test_the_harness_is_taken_off(wrapped: str) -> None:
    assert strip(wrapped) == "Fix the query"


def test_a_turn_of_tool_output_is_no_wish() -> None:
    assert wish_of(talk("Write SQL", "[read_file for 'a.py'] Result:\nimport os")).prompt == "Write SQL"


def test_markup_that_is_no_harness_stays() -> None:
    assert strip("Why does <div class='a'> overflow <body>?") == "Why does <div class='a'> overflow <body>?"
    assert strip("In C++, std::vector<file> breaks") == "In C++, std::vector<file> breaks".replace("<file>", "")


def test_large_code_keeps_its_language_and_first_lines() -> None:
    text = "Explain:\n```rust\nfn main() {\n" + "    let x = 1;\n" * 400 + "}\n```\nThanks"
    short = strip(text)
    assert len(short) < 400
    assert short.startswith("Explain:\n```rust\nfn main() {")
    assert short.endswith("```\nThanks")
    small = "Explain:\n```rust\nfn main() {}\n```"
    assert strip(small) == small


@pytest.mark.parametrize(
    "line", ["{n:4}→ code", "{n}\tcode", "2024-01-02 10:00:{n} INFO started", "+added {n}x", "    at f(a.js:{n})"]
)
def test_listings_are_shortened(line: str) -> None:
    text = "Look at this\n" + "\n".join(line.format(n=n) for n in range(10, 200)) + "\nwhat is wrong?"
    assert len(strip(text).split("\n")) == 5


def test_a_numbered_list_of_wishes_stays() -> None:
    text = "Do this:\n" + "\n".join(f"{n}. step {n}" for n in range(1, 20))
    assert strip(text) == text


@pytest.mark.parametrize(
    ("turns", "prompt"),
    [
        (("Bubble sort in Python", "continue"), "Bubble sort in Python"),
        (("Bubble sort in Python", "Merci, continue !"), "Bubble sort in Python"),
        (("Bubble sort in Python", "and in C?"), "Bubble sort in Python\nand in C?"),
        (("Un tri à bulles en Python", "et en Rust ?"), "Un tri à bulles en Python\net en Rust ?"),
        (("Bubble sort in Python", "and in C?", "ok, go on"), "Bubble sort in Python\nand in C?"),
        (("Bubble sort in Python", "make it faster"), "Bubble sort in Python\nmake it faster"),
        (("Tri en Python", "Comment configurer le DMA sur un STM32F4 ?"), "Comment configurer le DMA sur un STM32F4 ?"),
        (("continue",), "continue"),
        (("and in C?",), "and in C?"),
    ],
)
def test_follow_ups_lean_on_what_came_before(turns: tuple[str, ...], prompt: str) -> None:
    assert wish_of(talk(*turns)).prompt == prompt


def test_long_questions_are_no_follow_ups() -> None:
    assert follow_up_kind("And how do I route a differential pair on a four layer board in KiCad?") == "none"


def test_only_boilerplate_is_better_than_nothing() -> None:
    assert wish_of([{"role": "user", "content": "<document>abc</document>"}]).prompt == "<document>abc</document>"
    assert wish_of([{"role": "assistant", "content": "hi"}]).prompt == ""


def test_long_wishes_keep_head_and_tail() -> None:
    wish = wish_of([{"role": "user", "content": "start " + "x " * 10_000 + "end"}]).prompt
    assert len(wish) == MAX_CHARS
    assert wish.startswith("start")
    assert wish.endswith("end")


def test_prompts_of_plain_completions() -> None:
    assert prompt_text("SELECT") == "SELECT"
    assert prompt_text(["a", "b"]) == "a"
    assert prompt_text([1, 2]) == ""
    assert prompt_text(None) == ""


def test_a_conversation_is_known_by_the_turns_that_were_answered() -> None:
    first, second = conversation_keys(talk("a")), conversation_keys(talk("a", "b"))
    assert first[0] is None
    assert second[0] == first[1]
    assert len({first[1], second[1], conversation_keys(talk("b"))[1], conversation_keys(talk("b", "a"))[1]}) == 4
    assert conversation_keys(talk("a")[1:])[1] != first[1]  # another system prompt
    assert conversation_keys([]) == (None, None)
    assert conversation_keys([{"role": "assistant", "content": "hi"}]) == (None, None)


def test_an_agent_at_work_stays_in_its_turn() -> None:
    works = [*talk("a"), {"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "1"}]
    assert conversation_keys(works) == (conversation_keys(talk("a"))[1],) * 2
    adds = [*works, {"role": "user", "content": "b"}, {"role": "user", "content": "<environment>"}]
    assert conversation_keys(adds)[0] == conversation_keys(talk("a"))[1]


@pytest.mark.parametrize(
    "text", ["<file>" * 30_000, "<task " * 30_000, "```a\n" * 30_000, "1→\n" * 60_000, "ok " * 60_000]
)
def test_no_text_takes_long(text: str) -> None:
    started = time.perf_counter()
    wish_of([{"role": "user", "content": text}])
    assert time.perf_counter() - started < 1.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(JSON | st.fixed_dictionaries({"role": st.just("user"), "content": JSON})))
def test_any_json_has_a_wish(messages: list[Any]) -> None:
    assert isinstance(wish_of(messages).prompt, str)
    conversation_keys(messages)
    text_of(messages)
