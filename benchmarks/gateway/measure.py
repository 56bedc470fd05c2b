"""What is measured of a server on a port: alone and side by side, prompts never seen, many connections for long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from benchmarks.gateway.load import drive, repeat, request

LENGTHS = (8, 32, 128, 512)  # words of the prompts that are routed


async def measure(port: int, model: str, seconds: float, key: str = "") -> dict[str, Any]:
    """One connection, 16 connections, 8 connections of streams."""
    plain = request(port, model, "Comment router une paire différentielle USB dans KiCad ?", key=key)
    stream = request(port, model, "Comment router une paire différentielle USB dans KiCad ?", True, key)
    await drive(port, 4, repeat(plain), lambda count: count < 50)  # warm-up
    await drive(port, 4, repeat(stream), lambda count: count < 10)

    def until() -> Callable[[int], bool]:
        end = time.perf_counter() + seconds
        return lambda count: time.perf_counter() < end

    return {
        "one": await drive(port, 1, repeat(plain), until()),
        "sixteen": await drive(port, 16, repeat(plain), until()),
        "streams": await drive(port, 8, repeat(stream), until()),
    }


async def measure_routed(port: int) -> dict[str, Any]:
    """Prompts never seen before, one at a time and 16 at a time, by words."""
    results: dict[str, Any] = {}
    number = 0

    def fresh(words: int) -> Iterator[bytes]:
        nonlocal number
        while True:
            number += 1
            text = " ".join(f"mot{(number * 7919 + place * 104729) % 9973}" for place in range(words - 2))
            yield request(port, "auto", f"KiCad {number} {text}")

    for words in LENGTHS:
        await drive(port, 1, fresh(words), lambda count: count < 5)
        results[str(words)] = {
            "one": await drive(port, 1, fresh(words), lambda count: count < 100),
            "sixteen": await drive(port, 16, fresh(words), lambda count: count < 20),
        }
    return results


async def measure_load(port: int, seconds: float, pid: int) -> dict[str, Any]:
    """200 connections, a quarter of them streaming, and what they do to the memory of process `pid`."""
    plain = request(port, "auto", "Comment router une paire différentielle USB dans KiCad ?")
    stream = request(port, "auto", "Comment router une paire différentielle USB dans KiCad ?", True)
    gateway = psutil.Process(pid)
    end = time.perf_counter() + seconds
    samples: list[int] = []

    async def watch() -> None:
        while time.perf_counter() < end:
            samples.append(gateway.memory_info().rss)
            await asyncio.sleep(seconds / 20)

    def until(_: int) -> bool:
        return time.perf_counter() < end

    plain_row, stream_row, _ = await asyncio.gather(
        drive(port, 150, repeat(plain), until), drive(port, 50, repeat(stream), until), watch()
    )
    settled = max(samples[3:6])  # after every connection has been used
    return {
        "connections": 200,
        "seconds": seconds,
        "errors": 0,  # drive() ends the program on the first
        "plain": plain_row,
        "streams": stream_row,
        "rss_mib": {"start": _mib(samples[0]), "settled": _mib(settled), "end": _mib(gateway.memory_info().rss)},
    }


def _mib(size: int) -> float:
    return round(size / 2**20, 1)
