"""A study whose steps run in a container and here, and what the records say of it afterwards.

Two figures are made in a container, and twenty samples of them; every second sample is disturbed
here. Pairs of samples and disturbed samples are then compared, in the container again. Which pairs,
depends on their values: `compare` is a workflow, so its part of the graph is made when they are
there. The records tell what the result was made from, the attributes that the author gave to two of
the steps, and what each place has done. `ENTANGLE_IMAGE` names the image; the default is
python:3.13-slim.
"""

import math
import os
import random
import sys
import tempfile
from collections import Counter

import entangle
from entangle import records
from entangle.docker import docker
from entangle.errors import ImageError, UnreachableError
from entangle.process import process
from entangle.task import Call, task
from entangle.workflow import workflow

image = os.environ.get("ENTANGLE_IMAGE", "python:3.13-slim")
inside = docker(image=image, network="none")
about = task(attributes={"department": "structures", "classification": "open"})


@inside
@about
def add(a: float, b: float) -> float:
    return a + b


@inside
@about
def multiply(a: float, b: float) -> float:
    return a * b


@inside
def sample(a: float, b: float, number: int) -> float:
    return a - b + number / 10


@process
def disturb(figure: float, of: float, seed: int) -> float:
    return figure / of * random.Random(seed).uniform(-0.5, 0.5)


@inside
def mean(*figures: float) -> float:
    return sum(figures) / len(figures)


@workflow
def compare(a: float, b: float, samples: list[float], disturbed: list[float]) -> Call[list[float]]:
    chance = random.Random(3)
    pairs = [(one, other) for one in samples for other in disturbed if other >= 0 and chance.random() < 0.2]
    return entangle.gather(*[mean(a, b, one, other) for one, other in pairs])


def study() -> Call[list[float]]:
    a = add(1, math.pi)
    b = multiply(math.pi, a)
    samples = [sample(a, b, number) for number in range(20)]
    disturbed = [disturb(samples[2 * number], a, number) for number in range(10)]
    return compare(a, b, samples, disturbed)


def main() -> None:
    try:
        means = study()()
    except (ImageError, UnreachableError) as error:
        sys.exit(f"This example needs docker and an image with a Python, which ENTANGLE_IMAGE names.\n{error}")
    print(f"{len(means)} comparisons, from {min(means):.3f} to {max(means):.3f}")
    run = records.run("last")
    made_from = Counter(node.name for node in run.ancestors(run.root))
    print("made from", ", ".join(f"{count} {name}" for name, count in made_from.items()))
    for one in run.tasks:
        if one.attributes:
            print(f"  {one.name}: {', '.join(f'{name}={value}' for name, value in one.attributes.items())}")
    for share in run.places():
        print(f"{share.nodes} calls {'here' if share.here else 'in the container'}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ENTANGLE_RECORD_DIR"] = folder  # records of its own, removed at the end
        main()
