"""Whatever goes wrong, the reader learns what happened and what to do next."""

from __future__ import annotations

import json

import pytest

from tests.page.conftest import OpenPage
from tests.page.stub import Stub
from tests.page.tab import CTRL, Tab


def ask(tab: Tab) -> None:
    tab.click("#prompt")
    tab.type("a prompt")
    tab.key("Enter", CTRL)


ANSWERS = [
    (503, "upstream_unavailable", "Nobody can answer now.", "See Processes"),
    (504, "upstream_timeout", "The specialist took too long.", "Try again"),
    (429, "overloaded", "Too much is going on.", "Wait a moment"),
    (400, "context_length_exceeded", "does not fit the model's context", "Shorten it"),
    (413, "body_too_large", "The prompt is too large.", "Shorten it"),
    (404, "model_not_found", "There is no such model here.", "Choose another one"),
    (500, "internal_error", "The gateway failed (500).", "mlx-router logs gateway"),
    (422, "something_new", "The gateway refused this (422).", "Correct what it names"),
]
LOADS = [
    (403, "forbidden", "This is not allowed from here.", "security.admin_token"),
    (403, "adapter_path_forbidden", "This folder is not allowed.", "adapter_roots"),
    (404, "adapter_not_found", "There is no such adapter.", "mlx-router adapter add"),
    (409, "adapter_exists", "The adapter is loaded already.", "Use Swap"),
    (409, "adapter_incompatible", "The adapter does not fit the base.", "train it on this base"),
    (409, "adapter_quarantined", "The adapter is in quarantine.", "load better weights"),
    (503, "adapter_slots_busy", "Every slot of the bank is in use.", "Unpin or unload"),
    (507, "adapter_too_large", "does not fit the bank's memory", "bank_bytes"),
    (503, "upstream_unavailable", "Nobody can answer now.", "See Processes"),
]


def test_a_failed_answer(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.click("#prompt")
    tab.type("a prompt")
    for status, code, title, step in ANSWERS:
        stub.fail("/v1/chat/completions", status, code, f"words of {code}", x_request_id="req-77")
        tab.key("Enter", CTRL)
        shown = tab.wait_text("#answer-error", title)
        assert step in shown
        assert f"words of {code} (req-77)" in shown
        tab.wait("document.querySelector('#ask').dataset.state === 'idle'")
        assert tab.text("#answer-state") == tab.text("#announcer") == "Failed"
        assert tab.text("#send") == "Send", "another try is possible"


def test_retry_after_is_said(open_page: OpenPage, stub: Stub) -> None:
    stub.fail("/v1/chat/completions", 429, "overloaded", "the queue is full", retry_after="7")
    tab = open_page()
    ask(tab)
    assert "Try again in 7 s." in tab.wait_text("#answer-error", "Too much is going on.")


def test_an_error_in_the_stream_keeps_what_came(open_page: OpenPage, stub: Stub) -> None:
    error = {"message": "hardware: the connection broke off", "type": "server_error", "code": "upstream_unavailable"}
    stub.pieces, stub.tail = ["Half an "], [b"data: " + json.dumps({"error": error}).encode() + b"\n\n"]
    tab = open_page()
    ask(tab)
    assert "hardware: the connection broke off" in tab.wait_text("#answer-error", "Nobody can answer now.")
    assert tab.text("#answer-text").strip() == "Half an"


def test_a_stream_that_just_ends_is_no_answer(open_page: OpenPage, stub: Stub) -> None:
    stub.pieces, stub.tail = ["Half an "], []
    tab = open_page()
    ask(tab)
    assert "send the prompt again" in tab.wait_text("#answer-error", "The answer broke off.")


def test_a_stream_of_nonsense(open_page: OpenPage, stub: Stub) -> None:
    stub.tail = [b"data: {nonsense\n\n"]
    tab = open_page()
    ask(tab)
    tab.wait_text("#answer-error", "The gateway's answer cannot be read.")


def test_a_prompt_that_cannot_be_routed_is_answered_all_the_same(open_page: OpenPage, stub: Stub) -> None:
    stub.fail("/v1/route", 503, "router_unavailable", "no router version")
    tab = open_page()
    tab.click("#prompt")
    tab.type("a prompt")
    assert "Train one" in tab.wait_text("#decision-error", "The router cannot decide.")
    tab.key("Enter", CTRL)
    tab.wait("document.querySelector('#answer').dataset.state === 'done'")


def test_a_gateway_without_status(open_page: OpenPage, stub: Stub) -> None:
    stub.fail("/v1/status", 500, "internal_error", "internal error")
    tab = open_page()
    assert tab.text("#health") == "Failing"
    assert "The gateway failed (500)." in tab.text("#trouble")
    del stub.errors["/v1/status"]
    tab.come_back()
    tab.wait("document.querySelector('#health').innerText === 'Ready'")
    assert not tab.run("document.querySelector('#trouble').getClientRects().length"), "the page recovers by itself"


def test_something_else_that_answers(open_page: OpenPage, stub: Stub) -> None:
    stub.raw["/v1/status"] = b"<html>hello</html>"
    tab = open_page()
    assert "Is something else listening" in tab.text("#trouble")


def test_a_gateway_that_is_gone(open_page: OpenPage) -> None:
    tab = open_page()
    tab.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    tab.come_back()
    tab.wait_text("#trouble", "The gateway does not answer.")
    assert tab.text("#health") == "No connection"
    assert "mlx-router serve" in tab.text("#trouble")
    assert tab.run("document.body.dataset.connection") == "lost"
    ask(tab)
    tab.wait_text("#answer-error", "The gateway does not answer.")
    tab.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    tab.come_back()
    tab.wait("document.querySelector('#health').innerText === 'Ready'")


def test_a_gateway_that_wants_a_key_for_everything(open_page: OpenPage, stub: Stub) -> None:
    stub.api_key = "key-1"
    tab = open_page()
    assert tab.text("#health") == "Key needed"
    tab.click("#trouble button")
    tab.wait("document.querySelector('dialog[open] #field-token')")
    tab.type("key-1")
    tab.key("Enter")
    tab.wait("document.querySelector('#health').innerText === 'Ready'")
    ask(tab)
    tab.wait("document.querySelector('#answer').dataset.state === 'done'")
    assert stub.posted("/v1/chat/completions")[0]["headers"]["authorization"] == "Bearer key-1"


CALL = """Promise.all([import("/api.js"), import("/errors.js"), import("/i18n.js")])
  .then(([{ call }, { explain }, { t }]) => call("/v1/route", { body: {}, timeoutMs: 50 })
  .catch((error) => { const { title, next } = explain(error); return `${t(title)} ${t(next)}`; }))"""


def test_a_gateway_that_takes_too_long(open_page: OpenPage, stub: Stub) -> None:
    stub.slow.add("/v1/route")
    said = open_page().run(CALL)
    assert said.startswith("The gateway took too long. It may be busy")


def test_decisions_that_cannot_be_read(open_page: OpenPage, stub: Stub) -> None:
    stub.fail("/v1/decisions", 500, "internal_error")
    tab = open_page()
    tab.wait_text("#decisions-error", "The gateway failed (500).")


def test_a_failed_load(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    for status, code, title, step in LOADS:
        stub.fail("/v1/load_lora_adapter", status, code, f"words of {code}")
        tab.click('#adapter-table button[aria-label="Load mascarade-power"]')
        shown = tab.wait_text("#messages [role=alert]", title)
        assert step in shown
        assert f"words of {code}" in shown
        tab.click("#messages .close")
        assert tab.text("#messages") == ""


@pytest.mark.parametrize("path", ["unload", "pin"])
def test_other_failed_actions(open_page: OpenPage, stub: Stub, path: str) -> None:
    stub.fail(f"/v1/{path}_lora_adapter", 503, "engine_unavailable", "the engine is starting")
    tab = open_page()
    tab.click(f'#adapter-table button[aria-label^="{path.title()}"][aria-label*="mascarade-spice"]')
    if path == "unload":
        tab.click("dialog .danger")
    assert "It may be starting" in tab.wait_text("#messages", "The specialist is not ready.")


@pytest.mark.parametrize(("path", "opener"), [("activate", "#versions button"), ("rollback", "#rollback")])
def test_a_version_that_is_corrupt(open_page: OpenPage, stub: Stub, path: str, opener: str) -> None:
    stub.fail(f"/v1/router/{path}", 409, "version_corrupt", "router v0002 is corrupt (1): meta.json: missing")
    tab = open_page()
    tab.click(opener)
    tab.click("dialog .primary")
    assert "meta.json: missing" in tab.wait_text("#messages", "The version is corrupt; nothing was changed.")
    assert tab.text("#router-version") == "v0003"


def test_a_specialist_that_is_down(open_page: OpenPage, stub: Stub) -> None:
    stub.status["specialists"][0] |= {"state": "down", "reason": "connection refused"}
    stub.status["parts"]["hardware"] |= {"ready": False, "reason": "connection refused"}
    tab = open_page()
    assert tab.text("#health") == "Ready without hardware"
    tab.wait_text("#processes", "connection refused")
    assert tab.run("document.querySelectorAll('#processes .state')[1].dataset.state") == "bad"


def test_a_configuration_that_was_refused(open_page: OpenPage, stub: Stub) -> None:
    stub.status["gateway"]["config_error"] = "routes.sql = 'sqll' is no adapter; did you mean 'mascarade-sql'?"
    tab = open_page()
    assert "did you mean 'mascarade-sql'?" in tab.text("#config-error")
    assert "the old one serves until then" in tab.text("#config-error")
