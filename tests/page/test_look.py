"""What the page looks like: themes, contrast, widths, focus."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.page.chromium import MISSING
from tests.page.conftest import OpenPage
from tests.page.samples import adapter
from tests.page.stub import Stub
from tests.page.tab import CTRL, SHIFT, Tab

ROOT = Path(__file__).resolve().parents[2]
LONG = "a-very-long-name-" * 7

# Text with less contrast to what is behind it than WCAG AA wants: 4.5, or 3 where it is large.
CONTRAST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (node) => {
    if (!node) return [1, 1, 1];
    const color = rgba(getComputedStyle(node).backgroundColor);
    return color[3] === 1 ? color.slice(0, 3) : over(color, behind(node.parentElement));
  };
  const light = (color) => {
    const [r, g, b] = color.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const poor = [];
  const seen = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    const field = node.matches("input, textarea, select");
    if (!(own || field) || !node.getClientRects().length || node.matches(":disabled, .sr, .sr *, .skip")) continue;
    if (node.matches("#token-text, thead *") && node.getBoundingClientRect().width <= 1) continue;
    const style = getComputedStyle(node);
    const below = behind(node);
    const [a, b] = [light(over(rgba(style.color), below)), light(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const wanted = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    seen.push(ratio);
    const name = `${node.tagName}.${node.className} ${node.textContent.slice(0, 40)}`;
    if (ratio < wanted) poor.push(`${ratio.toFixed(2)} ${name}`);
  }
  return { poor, count: seen.length };
})()"""


OUTLINE = """(({ outlineWidth, outlineStyle }) => `${outlineWidth} ${outlineStyle}`)(
  getComputedStyle(document.activeElement))"""
NAMED = {"button", "textbox", "combobox", "searchbox", "spinbutton", "link", "image", "table", "region"}
# Fields whose text or placeholder is wider than their room for it.
CUT = """[...document.querySelectorAll("main select, main input")].filter((node) => {
  const style = getComputedStyle(node);
  const pen = new OffscreenCanvas(1, 1).getContext("2d");
  pen.font = style.font;
  const text = node.selectedOptions?.[0].text ?? node.placeholder;
  const arrow = node.matches("select, [type=number]") ? 20 : 0;
  const room = node.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - arrow;
  return pen.measureText(text).width > room;
}).map((node) => node.id)"""
MIDDLES = """[...document.querySelectorAll("%s")].map((node) => node.getBoundingClientRect())
  .map(({ top, bottom }) => (top + bottom) / 2)"""
OUTSIDE = """[...document.querySelectorAll("main button, main input, header button, header a, .value, .need")]
  .filter((node) => node.getClientRects().length && node.getBoundingClientRect().right > innerWidth)
  .map((node) => node.outerHTML.slice(0, 120))"""


def with_everything(tab: Tab, stub: Stub) -> None:
    """Show an answer, an error, a message and all tables."""
    stub.fail("/v1/unload_lora_adapter", 503, "engine_unavailable", "the engine is starting")
    tab.click("#prompt")
    tab.type("a prompt")
    tab.key("Enter", CTRL)
    tab.wait("document.querySelector('#answer').dataset.state === 'done'")
    tab.click('#adapter-table button[aria-label="Unload mascarade-spice"]')
    tab.click("dialog .danger")
    tab.wait_text("#messages", "The specialist is not ready.")
    tab.wait("document.querySelector('tr.past')")


def paper(tab: Tab) -> str:
    return str(tab.run("getComputedStyle(document.body).backgroundColor"))


def test_the_system_says_the_theme(open_page: OpenPage) -> None:
    light, dark = paper(open_page(scheme="light")), paper(open_page(scheme="dark"))
    assert light == "rgb(245, 244, 240)"
    assert dark == "rgb(18, 20, 22)"


def test_a_theme_can_be_chosen_and_is_kept(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    light = paper(tab)
    assert tab.run("document.querySelector('#theme').getAttribute('aria-pressed')") == "false"
    tab.click("#theme")
    assert paper(tab) != light
    assert tab.run("document.querySelector('#theme').getAttribute('aria-pressed')") == "true"
    tab.open(stub.url + "/")
    assert paper(tab) != light
    tab.click("#theme")
    assert paper(tab) == light
    assert tab.run("localStorage.length") == 0, "back with the system"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(open_page: OpenPage, stub: Stub, scheme: str) -> None:
    stub.status["specialists"][1] |= {"state": "down", "reason": "connection refused"}
    stub.status["router"]["notice"] = "v0004 is corrupt; serving v0003 instead"
    tab = open_page(scheme=scheme)
    with_everything(tab, stub)
    for width in (1280, 390):
        tab.resize(width)
        tab.wait(f"innerWidth === {width}")
        found: dict[str, Any] = tab.run(CONTRAST)
        assert found["count"] > 150
        assert found["poor"] == []


@pytest.mark.parametrize("language", ["en-GB", "fr-FR"])
def test_nothing_is_wider_than_the_window(open_page: OpenPage, stub: Stub, language: str) -> None:
    stub.pieces = ["`" + "x" * 300 + "`\n```\n" + "y" * 300 + "\n```\n", "word " * 50]
    stub.decision["scores"][0][0] = LONG
    stub.decision["target"]["adapter"] = LONG
    stub.answer_headers["x-router-adapter"] = LONG
    stub.status["specialists"][0]["adapters"].append(adapter(LONG, reason="y" * 200, requests=10**9))
    stub.status["specialists"][1] |= {"state": "down", "reason": "z" * 200}
    stub.decisions[0] |= {"domain": LONG, "adapter": LONG, "detail": "w" * 200}
    tab = open_page(language=language)
    tab.click("#prompt")
    tab.type("a prompt")
    tab.key("Enter", CTRL)
    tab.wait("document.querySelector('#answer').dataset.state === 'done'")
    tab.wait("document.querySelector('tr.past')")
    for width in (1280, 1101, 1024, 961, 768, 390, 320):
        tab.resize(width)
        tab.wait(f"innerWidth === {width}")
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run(OUTSIDE) == [], width


@pytest.mark.parametrize("language", ["en-GB", "fr-FR"])
def test_a_phone_cuts_nothing_and_keeps_rows(open_page: OpenPage, language: str) -> None:
    tab = open_page(width=375, language=language)
    for row in (".top > :is(.brand, .controls)", ".sections a", ".process-head > :is(.process-kind, .state)"):
        middles = tab.run(MIDDLES % row)
        assert all(abs(one - two) < 6 for one, two in zip(middles[::2], middles[1::2], strict=True)), row
    assert tab.run(CUT) == []


def test_small_screens_have_large_targets(open_page: OpenPage) -> None:
    tab = open_page(width=390)
    tab.wait("document.querySelector('tr.past')")
    small = tab.run(
        """[...document.querySelectorAll("button, select, input")].filter((node) => node.getClientRects().length)
        .filter((node) => { const box = node.getBoundingClientRect(); return box.height < 32 || box.width < 32; })
        .map((node) => node.outerHTML.slice(0, 100))"""
    )
    assert small == []


def test_the_keyboard_reaches_everything_in_order(open_page: OpenPage) -> None:
    tab = open_page()
    assert tab.focused() == "prompt", "ready to type"
    tab.run("document.activeElement.blur(); document.querySelector('.skip').focus()")
    assert tab.run("document.querySelector('.skip').getBoundingClientRect().top") >= 0
    order = []
    for _ in range(19):
        tab.key("Tab")
        order.append(tab.focused())
        assert tab.run(OUTLINE) == "2px solid", f"no focus is to be seen on {order[-1]}"
    assert order[:4] == ["A"] * 4
    assert order[4:8] == ["token", "language-en", "language-fr", "theme"]
    assert order[8] == "prompt"
    assert order[13:16] == ["model", "max-tokens", "send"]
    assert order[16] == "rollback"
    tab.key("Tab", SHIFT)


def test_the_skip_link_leads_to_the_prompt(open_page: OpenPage) -> None:
    tab = open_page()
    tab.run("document.querySelector('.skip').focus()")
    tab.key("Enter")
    tab.wait("document.activeElement.id === 'prompt'")


def test_everything_has_a_name(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    with_everything(tab, stub)
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node["role"]["value"]
        for node in tree
        if not node["ignored"] and node["role"]["value"] in NAMED and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    roles = [node["role"]["value"] for node in tree if not node["ignored"]]
    assert roles.count("main") == 1
    assert roles.count("table") == 2


def test_cards_are_still_tables_to_a_screen_reader(open_page: OpenPage) -> None:
    tab = open_page(width=390)
    tab.wait("document.querySelector('tr.past')")
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = [node["role"]["value"] for node in tree if not node["ignored"]]
    assert roles.count("table") == 2
    assert roles.count("rowheader") >= 12


def test_without_chromium_the_tests_fail_and_say_why(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", f"{__file__}::test_the_system_says_the_theme"]
    environment = {**os.environ, "PATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("CHROMIUM", None)
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert MISSING in run.stdout
