"""English and French: every text, every number."""

from __future__ import annotations

import re

import pytest

from tests.page.conftest import OpenPage
from tests.page.stub import WEB, Stub
from tests.page.tab import CTRL, Tab

STRINGS = "import('/strings.js').then(({ STRINGS }) => STRINGS)"


def visible_words(tab: Tab) -> str:
    return str(tab.run("document.body.innerText"))


@pytest.mark.parametrize(("language", "expected"), [("fr-CA,en", "fr"), ("de-DE,fr;q=0.8", "fr"), ("de-DE", "en")])
def test_the_browser_says_the_language(open_page: OpenPage, language: str, expected: str) -> None:
    tab = open_page(language=language)
    assert tab.run("document.documentElement.lang") == expected
    assert tab.text("#health") == {"fr": "Prêt", "en": "Ready"}[expected]


def test_a_choice_is_kept_and_changes_everything_at_once(open_page: OpenPage, stub: Stub) -> None:
    stub.fail("/v1/pin_lora_adapter", 503, "adapter_slots_busy")
    tab = open_page()
    tab.click("#prompt")
    tab.type("a prompt")
    tab.key("Enter", CTRL)
    tab.wait("document.querySelector('#answer').dataset.state === 'done'")
    tab.click('#adapter-table button[aria-label="Pin mascarade-spice"]')
    tab.wait_text("#messages", "Every slot of the bank is in use.")
    english = set(visible_words(tab).split("\n"))
    tab.click("#language-fr")
    french = visible_words(tab)
    for part in (
        "Question", "Décision", "kicad-pcb atteint son seuil avec 0,94", "Réponse", "Terminé", "Premier token",
        "Adaptateurs", "résident", "épinglé", "places\u202f: 5 sur 33 · 612\u202fMo", "Processus", "passerelle",
        "Décisions récentes", "classé", "sous le seuil", "Routeur", "en service", "Activer v0001", "0,861",
        "Toutes les places de la banque sont prises.",
    ):  # fmt: skip
        assert part in french.replace("\u00a0", "\u202f") or part in french, part
    same = {line for line in french.split("\n") if line in english and re.search(r"[A-Za-z]{4,}", line)}
    names = re.compile(
        r"mascarade|sha256|127\.0|^kicad|^general|^gateway|^hardware|^code|^eurollm|^mlx-|ms$|v000|electronics|power"
        r"|^sql|^freecad|^python|^chat-fr|^spice|^stm32|^rust|^lua|^traduction|^base|^Total|^Version|^Score"
        r"|About 1\.4|Set it|net_class|clearance|trace_width|Then run|it answers arithmetic|as asked|^Tokens|Macro-F1"
        r"|^Pause|^Actions|^adapter mascarade|upstream_unavailable|^active$|English"
    )
    assert {line for line in same if not names.search(line)} == set()
    tab.open(stub.url + "/")
    assert tab.run("document.documentElement.lang") == "fr"
    assert tab.run("document.querySelector('#language-fr').getAttribute('aria-pressed')") == "true"


def test_both_tables_have_the_same_keys_and_values(open_page: OpenPage) -> None:
    strings = open_page().run(STRINGS)
    assert set(strings["en"]) == set(strings["fr"])
    for key, text in strings["en"].items():
        french = strings["fr"][key]
        assert text.strip()
        assert french.strip()
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", french)), key
        assert not re.search(r"[^\u202f\u00a0][;?!»]|[^\u202f\u00a0\w] :|«[^\u202f]| :", french), f"typography of {key}"


def test_every_key_that_is_used_exists(open_page: OpenPage) -> None:
    keys = set(open_page().run(STRINGS)["en"])
    used = set(re.findall(r'data-t(?:-\w+)?="([^"]+)"', (WEB / "index.html").read_text()))
    for path in WEB.glob("*.js"):
        if not path.name.startswith("strings"):
            used |= set(re.findall(r'"([a-z_]+\.[a-z][a-z_0-9]*)"', path.read_text()))
    used = {key for key in used if not key.endswith((".js", ".css", ".svg")) and not key.startswith(("mlx", "tr."))}
    assert used - keys == set()
    families = ("answer.done", "error.", "metric.", "action.", "reason.", "tag.", "adapter_state.", "process_state.")
    assert {key for key in keys - used if not key.startswith(families)} == set(), "texts that nobody reads"


def test_no_key_is_shown_in_place_of_a_text(open_page: OpenPage) -> None:
    tab = open_page()
    tab.wait("document.querySelector('tr.past')")
    attributes = tab.run(
        """[...document.querySelectorAll("*")].flatMap((node) =>
          ["aria-label", "title", "placeholder"].map((name) => node.getAttribute(name)).filter(Boolean)).join("\\n")"""
    )
    shown = f"{visible_words(tab)}\n{attributes}"
    assert not re.findall(r"^(?:[a-z_]+\.[a-z_0-9.]+)$|\{\w+\}", shown, re.MULTILINE)
