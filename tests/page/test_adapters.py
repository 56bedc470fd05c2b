"""The table of adapters, and what can be done to them with the admin token."""

from __future__ import annotations

from tests.page.conftest import OpenPage
from tests.page.samples import digest
from tests.page.stub import Stub
from tests.page.tab import Tab

TOKEN = "s3cret-token"


def button(action: str, name: str) -> str:
    return f'#adapter-table button[aria-label^="{action}"][aria-label*="{name}"]'


def row(tab: Tab, name: str) -> str:
    return str(
        tab.run(
            f"""[...document.querySelectorAll("tr.adapter")]
            .find((row) => row.querySelector(".adapter-name").textContent === "{name}").innerText"""
        )
    )


def give_token(tab: Tab, token: str = TOKEN) -> None:
    tab.wait("document.querySelector('dialog[open] #field-token')")
    tab.type(token)
    tab.key("Enter")
    tab.wait("!document.querySelector('dialog')")


def test_the_table_tells_everything(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    kicad = row(tab, "mascarade-kicad")
    for part in ("kicad, kicad-dsl, kicad-pcb", "resident", "pinned", digest("kicad")[:19], "16", "412", "1 now"):
        assert part in kicad
    assert "it answers arithmetic worse than the base" in row(tab, "mascarade-freecad")
    assert "no weights" in row(tab, "mascarade-lua-upy")
    assert "5 of 33 slots · 612 MB" in tab.text("#adapter-table")
    full = tab.run("document.querySelector('tr.adapter .digest').title")
    assert full == digest("emc"), "the whole digest is there for who wants it"


def test_an_empty_bank_is_told(open_page: OpenPage, stub: Stub) -> None:
    stub.status["specialists"][0]["bank"] |= {"used": 0, "bytes": 0}
    assert "0 of 33 slots · 0 kB" in open_page().text("#adapter-table")


def test_a_base_in_a_folder_is_named_by_its_end(open_page: OpenPage, stub: Stub) -> None:
    stub.status["specialists"][0]["base"]["id"] = "/home/somebody/models/qwen/base"
    shown = open_page().text("#adapter-table")
    assert "…/qwen/base" in shown
    assert "somebody" not in shown


def test_an_action_takes_the_token_along(open_page: OpenPage, stub: Stub) -> None:
    stub.token = TOKEN
    stub.status["gateway"]["admin_token_required"] = True
    tab = open_page()
    tab.click(button("Load", "mascarade-power"))
    give_token(tab)
    tab.wait_text("#messages", "mascarade-power is loaded in 31\u00a0ms")
    (request,) = stub.posted("/v1/load_lora_adapter")
    assert request["headers"]["authorization"] == f"Bearer {TOKEN}"
    assert request["body"] == {"lora_name": "mascarade-power", "specialist": "hardware"}
    assert "resident" in row(tab, "mascarade-power")
    others = [item for item in stub.seen if item["path"] != "/v1/load_lora_adapter"]
    assert not [item["path"] for item in others if "authorization" in item["headers"]]
    assert tab.run("Object.values(sessionStorage)") == [TOKEN]
    assert tab.run("Object.values(localStorage)") == []
    assert tab.run("document.cookie") == ""
    assert TOKEN not in tab.run("document.documentElement.outerHTML + location.href")


def test_another_tab_does_not_have_the_token(open_page: OpenPage, stub: Stub) -> None:
    first = open_page()
    first.click("#token")
    give_token(first)
    assert first.text("#token") == "Token set"
    first.open(stub.url + "/")
    assert first.text("#token") == "Token set", "a reload keeps it"
    assert open_page().text("#token") == "Token"


def test_a_token_can_be_forgotten(open_page: OpenPage) -> None:
    tab = open_page()
    tab.click("#token")
    give_token(tab)
    tab.click("#token")
    tab.click("dialog .first")
    tab.wait_text("#messages", "The token is forgotten.")
    assert tab.text("#token") == "Token"
    assert tab.run("sessionStorage.length") == 0


def test_a_wrong_token_is_refused_and_can_be_replaced(open_page: OpenPage, stub: Stub) -> None:
    stub.token = TOKEN
    stub.status["gateway"]["admin_token_required"] = True
    tab = open_page()
    tab.click(button("Pin", "mascarade-spice"))
    give_token(tab, "wrong")
    tab.wait_text("#messages", "The gateway wants a key.")
    tab.click("#messages .error-box button")
    give_token(tab)
    tab.click(button("Pin", "mascarade-spice"))
    tab.wait_text("#messages", "mascarade-spice is pinned.")
    assert stub.posted("/v1/pin_lora_adapter")[-1]["body"] == {
        "lora_name": "mascarade-spice", "pinned": True, "specialist": "hardware",
    }  # fmt: skip
    tab.wait(f"document.querySelector('{button('Unpin', 'mascarade-spice')}')")


def test_a_swap_says_what_it_took(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.click(button("Swap", "mascarade-kicad"))
    tab.wait_text("dialog", digest("kicad")[:19])
    tab.fill("#field-lora_path", "/srv/adapters/kicad-2")
    tab.key("Enter")
    tab.wait_text("#messages", f"mascarade-kicad is swapped in 31\u00a0ms: {digest('kicad')[:19]} → sha256:{'b' * 12}")
    (request,) = stub.posted("/v1/load_lora_adapter")
    assert request["body"] == {
        "lora_name": "mascarade-kicad",
        "lora_path": "/srv/adapters/kicad-2",
        "load_inplace": True,
        "specialist": "hardware",
    }
    assert "sha256:bbbbbbbbbbbb" in row(tab, "mascarade-kicad")


def test_unloading_is_confirmed(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.click(button("Unload", "mascarade-rust"))
    tab.wait_text("dialog", "Unload mascarade-rust?")
    tab.key("Escape")
    tab.wait("!document.querySelector('dialog')")
    assert not stub.posted("/v1/unload_lora_adapter")
    assert tab.run("document.activeElement.getAttribute('aria-label')") == "Unload mascarade-rust"
    tab.click(button("Unload", "mascarade-rust"))
    tab.click("dialog .danger")
    tab.wait_text("#messages", "mascarade-rust is unloaded.")
    assert stub.posted("/v1/unload_lora_adapter")[0]["body"] == {"lora_name": "mascarade-rust", "specialist": "code"}
    assert "unloaded" in row(tab, "mascarade-rust")
    assert tab.run("document.activeElement.getAttribute('aria-label')") == "Load mascarade-rust", "focus stays near"


def test_a_new_adapter_is_loaded_by_name_and_folder(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.click("#adapter-load")
    tab.type("my-own")
    tab.fill("#field-lora_path", "/srv/my-own")
    tab.run("document.querySelector('#field-specialist').value = 'hardware'")
    tab.click("dialog [type=submit]")
    tab.wait_text("#messages", "my-own is loaded")
    assert stub.posted("/v1/load_lora_adapter")[0]["body"] == {
        "lora_name": "my-own", "lora_path": "/srv/my-own", "specialist": "hardware",
    }  # fmt: skip
    assert "resident" in row(tab, "my-own")


def test_a_name_that_cannot_be_is_not_sent(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.click("#adapter-load")
    tab.type("../etc")
    tab.key("Enter")
    assert tab.run("document.querySelector('#field-lora_name').validity.patternMismatch")
    assert not stub.posted("/v1/load_lora_adapter")


def test_the_filter_looks_at_names_domains_and_states(open_page: OpenPage) -> None:
    tab = open_page()
    for text, count in (("kicad-dsl", 1), ("QUARANT", 1), ("mascarade-s", 3), ("nothing", 0)):
        tab.fill("#adapter-filter", text)
        tab.wait(f"document.querySelectorAll('tr.adapter').length === {count}")
        assert ("No adapter matches" in tab.text("#adapters")) is (count == 0)


def test_arrow_keys_go_from_row_to_row(open_page: OpenPage) -> None:
    tab = open_page()
    tab.run(f"document.querySelector('{button('Unload', 'mascarade-emc')}').focus()")
    tab.key("ArrowDown")
    assert tab.run("document.activeElement.getAttribute('aria-label')") == "Unload mascarade-kicad"
    tab.key("ArrowUp")
    assert tab.run("document.activeElement.getAttribute('aria-label')") == "Unload mascarade-emc"


def test_a_refresh_keeps_the_focus(open_page: OpenPage, stub: Stub) -> None:
    tab = open_page()
    tab.run(f"document.querySelector('{button('Swap', 'mascarade-sql')}').focus()")
    for adapter in stub.status["specialists"][1]["adapters"]:
        adapter["requests"] += 1000
    tab.come_back()
    tab.wait_text("#adapter-table", "1,530")
    assert "mascarade-sql" in tab.run("document.activeElement.getAttribute('aria-label')")
    assert "1,143" in tab.run("document.activeElement.closest('tr').innerText")
    assert tab.run("document.querySelectorAll('tr.adapter').length") == 12
