"""Clients for `inference_server.py`: some wait for their answer, some give up at a random moment.

    python examples/load.py --clients 200 --seconds 20

Prints what they met, and ends with 0 if the server kept serving, turned away only with 503 and Retry-After, and was
idle afterwards: nobody holds the GPU, nobody waits for it.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter

import httpx

IMPATIENCE = 0.3
"""The share of requests whose client gives up."""


class Report:
    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.retry_after: list[int] = []

    def __str__(self) -> str:
        lines = [f"{name:>20} {count}" for name, count in sorted(self.outcomes.items())]
        if self.latencies:
            p50, p95 = statistics.median(self.latencies), statistics.quantiles(self.latencies, n=20)[-1]
            lines.append(f"{'latency':>20} p50 {p50:.2f} s, p95 {p95:.2f} s")
        if self.retry_after:
            lines.append(f"{'Retry-After':>20} {min(self.retry_after)} to {max(self.retry_after)} s")
        return "\n".join(lines)

    @property
    def good(self) -> bool:
        return set(self.outcomes) <= {"served", "turned away", "gave up"} and self.outcomes["served"] > 0


async def client(http: httpx.AsyncClient, until: float, report: Report, chance: random.Random) -> None:
    while time.monotonic() < until:
        patience = chance.expovariate(2) if chance.random() < IMPATIENCE else 600
        path = chance.choice(["/generate", "/stream"])
        try:
            async with asyncio.timeout(patience):
                await request(http, path, report)
        except TimeoutError:
            report.outcomes["gave up"] += 1
        except httpx.HTTPError as error:
            report.outcomes[f"failed: {type(error).__name__}"] += 1
        await asyncio.sleep(chance.expovariate(20))


async def request(http: httpx.AsyncClient, path: str, report: Report) -> None:
    began = time.monotonic()
    answer = await http.post(path, json={"prompt": "x"})
    if answer.status_code == 200:
        report.outcomes["served"] += 1
        report.latencies.append(time.monotonic() - began)
    elif answer.status_code == 503 and "retry-after" in answer.headers:
        report.outcomes["turned away"] += 1
        report.retry_after.append(int(answer.headers["retry-after"]))
        await asyncio.sleep(random.random())  # a good client would wait for Retry-After
    else:
        report.outcomes[f"status {answer.status_code}"] += 1


async def drained(http: httpx.AsyncClient, seconds: float) -> bool:
    """Whether the GPU is free and nobody waits for it, at the latest after so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        locks = (await http.get("/gpu/gpu-lock/status")).json()["locks"]
        if all(lock["value"] is None and lock["waiters"] == 0 for lock in locks):
            return True
        await asyncio.sleep(0.1)
    return False


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    report, chance = Report(), random.Random(options.seed)
    limits = httpx.Limits(max_connections=options.clients, max_keepalive_connections=options.clients)
    async with httpx.AsyncClient(base_url=options.url, limits=limits, timeout=600) as http:
        until = time.monotonic() + options.seconds
        await asyncio.gather(*(client(http, until, report, chance) for _ in range(options.clients)))
        idle = await drained(http, seconds=30)
    print(report)
    print(f"{'afterwards':>20} {'idle' if idle else 'NOT idle'}")
    return 0 if report.good and idle else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
