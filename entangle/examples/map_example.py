"""Ten thousand small items: `map` makes each a task, and a worker takes many of them at a time.

How many steps does a number take to 1, if even numbers are halved and odd ones become 3n + 1? This
prints the number up to ten thousand that takes the most. Then it runs a few more calls, of which
one fails: `gather` takes its error as a value, so the others go on.
"""

import time
from typing import Any

from entangle import gather
from entangle.process import process

MOST = 10_000


@process
def steps(n: int) -> int:
    """How many steps `n` takes to 1."""
    if n < 1:
        raise ValueError(f"{n} never comes to 1")
    count = 0
    while n != 1:
        n = 3 * n + 1 if n % 2 else n // 2
        count += 1
    return count


@process
def longest(counts: list[int]) -> tuple[int, int]:
    """The number with the most steps, and how many."""
    best = max(range(len(counts)), key=counts.__getitem__)
    return best + 1, counts[best]


def main() -> None:
    began = time.perf_counter()
    number, count = longest(steps.map(range(1, MOST + 1)))()  # the list goes to `longest`, not to this process
    took = time.perf_counter() - began
    print(f"{number} takes {count} steps; {MOST:,} numbers took {took:.2f} s")

    calls = [steps(n) for n in (7, 0, 27)]
    results: list[Any] = gather(*calls, return_exceptions=True)()
    for call, result in zip(calls, results, strict=True):
        print(f"{call}: {result!r}")


if __name__ == "__main__":
    main()
