"""Calls whose connection is lost: whether they may be sent again, and their error in the end."""

from __future__ import annotations

from collections.abc import Sequence

from entangle.errors import LinkLostError, ProcessRetryException, UnreachableError, add_note


def comes_back(error: BaseException, lost: Sequence[BaseException]) -> bool:
    """Whether a call may be sent again after this error, and those before.

    A place that was there may come back. A wrong key or image stays wrong.
    """
    if isinstance(error, UnreachableError):
        return bool(lost) and type(error) is UnreachableError
    return isinstance(error, LinkLostError)


def used_up(name: str, lost: Sequence[BaseException]) -> ProcessRetryException:
    """The error of a call that has lost its connection too often."""
    last = lost[-1]
    error = ProcessRetryException(f"task {name!r} failed {len(lost)} times; the last time with {type(last).__name__}: {last}")
    for number, earlier in enumerate(lost[:-1], 1):
        add_note(error, f"attempt {number}: {earlier}")
    error.__cause__ = last
    return error
