"""A dataflow that takes a different way for different values: a lambda decides at run time.

The lambda gets the value that was pushed into the node in whose parentheses it stands. So does the
node that it chooses. Where it gives None, the branch ends.

Prints which way each number went, and what came out.
"""

from entangle.dataflow import dataflow, process


@dataflow
@process
def halve(n: int) -> str:
    return f"{n} is even: half of it is {n // 2}"


@dataflow
@process
def triple(n: int) -> str:
    return f"{n} is odd: three times it, and one, is {3 * n + 1}"


@dataflow
def look(n: int) -> int:
    print(f"looking at {n}")
    return n


def main() -> None:
    flow = look(lambda n: None if n <= 1 else halve() if n % 2 == 0 else triple())
    for n in (12, 7, 1):
        leaves = flow(n)
        print("  ", *(leaves or (f"{n}: the branch ends here",)))


if __name__ == "__main__":
    main()
