"""Nothing that anybody writes becomes markup, and nothing leaves the gateway's origin."""

from __future__ import annotations

import re

from tests.page.conftest import OpenPage
from tests.page.samples import adapter, decision
from tests.page.stub import POLICY, WEB, Stub
from tests.page.tab import CTRL

EVIL = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
LINK = '"><a href="javascript:window.hacked=1">x</a>{key}${1}'

HANDLERS = """[...document.querySelectorAll("*")].flatMap((node) => [...node.attributes])
  .filter(({ name }) => name.startsWith("on")).length"""


def test_markup_is_text_wherever_it_comes_from(open_page: OpenPage, stub: Stub) -> None:
    stub.pieces = [EVIL[:20], EVIL[20:], "\n```html\n" + EVIL + "\n```\n", LINK]
    stub.decision |= {"domain": EVIL, "detail": LINK, "scores": [[EVIL, 0.9], [LINK, 0.4]]}
    stub.decision["target"] = {"specialist": EVIL, "adapter": LINK}
    hostile = adapter("x", "quarantined", id=EVIL, reason=LINK, digest=EVIL)
    stub.status["specialists"][0]["adapters"] += [hostile, adapter("y", id=LINK, state=EVIL)]
    stub.status["specialists"][1] |= {"name": EVIL, "reason": LINK, "state": EVIL, "base": {"id": LINK, "digest": EVIL}}
    stub.status["upstreams"][0] |= {"name": LINK, "url": "javascript:window.hacked=1"}
    stub.status["routes"][EVIL] = {"kind": "adapter", "name": EVIL}
    stub.status["router"] |= {"notice": EVIL, "version": LINK, "versions": [EVIL, LINK]}
    stub.status["gateway"]["config_error"] = EVIL
    stub.status["parts"][EVIL] = {"ready": False, "reason": LINK}
    stub.decisions.insert(0, decision(9, EVIL, LINK, EVIL, reason=LINK, detail=EVIL, prompt=EVIL, error=LINK))
    stub.fail("/v1/pin_lora_adapter", 400, EVIL, LINK, x_request_id="r")
    tab = open_page()
    tab.click("#prompt")
    tab.type(EVIL)
    tab.key("Enter", CTRL)
    tab.wait("document.querySelector('#answer').dataset.state === 'done'")
    tab.wait("document.querySelector('tr.past')")
    assert tab.text("#answer-text").startswith(EVIL)
    assert tab.text("#answer-text pre") == EVIL
    assert EVIL in tab.text("#bars")
    assert EVIL in tab.text("#adapter-table")
    tab.click('#adapter-table button[aria-label^="Pin"]')
    assert LINK in tab.wait_text("#messages", "refused this")
    tab.click("#language-fr")
    assert not tab.run("Boolean(window.hacked)")
    assert tab.run("document.querySelectorAll('main img, main script, main a, #messages a, header img').length") == 0
    assert tab.run(HANDLERS) == 0
    (request,) = stub.posted("/v1/chat/completions")
    assert request["body"]["messages"][0]["content"] == EVIL


def test_the_files_need_no_more_than_the_policy_allows() -> None:
    assert "unsafe" not in POLICY
    page = (WEB / "index.html").read_text()
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\bsrc=)", page)
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
        r"|https?://(?!www\.w3\.org/2000/svg)|setAttribute\(\"style\""
    )
    for path in WEB.iterdir():
        assert not forbidden.search(path.read_text()), path.name


def test_a_prompt_stays_out_of_storage_and_address(open_page: OpenPage) -> None:
    tab = open_page()
    tab.click("#prompt")
    tab.type("my secret plan")
    tab.key("Enter", CTRL)
    tab.wait("document.querySelector('#answer').dataset.state === 'done'")
    assert tab.run("localStorage.length + sessionStorage.length") == 0
    assert "secret" not in tab.run("location.href")
    assert tab.run("document.cookie") == ""
