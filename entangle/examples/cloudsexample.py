"""One graph over a container here, AWS Lambda, AWS Batch and this machine.

A figure is made in a container and scaled in Lambda. Batch takes samples of it, as one array of
jobs, and disturbs every second one. Some of the disturbed ones are looked at again on this machine:
how many, their values decide.

`python -m entangle.examples.cloudsexample batch` runs all but the first figure in Batch, `lambda`
runs all of it in Lambda. ENTANGLE_BUCKET names the bucket for calls and values, ENTANGLE_QUEUE a
job queue, ENTANGLE_ROLE the ARN of a role for what runs in Lambda, ENTANGLE_IMAGE the image of
containers. If ENTANGLE_GRAPH names a graph database, such as neptune://…, the run is sent there.
"""

import math
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from entangle.aws import aws, batch, lmbda
from entangle.docker import docker
from entangle.errors import EntangleError
from entangle.process import process
from entangle.workflow import workflow

IMAGE = os.environ.get("ENTANGLE_IMAGE", f"python:3.{sys.version_info[1]}-slim")
SAMPLES = 16

Found = dict[str, Any]
Place = Callable[[Any], Any]


def add(a: float, b: float) -> Found:
    """The first figure."""
    return {"value": a + b, "step": "add"}


def multiply(a: float, figure: Found) -> Found:
    """Scale a figure."""
    return {"value": a * figure["value"], "step": "multiply"}


def sample(figure: Found, scaled: Found, number: int) -> Found:
    """Take a sample."""
    return {"value": figure["value"] - scaled["value"] + number / 10, "step": "sample"}


def disturb(figure: Found, taken: Found, seed: int) -> Found:
    """Disturb a sample."""
    return {"value": taken["value"] / figure["value"] * random.Random(seed).uniform(-0.5, 0.5), "step": "disturb"}


@process
def look_at(disturbed: Found, below: Found | None = None) -> Found:
    """Look at a disturbed sample again, on this machine, after the one `below`."""
    return {"value": disturbed["value"] + (below["value"] if below else 0.0), "step": "look at", "below": below}


@process
def summary(*found: Found) -> str:
    """How many there are of each step, and their sum."""
    counts = Counter(one["step"] for one in found)
    return f"{', '.join(f'{count} {step}' for step, count in counts.items())}: {sum(one['value'] for one in found):.3f}"


def places(where: str) -> tuple[Place, Place, Place]:
    """Where the first figure is made, where it is scaled, and where samples are taken."""
    account = aws(bucket=os.environ.get("ENTANGLE_BUCKET"))

    def in_batch(function: Any) -> Any:
        return account(batch(queue=os.environ.get("ENTANGLE_QUEUE"), image=IMAGE, memory="512MB")(function))

    def in_lambda(function: Any) -> Any:
        return account(lmbda(role=os.environ["ENTANGLE_ROLE"], memory="512MB", timeout=60)(function))

    if where == "batch":
        return process, in_batch, in_batch
    if where == "lambda":
        return in_lambda, in_lambda, in_lambda
    return docker(image=IMAGE), in_lambda, in_batch


def graph(where: str) -> Any:
    """The call of the whole graph."""
    first, second, third = places(where)
    figure = first(add)(1, math.pi)
    scaled = second(multiply)(math.pi, figure)
    taken = [third(sample)(figure, scaled, number) for number in range(SAMPLES)]
    disturbed = [third(disturb)(figure, taken[2 * number], number) for number in range(SAMPLES // 2)]

    @workflow
    def closer(*found: Found) -> Any:
        again = [look_at(one) for one in found if one["step"] == "disturb" and one["value"] > 0]
        return summary(*found, *again, *[look_at(found[0], one) for one in again[:3]])

    return closer(figure, scaled, *taken, *disturbed).named(f"clouds: {where}")


def main() -> None:
    where = sys.argv[1] if len(sys.argv) > 1 else "mixed"
    if where not in ("mixed", "batch", "lambda"):
        sys.exit(f"{where!r} is none of mixed, batch, lambda")
    for name, what in (("ENTANGLE_BUCKET", "a bucket"), ("ENTANGLE_ROLE", "a role")):
        if name not in os.environ and (name != "ENTANGLE_ROLE" or where != "batch"):
            sys.exit(f"This example needs an account of AWS; {name} names {what} there: see deploy/aws/README.md")
    try:
        print(graph(where)())
    except EntangleError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
