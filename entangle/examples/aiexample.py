"""A small neural network, trained in a container that has the packages that training needs.

`packages` are installed once, into a new image on top of `ENTANGLE_IMAGE` (default:
python:3.13-slim). The network learns to tell two interleaved half moons apart. The program prints
its layers, parameters, loss and accuracy.
"""

import os
import sys
from typing import Any

from entangle.docker import docker
from entangle.errors import ImageError, UnreachableError
from entangle.process import process

image = os.environ.get("ENTANGLE_IMAGE", "python:3.13-slim")


@process
@docker(image=image, packages=["numpy"], consume_gpu=False)
def train(epochs: int, seed: int) -> dict[str, Any]:
    """Train by gradient descent with momentum; gives a summary."""
    import itertools

    import numpy as np

    random = np.random.default_rng(seed)

    def moons(count: int) -> Any:
        angle = random.uniform(0, np.pi, count)
        label = random.integers(0, 2, count)
        x = np.where(label, 1 - np.cos(angle), np.cos(angle))
        y = np.where(label, 0.5 - np.sin(angle), np.sin(angle))
        return np.stack([x, y], 1) + random.normal(0, 0.1, (count, 2)), label

    sizes = [2, 16, 16, 1]
    weights = [random.normal(0, np.sqrt(2 / a), (a, b)) for a, b in itertools.pairwise(sizes)]
    biases = [np.zeros(size) for size in sizes[1:]]
    momentum = [np.zeros_like(part) for part in weights + biases]

    def forward(inputs: Any) -> Any:
        values = [inputs]
        for weight, bias in zip(weights, biases, strict=True):
            total = values[-1] @ weight + bias
            values.append(np.maximum(total, 0) if weight is not weights[-1] else 1 / (1 + np.exp(-total)))
        return values

    (inputs, labels), (unseen, truth) = moons(1000), moons(500)
    losses = []
    for _ in range(epochs):
        values = forward(inputs)
        guess = values[-1][:, 0].clip(1e-9, 1 - 1e-9)
        losses.append(float(-np.mean(labels * np.log(guess) + (1 - labels) * np.log(1 - guess))))
        slope = (guess - labels)[:, None] / len(labels)
        slopes: list[Any] = [None] * (2 * len(weights))
        for layer in reversed(range(len(weights))):
            slopes[layer], slopes[len(weights) + layer] = values[layer].T @ slope, slope.sum(0)
            slope = (slope @ weights[layer].T) * (values[layer] > 0)
        for part, speed, change in zip(weights + biases, momentum, slopes, strict=True):
            speed *= 0.9
            speed -= 0.3 * change
            part += speed
    right = (forward(unseen)[-1][:, 0] > 0.5) == truth
    return {
        "layers": sizes,
        "parameters": int(sum(part.size for part in weights + biases)),
        "numpy": np.__version__,
        "losses": [losses[0], losses[-1]],
        "accuracy": float(right.mean()),
    }


def main() -> None:
    try:
        summary = train(300, 7)()
    except (ImageError, UnreachableError) as error:
        sys.exit(f"This example needs docker and an image with a Python, which ENTANGLE_IMAGE names.\n{error}")
    print(f"  layers      {' - '.join(map(str, summary['layers']))}, {summary['parameters']} parameters, by numpy {summary['numpy']}")
    print(f"  loss        {summary['losses'][0]:.3f} before, {summary['losses'][1]:.3f} after training")
    print(f"  accuracy    {summary['accuracy']:.1%} of what it had not seen")


if __name__ == "__main__":
    main()
