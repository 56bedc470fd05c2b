"""From a prompt to bars to a streamed answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.page.conftest import OpenPage
from tests.page.stub import Stub
from tests.page.tab import CTRL, META, Tab

PROMPT = "How wide must a 3 A track be?"
ANSWERED = "document.querySelector('#answer').dataset.state === 'done'"


def ask(tab: Tab, prompt: str = PROMPT) -> None:
    tab.click("#prompt")
    tab.type(prompt)
    tab.key("Enter", CTRL)


def bars(tab: Tab) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tab.run(
        """[...document.querySelectorAll(".bar")].map((row) => ({
          label: row.querySelector(".label").textContent,
          state: row.dataset.state,
          need: row.querySelector(".need").textContent,
          share: row.querySelector(".fill").getBoundingClientRect().width
               / row.querySelector(".track").getBoundingClientRect().width,
          tick: parseFloat(row.querySelector(".tick").style.left),
          said: row.querySelector(".track").getAttribute("aria-label"),
        }))"""
    )
    return found


def test_a_prompt_is_routed_as_it_is_typed(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.click("#prompt")
    tab.type(PROMPT)
    tab.wait_text("#decision-reason", "kicad-pcb reaches its threshold with 0.94; also above theirs: electronics-hw")
    shown = bars(tab)
    assert [bar["label"] for bar in shown] == ["kicad-pcb", "electronics-hw", "kicad", "power", "emc", "general"]
    assert [bar["state"] for bar in shown] == ["chosen", "passed", "under", "under", "under", "under"]
    assert shown[0]["share"] == pytest.approx(0.9414, abs=0.01)
    assert shown[0]["tick"] == pytest.approx(46)
    assert shown[0]["need"] == "≥ 0.46"
    assert shown[5]["need"] == "< 0.50", "a label without a threshold of its own has the router's default"
    assert shown[2]["said"] == "score 0.31, below its threshold of 0.38"
    assert tab.text("#line").split("\n")[:6] == [
        "Domain", "kicad-pcb", "0.94", "Adapter", "mascarade-kicad", stub.answer_headers["x-adapter-digest"][:19],
    ]  # fmt: skip
    assert stub.posted("/v1/route")[-1]["body"] == {"prompt": PROMPT, "top": 1000}
    assert not stub.posted("/v1/chat/completions"), "nothing is asked before it is sent"


def test_an_answer_streams_in(open_page: OpenPage, stub: Stub) -> None:
    stub.hold_after = 2
    tab = open_page()
    ask(tab)
    tab.wait_text("#answer-text", "About 1.4 mm")
    assert tab.run("document.querySelector('#answer').dataset.state") == "streaming"
    assert tab.text("#send") == "Stop"
    assert tab.run("document.querySelector('#line').dataset.state") == "answered"
    stub.release()
    tab.wait(ANSWERED)
    assert "Then run DRC once more." in tab.text("#answer-text")
    assert tab.text("#answer-text pre") == '(net_class "Power"\n  (clearance 0.2)\n  (trace_width 1.4))'
    figures = dict(zip(*[iter(tab.text("#figures").split("\n"))] * 2, strict=True))
    assert figures["Routing"] == "3.1\u00a0ms"
    assert figures["Tokens"] == "13"
    assert figures["First token"].endswith("s")
    assert tab.text("#announcer").startswith("The answer is complete: 13 tokens in ")
    assert tab.text("#send") == "Send"
    (request,) = stub.posted("/v1/chat/completions")
    assert request["body"] == {
        "model": "ailiance/auto",
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_answer_says_who_really_answered(open_page: OpenPage, stub: Stub) -> None:
    stub.decision |= {"reason": "unavailable", "detail": "hardware is down"}
    tab = open_page()
    tab.click("#prompt")
    tab.type(PROMPT)
    tab.wait_text("#decision-detail", "hardware is down")
    tab.key("Enter", CTRL)
    tab.wait(ANSWERED)
    assert "reaches its threshold" in tab.text("#decision-reason")
    assert tab.text("#decision-detail") == "", "it was back in time"


def test_escape_stops_an_answer(open_page: OpenPage, stub: Stub) -> None:
    stub.hold_after = 1
    tab = open_page()
    ask(tab)
    tab.wait_text("#answer-text", "About")
    tab.key("Escape")
    tab.wait("document.querySelector('#answer').dataset.state === 'stopped'")
    assert stub.cancelled.wait(10), "the gateway was told"
    assert tab.text("#answer-text").strip() == "About"
    assert tab.text("#answer-state") == "Stopped"
    assert tab.focused() == "prompt"


def test_the_send_button_becomes_stop_and_keeps_the_focus(open_page: OpenPage, stub: Stub) -> None:
    stub.hold_after = 1
    tab = open_page()
    tab.click("#prompt")
    tab.type(PROMPT)
    tab.click("#send")
    tab.wait_text("#answer-text", "About")
    assert tab.focused() == "send"
    tab.key("Enter")
    tab.wait("document.querySelector('#answer').dataset.state === 'stopped'")


def test_meta_enter_sends_and_enter_alone_does_not(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.click("#prompt")
    tab.type("two")
    tab.key("Enter")
    tab.type("lines")
    tab.key("Enter", META)
    tab.wait(ANSWERED)
    (request,) = stub.posted("/v1/chat/completions")
    assert request["body"]["messages"][0]["content"] == "two\nlines"


def test_an_empty_prompt_is_not_sent(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.click("#send")
    tab.wait_text("#announcer", "Type a prompt first.")
    assert tab.focused() == "prompt"
    assert not stub.posted("/v1/chat/completions")


def test_a_named_model_and_a_limit_are_sent(open_page: OpenPage, stub: Stub) -> None:
    stub.answer_headers |= {"x-router-reason": "explicit", "x-router-adapter": "base", "x-adapter-digest": "base"}
    tab = open_page()
    groups = tab.run("[...document.querySelectorAll('#model optgroup')].map((group) => group.label)")
    options = tab.run("[...document.querySelectorAll('#model option')].map((option) => option.value)")
    assert groups == ["hardware", "code"]
    assert {"ailiance/auto", "base", "mascarade-power", "eurollm"} <= set(options)
    assert "mascarade-freecad" not in options, "what is quarantined cannot be chosen"
    tab.run("document.querySelector('#model').value = 'base'")
    tab.fill("#max-tokens", "64")
    ask(tab)
    tab.wait(ANSWERED)
    body = stub.posted("/v1/chat/completions")[0]["body"]
    assert (body["model"], body["max_tokens"]) == ("base", 64)
    assert "The model was named" in tab.text("#decision-reason")
    assert "base, no adapter" in tab.text("#line")


def test_every_reason_is_a_sentence(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.click("#prompt")
    for reason, sentence in (
        ("below_threshold", "No label reaches its threshold"),
        ("out_of_domain", "Like nothing the router has learnt"),
        ("unavailable", "cannot do so now"),
    ):
        stub.decision |= {"reason": reason, "detail": f"because of {reason}", "selections": []}
        stub.decision["scores"] = [["power", 0.31], ["emc", 0.12]]
        tab.type("more")
        tab.wait_text("#decision-reason", sentence)
        assert tab.text("#decision-detail") == f"because of {reason}"


def test_only_the_best_label_must_be_clear_of_the_fallback(open_page: OpenPage, stub: Stub) -> None:
    scores = [["power", 0.6], ["general", 0.36], ["emc", 0.02]]
    stub.status["router"] |= {"fallback": "general", "fallback_share": 0.45}
    stub.decision |= {"domain": "general", "score": 0.6, "reason": "below_threshold", "scores": scores}
    tab = open_page()
    tab.click("#prompt")
    tab.type(PROMPT)
    tab.wait_text("#decision-reason", "power comes first with 0.60, but general is too near with 0.36.")
    assert [bar["tick"] for bar in bars(tab)] == pytest.approx([80, 50, 52])
    assert [bar["state"] for bar in bars(tab)] == ["under", "under", "under"]
    assert tab.text("#line").split("\n")[:3] == ["Domain", "general", "0.36"], "its own score, not that of power"


def test_the_mark_of_an_unreachable_score_stays_on_its_bar(open_page: OpenPage, stub: Stub) -> None:
    stub.status["router"] |= {"fallback": "general", "fallback_share": 0.45}
    stub.decision |= {"reason": "below_threshold", "scores": [["power", 0.6], ["general", 0.5]]}
    tab = open_page()
    tab.click("#prompt")
    tab.type(PROMPT)
    tab.wait("document.querySelector('.bar')")
    assert [bar["tick"] for bar in bars(tab)] == pytest.approx([100, 50])


def test_the_fallback_leaves_other_marks_where_they_are(open_page: OpenPage, stub: Stub) -> None:
    selections = [{"domain": "general", "score": 0.45}, {"domain": "power", "score": 0.44}]
    scores = [[item["domain"], item["score"]] for item in selections]
    stub.status["router"] |= {"fallback": "general", "fallback_share": 0.45}
    stub.status["router"]["thresholds"]["general"] = 0.3
    stub.decision |= {"domain": "general", "score": 0.45, "selections": selections, "scores": scores}
    tab = open_page()
    tab.click("#prompt")
    tab.type(PROMPT)
    tab.wait_text("#decision-reason", "general reaches its threshold with 0.45; also above theirs: power.")
    assert [bar["need"] for bar in bars(tab)] == ["≥ 0.30", "≥ 0.44"]


def test_nobody_can_answer(open_page: OpenPage, stub: Stub) -> None:
    stub.decision |= {"target": None, "reason": "unavailable"}
    tab = open_page()
    tab.click("#prompt")
    tab.type(PROMPT)
    tab.wait_text("#line", "nobody can answer")


def test_an_example_fills_the_prompt(open_page: OpenPage) -> None:
    tab = open_page()
    tab.click("#examples button")
    assert tab.run("document.querySelector('#prompt').value") == "How wide must a 3 A track be on 1 oz copper in KiCad?"
    assert tab.focused() == "prompt"
    tab.wait_text("#decision-reason", "reaches its threshold")


def test_clearing_the_prompt_clears_the_decision(open_page: OpenPage) -> None:
    tab = open_page()
    tab.click("#prompt")
    tab.type(PROMPT)
    tab.wait("document.querySelector('.bar')")
    tab.run("document.querySelector('#prompt').select()")
    tab.type("")
    tab.run("document.execCommand('delete')")
    tab.wait("!document.querySelector('.bar')")
    assert "appear here" in tab.text("#decision-reason")


def test_reasoning_is_kept_apart(open_page: OpenPage, stub: Stub) -> None:
    def event(**delta: str) -> bytes:
        return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"

    stub.pieces = []
    stub.tail = [event(reasoning_content="First I think."), event(content="Then I say."), b"data: [DONE]\n\n"]
    tab = open_page()
    ask(tab)
    tab.wait(ANSWERED)
    assert tab.text("#answer-text") == "Then I say."
    tab.click("#reasoning summary")
    assert tab.text("#reasoning-text") == "First I think."


EVENTS = """(async () => {
  const { events } = await import("/sse.js");
  const bytes = new TextEncoder().encode(%s);
  const source = new ReadableStream({ start(controller) {
    for (let i = 0; i < bytes.length; i += %d) controller.enqueue(bytes.slice(i, i + %d));
    controller.close();
  } });
  const found = [];
  for await (const data of events(source)) found.push(data);
  return found;
})()"""


def test_events_are_read_from_any_pieces(open_page: OpenPage) -> None:
    lines = [": hello", 'data: {"é": 1}', "", "data: two", "data:  lines", "", "event: x", "", "data:[DONE]", "", ""]
    tab = open_page()
    for newline in ("\n", "\r\n", "\r"):
        for step in (1, 3, 1000):
            found = tab.run(EVENTS % (json.dumps(newline.join(lines)), step, step))
            assert found == ['{"é": 1}', "two\n lines", "[DONE]"], (newline, step)


def test_the_rate_is_told_where_it_means_something(open_page: OpenPage) -> None:
    script = "import('/answer.js').then(({ rateOf }) => rateOf({ firstMs: 100, totalMs: %d, tokens: 51 }) ?? null)"
    tab = open_page()
    assert tab.run(script % 1100) == 50
    assert tab.run(script % 101) is None


def test_fences_become_code(open_page: OpenPage) -> None:
    source = "a\n\n```py\nx = 1\n\n```\nb\n```\nopen"
    tab = open_page()
    found = tab.run(f"import('/answer.js').then(({{ blocks }}) => blocks({json.dumps(source)}))")
    assert found == [
        {"code": False, "language": "", "text": "a"},
        {"code": True, "language": "py", "text": "x = 1\n"},
        {"code": False, "language": "", "text": "b"},
        {"code": True, "language": "", "text": "open"},
    ]
