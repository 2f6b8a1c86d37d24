"""Wrong options of streams, and values taken for what they are not."""

from __future__ import annotations

from entangle.process import process
from entangle.thread import thread


@process
def named(x: int) -> str:
    return str(x)


@thread
async def later(x: int) -> float:
    return float(x)


named.stream(3)  # error
named.stream()  # error
named.stream([1], inflght=3)  # error
named.stream([1], inflight="3")  # error
named.stream([1], on_error="ignore")  # error
named.stream([1], start="frok")  # error
named.stream([1], 4)  # error
numbers: list[int] = list(named.stream([1]))  # error
tuples: list[tuple[str]] = list(named.stream([1]))  # error
texts: list[str] = list(later.stream([1]))  # error

for text in named.stream([1]):
    text.as_integer_ratio()  # error
