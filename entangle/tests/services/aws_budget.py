"""An upper bound for what tests in a real AWS account cost, and a guard that does not let them
begin beyond a budget.

A test declares its time limit and what it uses in that time (`bounded`). This bounds its cost:
nothing runs longer than the limit and the time after which it ends without its caller (`AFTER`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

#: On-demand prices of us-east-1 (USD), Linux on x86, in 2026; they change. Source: the price pages
#: of Fargate, Lambda, S3, SQS, EC2, EBS, VPC and CloudWatch at aws.amazon.com.
FARGATE_CPU, FARGATE_GB = 0.04048, 0.004445  # per hour; Batch itself is free
LAMBDA_GB, LAMBDA_CALL = 0.0000166667, 0.0000002  # per second; per call
# A PUT or LIST, the most expensive requests; a GB to the internet.
S3_REQUEST, S3_GB_OUT = 0.000005, 0.09
SQS_REQUEST = 0.0000005  # on a FIFO queue
T3_MICRO, T3_CREDITS = 0.0104, 0.10  # per hour; per hour of both CPUs above their baseline
EBS_GB, ADDRESS = 0.08 / 720, 0.005  # per hour: a GB of gp3; a public address
LOGS_GB = 0.50

#: No region costs twice as much: the most expensive one is São Paulo, with 1.8 times.
DEAREST = 2.0
#: How long a container may run after its caller's end (seconds): its lease, and AWS's rounding.
AFTER = 180.0
#: The same for an instance: until it finds that it has no caller or is idle, and its shutdown.
INSTANCE_AFTER = 420.0
#: USD, if ENTANGLE_TEST_AWS_BUDGET is not set.
BUDGET = 1.0


def container(seconds: float, cpus: float = 1.0, gb: float = 2.0) -> float:
    """A Fargate container, also as a Batch job, with 10 MB of logs."""
    return (seconds + AFTER) / 3600 * (cpus * FARGATE_CPU + gb * FARGATE_GB + ADDRESS) + 0.01 * LOGS_GB


def function(seconds: float, calls: int, gb: float = 1769 / 1024) -> float:
    """Calls of a Lambda function, each of this length, with 10 MB of logs."""
    return calls * (seconds * gb * LAMBDA_GB + LAMBDA_CALL) + 0.01 * LOGS_GB


def instance(seconds: float) -> float:
    """An EC2 instance of the smallest type, with a disk of 8 GB."""
    return (seconds + INSTANCE_AFTER) / 3600 * (T3_MICRO + T3_CREDITS + ADDRESS + 8 * EBS_GB)


def bucket(requests: int = 500, gb_out: float = 0.001) -> float:
    """S3 requests, and downloads."""
    return requests * S3_REQUEST + gb_out * S3_GB_OUT


def messages(requests: int) -> float:
    """SQS requests."""
    return requests * SQS_REQUEST


@dataclass(frozen=True)
class Bound:
    """The most that a test can cost (USD). If `optional`, it is left out when the budget is too
    small."""

    usd: float
    optional: bool


def bounded(seconds: float, usd: float, *, optional: bool = False) -> Callable[[Any], Any]:
    """Mark a test that is ended after this many seconds and costs at most this much, in
    us-east-1."""

    def wrap(test: Any) -> Any:
        test.bound = Bound(DEAREST * usd, optional)
        return pytest.mark.timeout(seconds)(test)

    return wrap


def within_budget(tests: Iterable[Any]) -> tuple[float, list[Any]]:
    """The most that these tests can cost together, and the optional ones that are left out for
    that.

    Fails if even the others cost more than ENTANGLE_TEST_AWS_BUDGET (USD), or if a test declares no
    bound. It makes no requests.
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
