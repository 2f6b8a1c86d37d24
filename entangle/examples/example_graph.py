"""The graph of an expression is plain data: nested dicts, ready for JSON.

A key is a task or a constant; below it are its arguments. Where two siblings have the same name,
the level is a list, as a dict cannot hold both. Prints the result of the expression and then its
graph.
"""

import json

from entangle.process import process


@process
def one() -> int:
    return 1


@process
def two() -> int:
    return 2


@process
def five() -> int:
    return 5


@process
def num(n: int) -> int:
    return n


@process
def add(a: int, b: int) -> int:
    return a + b


@process
def subtract(a: int, b: int) -> int:
    return a - b


def main() -> None:
    left = add(num(6), one())
    right = subtract(five(), add(subtract(num(8), two()), one()))
    expression = add(left, right)
    print("RESULT:", expression())
    print("GRAPH:", json.dumps(expression.graph(wait=True), indent=4))


if __name__ == "__main__":
    main()
