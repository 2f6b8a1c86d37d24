"""A value that goes several ways: a lambda may give a list of nodes, of any length.

Prints, for each order, what the desks have done with it, all at the same time.
"""

from typing import Any

from entangle.dataflow import dataflow, process, thread


@dataflow
@process
def bill(order: dict[str, Any]) -> str:
    return f"billed {order['price'] * order['count']}"


@dataflow
@process
def pack(order: dict[str, Any]) -> str:
    return f"packed {order['count']} of them"


@dataflow
@thread
def thank(order: dict[str, Any]) -> str:
    return f"thanked {order['name']}"


@dataflow
def receive(order: dict[str, Any]) -> dict[str, Any]:
    return order


def desks(order: dict[str, Any]) -> list[Any]:
    """The nodes that an order goes to."""
    chosen = []
    if order["count"]:
        chosen.append(pack())
        chosen.append(thank())
    if order["count"] * order["price"]:
        chosen.append(bill())
    return chosen if order["name"] != "a robot" else chosen[:1]


def main() -> None:
    flow = receive(desks)
    for name, count, price in (("Ada", 3, 20), ("a robot", 1, 5), ("Grace", 0, 0)):
        done = flow({"name": name, "count": count, "price": price})
        print(f"{name}: {len(done)} way{'' if len(done) == 1 else 's'}")
        for what in done:
            print("   ", what)


if __name__ == "__main__":
    main()
