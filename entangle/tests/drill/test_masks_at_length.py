"""Masks on very long and hostile strings, with time limits: for one match of a pattern, and for all
patterns together."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from entangle._shared import quoted_text, secret_looks, secret_values
from entangle._shared.masks import masked
from entangle.tests.test_masks_fuzz import FRAGMENTS

pytestmark = pytest.mark.drill


def test_no_pattern_tries_again_at_length() -> None:
    """Each pattern on repetitions of each fragment: the time of one match grows at most
    linearly."""
    patterns = [
        *secret_values._patterns().values(),
        *secret_looks._patterns().values(),
        *quoted_text._patterns(),
        *(secret_values._program(pattern) for _, pattern in secret_values._PROGRAMS),
    ]
    pairs = [one + other for one in FRAGMENTS for other in ("", " ", "\\", "=", "a", "[", '"')]
    slow = []
    for pattern in patterns:
        for unit in pairs:
            short, long = unit * (2_000 // len(unit)), unit * (32_000 // len(unit))
            taken = min(_processor_time(lambda: pattern.match(long)) for _ in range(2))  # noqa: B023
            if taken > 0.01 and taken > 100 * max(_processor_time(lambda: pattern.match(short)), 20e-6):  # noqa: B023
                slow.append((pattern.pattern, unit, taken))
    assert slow == []


def _processor_time(function: Callable[[], object]) -> float:
    before = time.process_time()
    function()
    return time.process_time() - before


@pytest.mark.parametrize("seed", range(10))
def test_texts_of_any_fragments_take_time_with_their_length(seed: int) -> None:
    """200,000 characters of a few repeated fragments may take five times as long as 40,000, and a
    good deal more, because the machine may be busy."""
    chosen = random.Random(seed)
    slow = []
    for _ in range(60):
        before, unit = chosen.choice(FRAGMENTS), "".join(chosen.choices(FRAGMENTS, k=chosen.randint(1, 5)))
        short, long = (before + unit * (size // len(unit)) for size in (40_000, 200_000))
        taken = _processor_time(lambda: masked(long))  # noqa: B023
        if taken > 0.5 and taken > 15 * _processor_time(lambda: masked(short)):  # noqa: B023
            slow.append((before, unit, taken))
    assert slow == []
