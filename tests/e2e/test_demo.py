"""The demo's story on bases whose every letter is known: it is told to its end, and does not believe what is not so."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import shutil
from pathlib import Path

import aiohttp
import psutil
import pytest
from rich.console import Console

from mlx_router.demo.client import Client
from mlx_router.demo.prepare import choose_home, write_config
from mlx_router.demo.stage import Stage
from mlx_router.demo.story import PROMPTS, Story, figures_table
from mlx_router.errors import SupervisorError
from mlx_router.lora.registry import Registry
from mlx_router.supervisor.lock import hold
from tests.tiny_chat import save_version
from tests.tiny_home import make_home


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_home(tmp_path_factory.mktemp("demo"))
    save_version(folder / "home" / "demo" / "revised" / "mascarade-kicad", 2)
    shutil.copytree(folder / "mascarade-kicad", folder / "home" / "demo" / "adapters" / "mascarade-kicad")
    return folder


def test_the_story_is_told_and_its_claims_are_checked(folder: Path) -> None:
    home = folder / "home"
    made = {kind: {"mascarade-kicad": home / "demo" / kind / "mascarade-kicad"} for kind in ("adapters", "revised")}
    console = Console(file=io.StringIO(), width=120)
    stage = Stage(home, write_config(home, str(folder / "base")))

    async def tell() -> tuple[Story, Story]:
        async with stage, aiohttp.ClientSession() as session:
            client = Client(session, stage.processes["gateway"].url)
            story = Story(console, client, stage)
            await story.tell(made["revised"], made["adapters"])
            doubtful = Story(Console(file=io.StringIO()), client, stage)
            await doubtful._swap(made["adapters"]["mascarade-kicad"], made["adapters"]["mascarade-kicad"])
            reply = await client.chat("hello", model="base")
            wrong = dataclasses.replace(reply, headers={**reply.headers, "x-router-adapter": "mascarade-sql"})
            doubtful._check("hello", {"domain": reply.headers["x-router-domain"]}, "base", wrong)
            return story, doubtful

    story, doubtful = asyncio.run(tell())
    assert [what for what, holds in story.claims if not holds] == []
    assert len(story.claims) > 3 * len(PROMPTS)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(prompt in text for prompt in PROMPTS)
    assert "CCCC" in text  # the second version's letter, after the swap
    figures = story.figures.to_json()
    assert figures["swap_ms"]
    assert figures["ttft_ms_p50"] > 0
    console.print(figures_table(story.figures))
    assert not stage.left_behind
    assert not [item for item in stage.processes.values() if psutil.pid_exists(item.pid)]

    refuted = {what for what, holds in doubtful.claims if not holds}
    assert {
        "the digest has changed",
        "the new weights answer otherwise",
        "'hello' is answered by base, as decided",
    } <= refuted


def test_a_stage_that_cannot_be_set_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, write_config(tmp_path, str(tmp_path / "no-base")))

    async def run() -> None:
        async with stage:
            pytest.fail("it cannot be ready")

    with pytest.raises(SupervisorError, match=r"neither a directory nor a hub name"):
        asyncio.run(run())
    assert not stage.left_behind


def test_a_home_in_use_and_a_home_with_other_adapters_are_left_alone(tmp_path: Path, folder: Path) -> None:
    assert choose_home(tmp_path) == (tmp_path, "")
    with hold(tmp_path, None):
        home, why = choose_home(tmp_path)
    assert home == tmp_path / "demo-home"
    assert "is being served by process" in why
    assert (home / "router").resolve() == tmp_path / "router"
    assert choose_home(tmp_path) == (tmp_path, "")
    Registry(tmp_path).install("mascarade-kicad", folder / "mascarade-kicad", base="owner/another")
    home, why = choose_home(tmp_path)
    assert home == tmp_path / "demo-home"
    assert "has mascarade-kicad for another base" in why
