"""Processes, decisions and the router: shown as they are now."""

from __future__ import annotations

from typing import Any

from tests.page.conftest import OpenPage
from tests.page.samples import decision
from tests.page.stub import Stub


def record() -> dict[str, Any]:
    """What a supervisor writes down, as far as the page reads it."""

    def child(name: str, kind: str, port: int, **more: Any) -> dict[str, Any]:
        known = {"name": name, "kind": kind, "state": "ready", "reason": None, "last_end": None, "restarts": 0}
        return {**known, "port": port, "url": f"http://127.0.0.1:{port}", **more}

    return {
        "format": 1,
        "children": [
            child("gateway", "gateway", 9300, pid=4711, memory_bytes=210_000_000),
            child("hardware", "specialist", 9360, pid=99123, memory_bytes=21_000_000_000),
            child("code", "specialist", 9361, state="backing off", pid=None, restarts=7, last_end="exit status 1"),
        ],
    }


def test_decisions_arrive_by_themselves(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.wait("document.querySelectorAll('tr.past').length === 8")
    stub.decisions.insert(0, decision(0, "spice", "mascarade-spice", "hardware"))
    tab.wait("document.querySelectorAll('tr.past').length === 9")
    first = tab.run("document.querySelector('tr.past').innerText")
    for part in ("spice", "0.97", "classified", "mascarade-spice · hardware", "200", "1.42\u00a0s", "96"):
        assert part in first


def test_every_outcome_is_told(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.wait("document.querySelector('tr.past')")
    shown = tab.text("#decision-table")
    for part in ("below threshold", "out of domain", "explicit", "unavailable", "upstream_unavailable", "503"):
        assert part in shown
    assert "adapter mascarade-freecad is quarantined" in shown
    assert "none" not in shown


def test_decisions_can_be_held(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.wait("document.querySelector('tr.past')")
    tab.click("#decisions-pause")
    asked = len([item for item in stub.seen if item["path"] == "/v1/decisions"])
    stub.decisions.insert(0, decision(0, "spice", "mascarade-spice", "hardware"))
    tab.come_back()
    tab.wait("document.querySelector('#health').innerText === 'Ready'")
    assert len([item for item in stub.seen if item["path"] == "/v1/decisions"]) <= asked + 1
    assert tab.run("document.querySelectorAll('tr.past').length") == 8
    assert tab.text("#decisions-pause") == "Resume"
    tab.click("#decisions-pause")
    tab.wait("document.querySelectorAll('tr.past').length === 9")


def test_no_decisions_yet(open_page: OpenPage, stub: Stub) -> None:
    stub.decisions = []
    tab = open_page()
    tab.wait_text("#decisions", "Nothing was asked yet.")


def test_processes_and_what_their_supervisor_knows(open_page: OpenPage, stub: Stub) -> None:
    stub.status["processes"] = record()
    stub.status["specialists"][1] |= {"state": "down", "reason": "connection refused"}
    tab = open_page()
    shown = tab.wait_text("#processes", "99123")
    for part in (
        "gateway",
        "1\u00a0d\u00a02\u00a0h",
        "210 MB",
        "4711",
        "127.0.0.1:9360",
        "21 GB",
        "Restarts",
        "eurollm",
        "0 / 256",
    ):
        assert part in shown
    assert "restarting" in shown
    assert "exit status 1" in shown, "the supervisor knows better than the gateway why it is away"
    assert "connection refused" not in shown


def test_the_record_of_another_supervisor_is_not_believed(open_page: OpenPage, stub: Stub) -> None:
    stub.status["processes"] = record()
    stub.status["processes"]["children"][0]["pid"] = 4712
    tab = open_page()
    shown = tab.wait_text("#processes", "4711")
    assert "99123" not in shown
    assert "318 MB" in shown


def test_the_active_version_and_its_figures(open_page: OpenPage) -> None:
    tab = open_page()
    shown = tab.text("#router")
    figures = ("Top-1", "0.861", "0.962", "Macro-F1", "0.853", "ECE", "0.031", "47", "612", "23 %")
    for part in ("v0003", "serving", *figures):
        assert part in shown, part
    assert tab.run("document.querySelector('#router-figures dt').title").startswith("Share of test prompts")
    versions = tab.text("#versions").split("\n")
    assert versions == ["v0003", "active", "v0002", "Activate v0002", "v0001", "Activate v0001"]


def test_a_version_is_activated(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.click("#versions li:nth-child(3) button")
    tab.wait_text("dialog", "Activate v0001?")
    tab.key("Enter")
    tab.wait_text("#messages", "Router v0001 serves now, in place of v0003.")
    assert stub.posted("/v1/router/activate")[0]["body"] == {"version": "v0001"}
    assert tab.text("#router-version") == "v0001"


def test_a_version_is_rolled_back_with_the_token(open_page: OpenPage, stub: Stub) -> None:
    stub.token = "t"
    stub.status["gateway"]["admin_token_required"] = True
    tab = open_page()
    tab.click("#rollback")
    tab.click("dialog .primary")
    tab.wait("document.querySelector('dialog[open] #field-token')")
    tab.type("t")
    tab.key("Enter")
    tab.wait_text("#messages", "Router v0002 serves now, in place of v0003.")
    assert stub.posted("/v1/router/rollback")[0]["headers"]["authorization"] == "Bearer t"


def test_a_substitute_is_shown(open_page: OpenPage, stub: Stub) -> None:
    stub.status["router"] |= {"version": "v0002", "notice": "v0003 is corrupt; serving v0002 instead"}
    tab = open_page()
    assert "v0003 is corrupt; serving v0002 instead" in tab.text("#router-notice")
    assert tab.text("#router-state") == "substitute"


def test_no_router_yet(open_page: OpenPage, stub: Stub) -> None:
    stub.status["ready"] = False
    stub.status["parts"]["router"] |= {"ready": False, "reason": "no router version"}
    stub.status["router"] = {"ready": False, "reason": "no router version", "versions": [], "metrics": {}, "cache": {}}
    tab = open_page()
    assert tab.text("#health") == "Not ready: router"
    assert "make train" in tab.text("#router")
    assert tab.run("document.querySelector('#rollback').disabled")


def test_many_versions_are_folded(open_page: OpenPage, stub: Stub) -> None:
    stub.status["router"]["versions"] = [f"v{number:04d}" for number in range(1, 13)]
    tab = open_page()
    assert tab.run("document.querySelectorAll('#versions li').length") == 5
    tab.click("#versions-all")
    assert tab.run("document.querySelectorAll('#versions li').length") == 12
