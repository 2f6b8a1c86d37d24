"""Nodes that do not take what the node around them gives, and values that a flow does not take."""

from __future__ import annotations

from entangle.dataflow import dataflow, process, window


@dataflow
def read(path: str) -> bytes:
    return b""


@dataflow(executor="process")
def parse(data: bytes) -> list[int]:
    return []


@process
@dataflow
def total(values: list[int]) -> int:
    return sum(values)


@dataflow
def totals(values: list[list[int]]) -> int:
    return len(values)


def graphs() -> None:
    read(total())  # error
    read(read())  # error
    parse(total(), read())  # error
    read(parse(total(), parse()))  # error
    read(parse)  # error
    read("a")  # error
    read(3, parse())  # error
    read(lambda path: parse())  # error
    read(parse(), children=2)  # error
    parse([total(), read()])  # error
    parse(window(total(), count=3))  # error
    window(totals(), counts=3)  # error
    window(totals(), count="3")  # error


def values() -> None:
    read()(3)  # error
    read()()  # error
    read()("a", "b")  # error
    read()("a", start="frok")  # error
    read().stream([1])  # error
    read().stream(["a"], inflights=3)  # error
    read().stream(["a"], on_error="ignore")  # error
    read().future(3)  # error
    read().push(3)  # error
    (wrong,) = read(parse(total()))("a")
    wrong.upper()  # error
    _one, _two = read()("a")  # error
    text: tuple[str] = read()("a")  # error
    print(text)


@dataflow  # error
def nothing() -> int:
    return 1
