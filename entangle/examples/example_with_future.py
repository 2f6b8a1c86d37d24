"""A result as a future: start a run, do something else, and get a callback.

The work is to count primes, in parts. Prints what the caller does while the parts run in other
processes, what the callback gets, and then the same in asyncio, where `await` waits for a call.
"""

import asyncio
import time
from concurrent.futures import Future

from entangle.process import process

PARTS = 4
LIMIT = 100_000


@process
def primes(start: int, end: int) -> int:
    """How many primes lie from start up to, but not including, end."""
    return sum(n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(start, end))


@process
def total(*counts: int) -> int:
    return sum(counts)


def announce(future: "Future[int]") -> None:
    """Print the value of a future that is done."""
    print(f"  called back with {future.result()}", flush=True)


async def tick() -> int:
    """Count hundredths of a second until cancelled."""
    ticks = 0
    try:
        while True:
            await asyncio.sleep(0.01)
            ticks += 1
    except asyncio.CancelledError:
        return ticks


async def in_asyncio() -> None:
    """Await a call while the event loop has other things to do."""
    step = LIMIT // PARTS
    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    found = await total(*(primes(start, start + step) for start in range(0, LIMIT, step)))
    ticking.cancel()
    print(f"  awaited {found}; the event loop was free for {await ticking} ticks of 10 ms meanwhile")


def main() -> None:
    step = LIMIT // PARTS
    count = total(*(primes(start, start + step) for start in range(0, LIMIT, step)))

    print(f"Primes below {LIMIT}, with a future:")
    future = count.future(callback=announce)
    count(proc=True)  # starts the run that the future waits for, and returns at once
    looks = 0
    while not future.done():
        looks += 1
        time.sleep(0.01)
    future.entangle()  # fires callbacks that have not run yet; here nothing is left to wait for
    print(f"  the caller looked {looks} times before it was there")

    print("And in asyncio:")
    asyncio.run(in_asyncio())


if __name__ == "__main__":
    main()
