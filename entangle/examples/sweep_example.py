"""A parameter sweep with scikit-learn: every fit takes the same arrays, and none copies them.

`load` runs once, though many calls take its value. Each worker maps the arrays and uses its share
of the CPUs, for scikit-learn's own threads as well. A setting that cannot be fitted is an error in
the table, and the others go on. Prints the settings by score.
"""

import sys
from importlib.util import find_spec
from typing import Any

from entangle import gather
from entangle.process import process

Data = tuple[Any, Any]


@process
def load(rows: int) -> Data:
    """Images of digits as rows of pixels, and the digits."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    return pixels[:rows], digits[:rows]


@process
def score(data: Data, kernel: str, penalty: float) -> float:
    """How many of 100 images, which it was not fitted to, a model reads right."""
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import SVC

    return 100 * float(cross_val_score(SVC(kernel=kernel, C=penalty), *data, cv=3).mean())


def sweep(rows: int = 500) -> dict[str, float | BaseException]:
    """The scores by setting; of settings that fail, the errors."""
    data = load(rows)
    settings = [(kernel, penalty) for kernel in ("linear", "rbf", "poly") for penalty in (0.1, 1.0, 10.0)]
    settings.append(("rbf", -1.0))  # a penalty that no model can have
    calls = [score(data, kernel, penalty).named(f"{kernel}, C={penalty:g}") for kernel, penalty in settings]
    scores = gather(*calls, return_exceptions=True).run(timeout=100)
    return {str(call.name): found for call, found in zip(calls, scores, strict=True)}


def main() -> None:
    if find_spec("sklearn") is None:
        sys.exit("This example needs scikit-learn: pip install 'py-entangle[examples]'")
    found = sweep()
    good = {name: value for name, value in found.items() if isinstance(value, float)}
    for name in sorted(good, key=lambda name: -good[name]):
        print(f"{good[name]:5.1f} of 100  {name}")
    for name in found.keys() - good.keys():
        print(f"no score      {name}: {type(found[name]).__name__}")


if __name__ == "__main__":
    main()
