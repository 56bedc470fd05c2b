"""The page in front of a real gateway process and its specialists."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fake_router import publish_version
from tests.gateway_rig import Rig, start_rig
from tests.page.conftest import OpenPage
from tests.page.stub import POLICY
from tests.page.tab import CTRL, Tab

TOKEN = "operators-only"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("rig")
    (folder / "home").mkdir()
    publish_version(folder / "home")
    rig = start_rig(folder, extra=f'[security]\nadmin_token = "{TOKEN}"')
    yield rig
    rig.stop()


def give_token(tab: Tab, token: str) -> None:
    tab.wait("document.querySelector('dialog[open] #field-token')")
    tab.type(token)
    tab.key("Enter")
    tab.wait("!document.querySelector('dialog')")


def test_the_files_come_with_the_policy(rig: Rig) -> None:
    for path, kind in (("/", "text/html"), ("/app.js", "text/javascript"), ("/icon.svg", "image/svg+xml")):
        reply = rig.get(path)
        assert reply.status == 200
        assert reply.headers["content-type"].startswith(kind)
        assert reply.headers["content-security-policy"] == POLICY


def test_a_prompt_goes_all_the_way(rig: Rig, make_tab: OpenPage) -> None:
    tab = make_tab(rig.gateway.url + "/")
    assert tab.text("#health") == "Ready"
    tab.click("#prompt")
    tab.type("route my kicad board")
    tab.wait_text("#decision-reason", "kicad-pcb reaches its threshold with 0.91")
    assert tab.run("document.querySelector('.bar').dataset.state") == "chosen"
    tab.key("Enter", CTRL)
    tab.wait("document.querySelector('#answer').dataset.state === 'done'")
    assert tab.text("#answer-text").strip() == "0é 1é 2é 3é"
    for part in ("kicad-pcb", "mascarade-kicad", "sha256:mascarade-kicad", "hardware"):
        assert part in tab.text("#line")
    tab.wait_text("#decision-table", "mascarade-kicad · hardware")


def test_a_swap_needs_the_right_token(rig: Rig, make_tab: OpenPage) -> None:
    tab = make_tab(rig.gateway.url + "/")
    button = '#adapter-table button[aria-label^="Swap"][aria-label*="mascarade-sql"]'
    tab.click(button)
    tab.click("dialog .primary")
    give_token(tab, "wrong")
    tab.wait_text("#messages", "The gateway wants a key.")
    tab.click("#messages .error-box button")
    give_token(tab, TOKEN)
    tab.click(button)
    tab.click("dialog .primary")
    tab.wait_text("#messages", "mascarade-sql is swapped")


def test_versions_go_back_and_forth(rig: Rig, make_tab: OpenPage) -> None:
    tab = make_tab(rig.gateway.url + "/")
    assert tab.text("#router-version") == "v0002"
    tab.click("#rollback")
    tab.click("dialog .primary")
    give_token(tab, TOKEN)
    tab.wait_text("#messages", "Router v0001 serves now, in place of v0002.")
    tab.click("#versions button")
    tab.click("dialog .primary")
    tab.wait("document.querySelector('#router-version').innerText === 'v0002'")


def test_a_specialist_dies_and_comes_back(rig: Rig, make_tab: OpenPage) -> None:
    tab = make_tab(rig.gateway.url + "/")
    for process in rig.specialists.values():
        process.kill()
    tab.wait("document.querySelector('#health').innerText.startsWith('Not ready')")
    tab.click("#prompt")
    tab.type("route my kicad board")
    tab.key("Enter", CTRL)
    tab.wait_text("#answer-error", "Nobody can answer now.")
    tab.wait_text("#processes", "down")
    for process in rig.specialists.values():
        process.start().wait()
    tab.wait("document.querySelector('#health').innerText === 'Ready'")
    tab.key("Enter", CTRL)
    tab.wait("document.querySelector('#answer').dataset.state === 'done'")
