"""Memory that several processes write to at the same time, each in its own part of it.

This is not needed to return large values: those are not copied anyway. It is for data that is
changed in place. Here it is the sieve of Eratosthenes, one byte a number, from which four tasks
strike out what is not prime. `smm` makes a segment of shared memory that lasts until the run ends;
`sm` opens one by its name. Only the name travels from task to task.

Prints what each task struck out, and how many primes are left.
"""

import os
from math import isqrt
from typing import Any

from entangle.process import process

LIMIT = 1_000_000
PARTS = 4


@process(shared_memory=True)
def sieve(size: int, smm: Any = None, sm: Any = None) -> str:
    """A segment with a 1 for every number up to size; gives its name."""
    segment = smm.SharedMemory(size)
    segment.buf[:size] = b"\x01" * size
    segment.buf[:2] = b"\x00\x00"  # neither 0 nor 1 is prime
    return str(segment.name)


@process(shared_memory=True)
def strike(name: str, start: int, end: int, smm: Any = None, sm: Any = None) -> str:
    """Strike out the multiples from start up to end; no other task writes there."""
    numbers = sm(name).buf
    before = sum(numbers[start:end])
    for divisor in range(2, isqrt(LIMIT) + 1):
        first = max(divisor * divisor, -(-start // divisor) * divisor)
        multiples = range(first, end, divisor)
        numbers[first:end:divisor] = bytes(len(multiples))
    struck = before - sum(numbers[start:end])
    return f"process {os.getpid()} struck out {struck:,} of the numbers from {start:,}"


@process(shared_memory=True)
def count(name: str, *reports: str, smm: Any = None, sm: Any = None) -> tuple[int, tuple[str, ...]]:
    """Count what is left. It takes the reports, so it waits until everything is struck out."""
    return sum(sm(name).buf[:LIMIT]), reports


def main() -> None:
    # One call as the argument of several others is one node: all of them get the same segment.
    numbers = sieve(LIMIT)
    step = LIMIT // PARTS
    struck = [strike(numbers, start, start + step) for start in range(0, LIMIT, step)]
    primes, reports = count(numbers, *struck)()
    print("\n".join(reports))
    print(f"{primes:,} primes below {LIMIT:,} are left")


if __name__ == "__main__":
    main()
