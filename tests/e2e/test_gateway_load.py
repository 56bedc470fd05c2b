"""Many connections at once, streaming and not: no error, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import aiohttp
import psutil

from tests.gateway_rig import start_rig
from tests.waiting import wait_until

CONNECTIONS = 200
SECONDS = 2.0


def test_200_connections_of_mixed_traffic(tmp_path: Path) -> None:
    rig = start_rig(tmp_path)
    try:
        assert rig.gateway.child is not None
        gateway = psutil.Process(rig.gateway.child.pid)
        url = f"{rig.gateway.url}/v1/chat/completions"
        prompts = ["kicad", "sql", "python", "hello", "rust"]

        async def client(session: aiohttp.ClientSession, number: int, end: float) -> int:
            count = 0
            while time.monotonic() < end or not count:
                stream = number % 2 == 0
                body = {
                    "model": "auto",
                    "stream": stream,
                    "messages": [{"role": "user", "content": f"{prompts[count % 5]} {number % 20}"}],
                }
                async with session.post(url, json=body) as reply:
                    data = await reply.read()
                    assert reply.status == 200, data
                    if stream:
                        assert data.endswith(b"data: [DONE]\n\n")
                    else:
                        assert json.loads(data)["choices"]
                count += 1
            return count

        async def run(seconds: float) -> int:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                end = time.monotonic() + seconds
                return sum(await asyncio.gather(*(client(session, number, end) for number in range(CONNECTIONS))))

        asyncio.run(run(0.5))  # every buffer and connection has been used
        before = gateway.memory_info().rss
        count = asyncio.run(run(SECONDS))
        after = gateway.memory_info().rss
        assert count >= CONNECTIONS
        assert after - before < 20 * 2**20
        status = rig.get("/v1/status").json()
        assert status["gateway"]["active"] == 0
        assert all(item["failed"] == 0 for item in status["specialists"])
        wait_until(lambda: not [c for c in gateway.net_connections() if c.status == "CLOSE_WAIT"], "closed sockets")
    finally:
        rig.stop()
