"""One browser for all tests, a tab and a fresh gateway for each; and what every test must leave clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.page.chromium import MISSING, Chromium, find_chromium
from tests.page.stub import Stub
from tests.page.tab import Tab

OpenPage = Callable[..., Tab]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    binary = find_chromium()
    if binary is None:
        pytest.fail(MISSING)
    browser = Chromium(binary, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def one_stub() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.close()


@pytest.fixture
def stub(one_stub: Stub) -> Iterator[Stub]:
    one_stub.reset()
    yield one_stub
    one_stub.release()


@pytest.fixture(scope="session")
def idle(chromium: Chromium) -> list[Tab]:
    """Tabs that wait for the next test: a new one costs a process."""
    return []


@pytest.fixture
def make_tab(chromium: Chromium, idle: list[Tab]) -> Iterator[OpenPage]:
    """Tabs; afterwards none of them may have had a problem or asked another origin for anything."""
    tabs: list[tuple[Tab, str]] = []

    def make(url: str, *, scheme: str = "light", **options: Any) -> Tab:
        if idle:
            tab = idle.pop()
            tab.renew(**options)
        else:
            tab = Tab(chromium, **options)
        tabs.append((tab, url))
        tab.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        tab.open(url)
        return tab

    yield make
    idle += [tab for tab, _ in tabs]
    for tab, url in tabs:
        origin = urlsplit(url).netloc
        strangers = [item["url"] for item in tab.requests if urlsplit(item["url"]).netloc != origin]
        assert not strangers
        assert tab.problems == []


@pytest.fixture
def open_page(stub: Stub, make_tab: OpenPage) -> OpenPage:
    """Open the page of the stub, in a tab of its own."""

    def open_it(**options: Any) -> Tab:
        return make_tab(stub.url + "/", **options)

    return open_it
