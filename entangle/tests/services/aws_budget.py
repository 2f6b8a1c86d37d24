"""What tests in a real account of AWS cost at most, and the guard that does not let them begin
beyond a budget.

A test says its time limit and what it uses in that time (`bounded`), so its cost is an upper bound:
nothing of it runs for longer than its limit and what ends it when its process is gone (`AFTER`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

#: On-demand prices of us-east-1 (USD), Linux on x86, in 2026; they change. Source: the price
#: pages of Fargate, Lambda, S3, SQS, EC2, EBS, VPC and CloudWatch at aws.amazon.com.
FARGATE_CPU, FARGATE_GB = 0.04048, 0.004445  # an hour; Batch itself costs nothing
LAMBDA_GB, LAMBDA_CALL = 0.0000166667, 0.0000002  # a second; a call
S3_REQUEST, S3_GB_OUT = 0.000005, 0.09  # a PUT or a LIST, the dearest; a GB to the internet
SQS_REQUEST = 0.0000005  # of a FIFO queue
T3_MICRO, T3_CREDITS = 0.0104, 0.10  # an hour; what its two CPUs cost above their share
EBS_GB, ADDRESS = 0.08 / 720, 0.005  # an hour: a GB of gp3; a public address
LOGS_GB = 0.50

#: No region is twice as dear. The dearest is São Paulo, by 1.8.
DEAREST = 2.0
#: Seconds for which a container may run on when its caller is gone: the lease, and how AWS rounds.
AFTER = 180.0
#: Seconds for which an instance may: until nobody has come, or it is idle; and its shutdown.
INSTANCE_AFTER = 420.0
#: USD, where ENTANGLE_TEST_AWS_BUDGET says nothing.
BUDGET = 1.0


def container(seconds: float, cpus: float = 1.0, gb: float = 2.0) -> float:
    """A container of Fargate, also as a job of Batch, with 10 MB of log."""
    return (seconds + AFTER) / 3600 * (cpus * FARGATE_CPU + gb * FARGATE_GB + ADDRESS) + 0.01 * LOGS_GB


def function(seconds: float, calls: int, gb: float = 1769 / 1024) -> float:
    """Calls of a function of Lambda that each take so long, with 10 MB of log."""
    return calls * (seconds * gb * LAMBDA_GB + LAMBDA_CALL) + 0.01 * LOGS_GB


def instance(seconds: float) -> float:
    """An instance of EC2 of the smallest type, with a disk of 8 GB."""
    return (seconds + INSTANCE_AFTER) / 3600 * (T3_MICRO + T3_CREDITS + ADDRESS + 8 * EBS_GB)


def bucket(requests: int = 500, gb_out: float = 0.001) -> float:
    """Requests of S3, and what comes from there."""
    return requests * S3_REQUEST + gb_out * S3_GB_OUT


def messages(requests: int) -> float:
    """Requests of SQS."""
    return requests * SQS_REQUEST


@dataclass(frozen=True)
class Bound:
    """What a test costs at most (USD); `optional`: it is left out where the budget is too small."""

    usd: float
    optional: bool


def bounded(seconds: float, usd: float, *, optional: bool = False) -> Callable[[Any], Any]:
    """A test that is ended after so many seconds and costs so much at most, in us-east-1."""

    def wrap(test: Any) -> Any:
        test.bound = Bound(DEAREST * usd, optional)
        return pytest.mark.timeout(seconds)(test)

    return wrap


def within_budget(tests: Iterable[Any]) -> tuple[float, list[Any]]:
    """What these tests cost at most, together, and which optional ones are left out for that.

    Fails where even the others cost more than ENTANGLE_TEST_AWS_BUDGET (USD), and where a test says
    nothing of its cost. It asks nobody.
    """
    said = os.environ.get("ENTANGLE_TEST_AWS_BUDGET") or str(BUDGET)
    try:
        budget = float(said)
    except ValueError:
        pytest.fail(f"ENTANGLE_TEST_AWS_BUDGET={said!r}; it must be a number of USD, as 1.00", pytrace=False)
    total, left_out = 0.0, []
    tests = list(tests)
    if unbounded := [test.__name__ for test in tests if not hasattr(test, "bound")]:
        pytest.fail(f"nothing says what {', '.join(unbounded)} may cost; write @bounded(…) above", pytrace=False)
    for test in sorted(tests, key=lambda test: bool(test.bound.optional)):
        if test.bound.optional and total + test.bound.usd > budget:
            left_out.append(test)
        else:
            total += test.bound.usd
    if not total <= budget:
        pytest.fail(
            f"these tests may cost up to {total:.2f} USD, and the budget is {budget:.2f}: nothing was begun. "
            "ENTANGLE_TEST_AWS_BUDGET=… allows more; -k names fewer tests",
            pytrace=False,
        )
    return total, left_out
