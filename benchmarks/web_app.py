"""``python -m benchmarks.web_app``: a web app whose workers are killed, beside ProcessPoolExecutor.

The app is ``entangle/examples/web_app_example.py``: each request runs four simulations and their
mean. The peer does the same with an executor, and makes another one when it is broken. uvicorn
serves each app in a process of its own, first undisturbed, then with one worker killed by SIGKILL
each second. Clients ask again as soon as they have an answer, and check it. Prints the requests a
second, the 99th percentile of their times, and how many were answered, failed, and got no answer.

The exit status is 1 if a request failed on entangle's side: all of its tasks have ``retry``.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STRIKES = range(90, 111)
#: Seconds for a server to start, and for one answer.
STARTING, ANSWERING = 30.0, 30.0


# The servers --------------------------------------------------------------------------------------


def with_entangle() -> tuple[Any, Callable[[], list[int]]]:
    """The app of the example, and a function that gives the pids of its workers."""
    from entangle.examples.web_app_example import app

    return app, lambda: app.state.session.pids


def simulated(strike: float, seed: int) -> float:
    """The body of a simulation, where a process of the peer can import it."""
    from entangle.examples import web_app_example

    return float(web_app_example.simulate.function(strike, seed))


def averaged(*values: float) -> float:
    """The body of the mean."""
    from entangle.examples import web_app_example

    return float(web_app_example.mean.function(*values))


def with_futures() -> tuple[Any, Callable[[], list[int]]]:
    """The same app on ProcessPoolExecutor, and a function that gives the pids of its workers."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    from fastapi import FastAPI

    # Not by fork: the workers of a later executor would inherit locks that threads hold.
    make = functools.partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("forkserver"))
    executor = make()

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        executor.shutdown(cancel_futures=True)

    app = FastAPI(lifespan=lifespan)

    @app.get("/price/{strike}")
    async def price(strike: float) -> dict[str, float]:
        nonlocal executor
        used = executor
        try:
            call = functools.partial(asyncio.get_running_loop().run_in_executor, used)
            values = await asyncio.gather(*[call(simulated, strike, seed) for seed in range(4)])
            return {"strike": strike, "price": await call(averaged, *values)}
        except BrokenProcessPool:
            if executor is used:
                used.shutdown(wait=False)
                executor = make()
            raise

    return app, lambda: [pid for pid, worker in dict(executor._processes or {}).items() if worker.is_alive()]


SERVERS = {"entangle": with_entangle, "concurrent.futures": with_futures}


def serve(side: str, listening: int) -> None:
    """Serve one app on a socket that is open already: the main function of a server."""
    import uvicorn

    app, workers = SERVERS[side]()
    app.get("/workers")(lambda: workers())
    uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False)).run([socket.socket(fileno=listening)])


# The clients --------------------------------------------------------------------------------------


@dataclass
class Counts:
    """The results of the requests of one phase."""

    seconds: float = 0.0
    sent: int = 0
    #: The time of each right answer (seconds).
    took: list[float] = field(default_factory=list)
    #: Answers that say that the request failed, and wrong ones; requests without any answer.
    failed: int = 0
    wrong: int = 0
    lost: int = 0
    killed: int = 0

    def told(self) -> str:
        """The counts in a line."""
        ordered = sorted(self.took) or [math.nan]
        late = 1000 * ordered[max(0, math.ceil(0.99 * len(ordered)) - 1)]
        rate = len(self.took) / self.seconds if self.seconds else 0.0
        return (
            f"{rate:7.1f} requests a second, 99th percentile {late:6.1f} ms; {self.sent} sent, {len(self.took)} right, "
            f"{self.failed} failed, {self.wrong} wrong, {self.lost} lost; {self.killed} workers killed"
        )


async def ask(client: Any, until: float, expected: dict[int, float], counts: Counts) -> None:
    """Ask for prices, one after the other, until the time `until`."""
    import httpx

    while time.monotonic() < until:
        strike = random.choice(STRIKES)
        began = time.monotonic()
        counts.sent += 1
        try:
            answer = await client.get(f"/price/{strike}")
        except httpx.HTTPError:
            counts.lost += 1
            continue
        if answer.status_code != 200:
            counts.failed += 1
        elif answer.json()["price"] != expected[strike]:
            counts.wrong += 1
        else:
            counts.took.append(time.monotonic() - began)


async def kill(client: Any, until: float, every: float, counts: Counts) -> None:
    """Kill one worker after the other."""
    import httpx

    while time.monotonic() + every < until:
        await asyncio.sleep(every)
        try:
            pids = (await client.get("/workers")).json()
            os.kill(random.choice(pids), signal.SIGKILL)
            counts.killed += 1
        except (httpx.HTTPError, IndexError, ProcessLookupError):  # none is there, or it has ended
            pass


async def phase(client: Any, seconds: float, clients: int, expected: dict[int, float], every: float = 0.0) -> Counts:
    """Ask for so many seconds, with a worker killed each `every` seconds, if that is not 0."""
    counts = Counts()
    began = time.monotonic()
    asking = [ask(client, began + seconds, expected, counts) for _ in range(clients)]
    await asyncio.gather(*asking, *([kill(client, began + seconds, every, counts)] if every else []))
    counts.seconds = time.monotonic() - began
    return counts


async def contest(side: str, options: argparse.Namespace) -> tuple[Counts, Counts]:
    """Serve one app, and ask it, first undisturbed and then with workers killed."""
    import httpx

    expected = {strike: averaged(*[simulated(strike, seed) for seed in range(4)]) for strike in STRIKES}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, fd = listening.getsockname()[1], listening.fileno()
        command = [sys.executable, "-m", "benchmarks.web_app", "--serve", side, str(fd)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(command, pass_fds=[fd], env=environment, cwd=ROOT)
    try:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=STARTING, limits=limits, trust_env=False) as client:
            await phase(client, min(1.0, options.peace), options.clients, expected)  # its first requests start workers
            client.timeout = ANSWERING
            peace = await phase(client, options.peace, options.clients, expected)
            trouble = await phase(client, options.seconds, options.clients, expected, options.every)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    return peace, trouble


def main() -> int:
    """Run both sides, and print the counts; gives 1 if a request failed on entangle's side."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser("python -m benchmarks.web_app", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="seconds in which workers are killed (60)")
    parser.add_argument("--peace", type=float, default=10, help="seconds before that (10)")
    parser.add_argument("--every", type=float, default=1, help="seconds from one kill to the next (1)")
    parser.add_argument("--clients", type=int, default=8, help="how many ask at the same time (8)")
    parser.add_argument("--only", choices=SERVERS, help="one side alone")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    failed = 0
    for side in [options.only] if options.only else SERVERS:
        peace, trouble = asyncio.run(contest(side, options))
        if side == "entangle":
            failed = sum(counts.sent - len(counts.took) for counts in (peace, trouble))
        for name, counts in (("in peace", peace), ("with kills", trouble)):
            if options.json:
                known = {name: value for name, value in vars(counts).items() if name != "took"}
                print(json.dumps({"side": side, "phase": name, "right": len(counts.took), **known}), flush=True)
            else:
                print(f"{side:18} {name:10} {counts.told()}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
