"""The tree of errors: what is caught by catching what."""

from __future__ import annotations

import pickle

import pytest

from entangle import errors
from entangle.errors import EntangleError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EntangleError)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("OptionError", TypeError),
        ("ArgumentError", TypeError),
        ("CycleError", ValueError),
        ("UnpicklableError", TypeError),
        ("SchedulerImportError", ImportError),
        ("StoreFullError", OSError),
        ("ProcessTimeoutException", TimeoutError),
        ("ThreadTimeoutException", TimeoutError),
    ],
)
def test_errors_are_also_what_python_calls_them(name: str, kind: type[BaseException]) -> None:
    assert issubclass(getattr(errors, name), kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_travels_and_says_whose_fault_it_is(kind: type[EntangleError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what was wrong")))
    assert type(error) is kind
    assert "what was wrong" in str(error)
    assert kind.__doc__
    assert kind.__name__ in (errors.__doc__ or "") or kind is EntangleError


def test_the_doors_give_the_same_classes() -> None:
    from entangle import process, thread

    for name in ("ProcessTimeoutException", "ProcessTerminatedException", "ProcessRetryException"):
        assert getattr(process, name) is getattr(errors, name)
    for name in ("ThreadTimeoutException", "ThreadTerminatedException"):
        assert getattr(thread, name) is getattr(errors, name)
