"""A web app that runs a small graph for each request, in a session whose workers stay warm.

`uvicorn entangle.examples.web_app_example:app` serves it. Run as a program, it asks itself for
prices, each the mean of four simulations. If a worker is killed, no request fails: every task has
`retry`.
"""

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import fmean

import entangle
from entangle.process import process

try:
    import httpx
    from fastapi import FastAPI
except ModuleNotFoundError:
    sys.exit("This example needs FastAPI and httpx: pip install 'py-entangle[examples]'")

STEPS, PATHS = 20, 50


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with entangle.session() as app.state.session:
        yield


app = FastAPI(lifespan=lifespan)


@process(retry=5)
def simulate(strike: float, seed: int) -> float:
    """The mean of what an option pays at the end of random paths of a price that begins at 100."""
    chance = random.Random(seed)
    ends = (100 + sum(chance.gauss(0, 2) for _ in range(STEPS)) for _ in range(PATHS))
    return fmean(max(0.0, end - strike) for end in ends)


@process(retry=5)
def mean(*values: float) -> float:
    return fmean(values)


@app.get("/price/{strike}")
async def price(strike: float) -> dict[str, float]:
    return {"strike": strike, "price": await mean(*[simulate(strike, seed) for seed in range(4)])}


async def main() -> None:
    transport = httpx.ASGITransport(app)
    async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        answers = await asyncio.gather(*[client.get(f"/price/{strike}") for strike in range(90, 115, 5)])
        for answer in answers:
            print("an option to buy at {strike:.0f} is worth {price:.2f}".format(**answer.json()))
        print(app.state.session)


if __name__ == "__main__":
    asyncio.run(main())
