"""The demo as a story: what was asked, where it went and why, what came back, what the swap took; all of it checked."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from mlx_router.demo.client import Client, Reply
from mlx_router.demo.stage import Stage

PROMPTS = (
    "How do I route a USB differential pair in KiCad?",
    "Que faire quand ngspice affiche « timestep too small » ?",
    "Why does my STM32 end in HardFault_Handler?",
    "Comment relier le blindage d'un câble ?",
    "How do I size the inductor of a buck converter?",
    "How do I add a library in platformio.ini?",
    "Comment lire un fichier JSON en Python ?",
    "What does QoS 1 mean in MQTT?",
    "Quelle est la capitale de la France ?",
)
SWAPPED = "mascarade-kicad"
SWAP_PROMPTS = (
    "How do I route a USB differential pair in KiCad?",
    "Comment ajouter un plan de masse sur la couche inférieure ?",
    "How do I run the DRC on my board?",
    "Comment créer un symbole dans une bibliothèque KiCad ?",
)
ATTEMPTS = 5  # until a swap falls into a running stream


@dataclass(slots=True)
class Figures:
    """What was measured."""

    ready_s: float = 0.0
    encode_ms: list[float] = field(default_factory=list)
    route_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    mixed_tokens_per_s: float = 0.0
    mixed_adapters: int = 0
    swap_ms: list[float] = field(default_factory=list)
    swap_bank_ms: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Medians, and the few that are single."""
        return {
            "ready_s": round(self.ready_s, 2),
            "encode_ms_p50": _median(self.encode_ms),
            "route_ms_p50": _median(self.route_ms),
            "ttft_ms_p50": _median(self.first_ms),
            "tokens_per_s_p50": _median(self.tokens_per_s),
            "mixed_tokens_per_s": round(self.mixed_tokens_per_s, 1),
            "mixed_adapters": self.mixed_adapters,
            "swap_ms": [round(value, 1) for value in self.swap_ms],
            "swap_bank_ms": [round(value, 1) for value in self.swap_bank_ms],
        }


class Story:
    """Told to `console`. `claims` gathers what must be true: (what, whether)."""

    def __init__(self, console: Console, client: Client, stage: Stage) -> None:
        self.console = console
        self.client = client
        self.stage = stage
        self.figures = Figures(ready_s=stage.ready_s)
        self.claims: list[tuple[str, bool]] = []

    def claim(self, what: str, holds: bool) -> None:
        """Note what must be true; said at once where it is not."""
        self.claims.append((what, holds))
        if not holds:
            self.console.print(Text(f"  ✗ not so: {what}", style="bold red"))

    async def tell(self, revised: Mapping[str, Path], installed: Mapping[str, Path]) -> None:
        """From the first question to the figures."""
        await self._cast()
        self._chapter("Nine questions to ailiance/auto")
        for prompt in PROMPTS:
            await self._ask(prompt)
        await self._all_at_once()
        await self._swap(revised[SWAPPED], installed[SWAPPED])

    # chapters

    async def _cast(self) -> None:
        status = await self.client.get("/v1/status")
        router = status["router"]
        figures = router.get("metrics") or {}
        f1 = figures.get("macro_f1")
        self._chapter("Who is there")
        known = f"{router['domains']} domains" + (f", macro-F1 {f1:.3f} on its test rows" if f1 else "")
        self.console.print(f"  router [bold]{router['version']}[/]: {known}")
        for item in self.stage.processes.values():
            self.console.print(f"  {item.name} on {item.url} (process {item.pid})")
        for item in status["specialists"]:
            names = [adapter["id"] for adapter in item.get("adapters", ()) if adapter["state"] in _SERVED]
            self.console.print(f"  {item['name']} can serve: {' '.join(names) or 'the base alone'}", style="dim")
            self.claim(f"{item['name']} has adapters to serve", bool(names))
            for adapter in item.get("adapters", ()):
                if adapter["state"] == "quarantined":
                    self.console.print(f"  {adapter['id']} is quarantined: {adapter.get('reason')}", style="yellow")
        self.claim("the router has a version", bool(router["version"]))

    async def _ask(self, prompt: str) -> None:
        self.console.print(Text.assemble(("\n❯ ", "bold cyan"), (prompt, "bold")))
        began = time.perf_counter()
        decision = await self.client.route(prompt)
        self.figures.route_ms.append((time.perf_counter() - began) * 1e3)
        self.figures.encode_ms.append(float(decision["encode_ms"]))
        target = decision.get("target") or {}
        wanted = target.get("adapter") or "base"
        self._show_decision(decision)
        self.console.print("  ", end="")
        reply = await self.client.chat(prompt, on_text=self._write)
        self._check(prompt, decision, wanted, reply)
        held = await self._digest(str(target.get("specialist")), wanted)
        self.console.print(
            Text(
                f"\n  {wanted}{_version(reply.digest)} on {reply.headers.get('x-router-specialist')}"
                f"  ·  first token {reply.first_s * 1e3:.0f} ms  ·  {reply.tokens_per_s:.0f} tok/s",
                style="dim",
            )
        )
        self.claim(f"{prompt!r}: the digest is that of the {wanted} that its specialist holds", reply.digest == held)
        self.figures.first_ms.append(reply.first_s * 1e3)
        if reply.tokens_per_s:
            self.figures.tokens_per_s.append(reply.tokens_per_s)

    async def _all_at_once(self) -> None:
        self._chapter("The same questions at the same time")
        decisions = {prompt: await self.client.route(prompt) for prompt in PROMPTS}
        began = time.perf_counter()
        replies = await asyncio.gather(*(self.client.chat(prompt) for prompt in PROMPTS))
        span_s = time.perf_counter() - began
        for prompt, reply in zip(PROMPTS, replies, strict=True):
            target = decisions[prompt].get("target") or {}
            self._check(prompt, decisions[prompt], target.get("adapter") or "base", reply)
        tokens = sum(reply.tokens for reply in replies)
        self.figures.mixed_adapters = len({reply.adapter for reply in replies} - {"base"})
        self.figures.mixed_tokens_per_s = tokens / span_s
        self.console.print(
            f"  {len(replies)} answers, {self.figures.mixed_adapters} adapters mixed in the batches of two bases: "
            f"{tokens} tokens in {span_s:.2f} s, [bold]{tokens / span_s:.0f} tok/s[/]"
        )

    async def _swap(self, new: Path, old: Path) -> None:
        self._chapter(f"New weights for {SWAPPED} while it answers")
        before = {prompt: await self.client.chat(prompt, model=SWAPPED) for prompt in SWAP_PROMPTS}
        shown = SWAP_PROMPTS[0]
        for attempt in range(ATTEMPTS):
            replies, swapped, swapped_at = await self._swap_under_streams(new)
            if all(reply.ended_at > swapped_at for reply in replies.values()):
                break
            if attempt < ATTEMPTS - 1:
                self.console.print("  the answers were faster than the swap; once more", style="dim")
                await self._load(old)
        running = [reply for reply in replies.values() if reply.ended_at > swapped_at]
        self.claim("the swap was over while streams still ran", bool(running))
        self.console.print(f"  {len(replies)} streams ran on {short(before[shown].digest)}; the swap to "
                           f"{short(swapped['digest'])} took [bold]{swapped['ms']['total']:.0f} ms[/], "
                           f"of which the model waited {swapped['ms']['bank']:.0f} ms")  # fmt: skip
        for prompt, reply in replies.items():
            same = reply.text == before[prompt].text and reply.digest == before[prompt].digest
            self.claim(f"the stream on {prompt!r} ended on the version that it began with", same and reply.finished)
        after = await self.client.chat(shown, model=SWAPPED)
        self.claim("the digest has changed", swapped["digest"] != swapped["previous_digest"])
        self.claim("the swap replaced what had answered", swapped["previous_digest"] == before[shown].digest)
        self.claim("the next answer comes from the new weights", after.digest == swapped["digest"])
        self.claim("the new weights answer otherwise", after.text != before[shown].text)
        self.console.print(Text.assemble(("\n❯ ", "bold cyan"), (shown, "bold")))
        for title, reply in (("running then", replies[shown]), ("asked now", after)):
            self.console.print(Text.assemble((f"  {title}, {short(reply.digest)}: ", "dim"), reply.text))
        back = await self._load(old)
        again = await self.client.chat(shown, model=SWAPPED)
        self.claim("swapped back, the first weights answer again", again.text == before[shown].text)
        self.claim("and their digest is the first one", again.digest == before[shown].digest == back["digest"])

    async def _swap_under_streams(self, new: Path) -> tuple[dict[str, Reply], dict[str, Any], float]:
        """Several streams, a swap as soon as all of them have begun: the replies, the swap's answer, when it came."""
        begun = {prompt: asyncio.Event() for prompt in SWAP_PROMPTS}

        async def ask(prompt: str) -> Reply:
            return await self.client.chat(prompt, model=SWAPPED, on_text=lambda text: begun[prompt].set())

        async def all_begun() -> None:
            for event in begun.values():
                await event.wait()

        streams = [asyncio.create_task(ask(prompt)) for prompt in SWAP_PROMPTS]
        waits = asyncio.create_task(all_begun())
        await asyncio.wait([waits, *streams], return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()
        swapped = await self._load(new)
        swapped_at = time.perf_counter()
        replies = await asyncio.gather(*streams)
        return dict(zip(SWAP_PROMPTS, replies, strict=True)), swapped, swapped_at

    async def _load(self, path: Path) -> dict[str, Any]:
        answer = await self.client.swap(SWAPPED, str(path))
        self.figures.swap_ms.append(float(answer["ms"]["total"]))
        self.figures.swap_bank_ms.append(float(answer["ms"]["bank"]))
        return answer

    # parts

    def _check(self, prompt: str, decision: Mapping[str, Any], wanted: str, reply: Reply) -> None:
        said = reply.headers.get("x-router-domain"), reply.adapter
        self.claim(f"{prompt!r} is answered by {wanted}, as decided", said == (decision["domain"], wanted))
        self.claim(f"{prompt!r} has an answer that came to its end", bool(reply.text.strip()) and reply.finished)

    async def _digest(self, specialist: str, adapter: str) -> str:
        """What the specialist itself says it holds under a name."""
        if adapter == "base":
            return "base"
        found = await self.client.get("/v1/adapters", self.stage.processes[specialist].url)
        return next((str(item["digest"]) for item in found["data"] if item["id"] == adapter), "")

    def _show_decision(self, decision: Mapping[str, Any]) -> None:
        target = decision.get("target") or {}
        others = ", ".join(f"{name} {score:.2f}" for name, score in decision["scores"][1:3])
        line = Text("  → ", style="cyan")
        line.append(f"{decision['domain']} {decision['score']:.2f}", style="bold")
        if decision["reason"] != "classified":
            line.append(f" ({decision['reason'].replace('_', ' ')})")
        line.append(f"  then {others}" if others else "", style="dim")
        line.append(f"  → {target.get('adapter') or 'base'} on {target.get('specialist')}")
        self.console.print(line)

    def _write(self, text: str) -> None:
        self.console.print(Text(text), end="")

    def _chapter(self, title: str) -> None:
        self.console.print()
        self.console.print(Rule(title, align="left", style="cyan"))


_SERVED = ("resident", "available")


def _version(digest: str) -> str:
    return "" if digest == "base" else f" {short(digest)}"


def short(digest: str) -> str:
    """The first digits of a digest."""
    return digest.removeprefix("sha256:")[:12]


def figures_table(figures: Figures) -> Table:
    """The timings of a run."""
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = {
        "everything ready after": f"{figures.ready_s:.1f} s",
        "encoding and deciding, p50": f"{_median(figures.encode_ms)} ms",
        "POST /v1/route, p50": f"{_median(figures.route_ms)} ms",
        "first token, p50": f"{_median(figures.first_ms)} ms",
        "one answer alone, prompt and all, p50": f"{_median(figures.tokens_per_s)} tok/s",
        "all at once": f"{figures.mixed_tokens_per_s:.0f} tok/s over {figures.mixed_adapters} adapters",
        "swap, p50": f"{_median(figures.swap_ms)} ms, the model waiting {_median(figures.swap_bank_ms)} ms of it",
    }
    for what, value in rows.items():
        table.add_row(f"  {what}", f"[bold]{value}[/]")
    return table


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 1) if values else None
