"""The layers of @aws and of the decorators that run something there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from entangle._aws.account import Account
from entangle._aws.bucket import Buckets
from entangle._services import Service
from entangle._services.caller.at_service import AtService
from entangle._shared.tracebacks import edge
from entangle._tasks.layer import Layer
from entangle.errors import OptionError
from entangle.task import Decorator, Task, decorate


class OfAccount(Layer):
    """Says whose account the decorators beside it use. It runs nothing, and goes nowhere: whoever
    finds it takes the account and leaves it out."""

    door = "aws"

    def __init__(self, account: Account) -> None:
        self.account = account

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Alone it says nothing of where to run."""
        raise OptionError(
            "@aws says whose account it is, and needs a decorator beside it that runs the function there: @batch, @fargate, @lmbda or @ec2"
        )


class InAccount(Layer):
    """A layer that runs something in an account: that of the @aws beside it."""

    account: Account | None = None

    def of(self, account: Account) -> InAccount:
        """The same in that account."""
        raise NotImplementedError


class AtAws(InAccount, AtService):
    """Runs a function at a service of AWS; its account is said by @aws, above or below it."""

    def __init__(self, make: Callable[[Account], Service], door: str, account: Account | None = None) -> None:
        self.make, self.account = make, account
        of = account or Account()
        service = make(of)
        super().__init__(service, Buckets(of, bool(getattr(service, "job_role", None))), door)

    def of(self, account: Account) -> AtAws:
        """The same in that account."""
        return type(self)(self.make, self.door, account)


def with_account(inner: Any, account: Account) -> Any:
    """What @aws makes of a function: the layer below it that wants an account has it; else it waits
    for one above."""
    if isinstance(inner, Task):
        for at, layer in enumerate(inner.layers):
            if isinstance(layer, InAccount) and layer.account is None:
                return type(inner)(inner.function, (*inner.layers[:at], layer.of(account), *inner.layers[at + 1 :]))
    return decorate("aws", inner, OfAccount(account))


def at_aws(door: str, inner: Any, layer: InAccount) -> Task[..., Any]:
    """What @batch and the like make of a function: with the account of an @aws below, if there is
    one."""
    if isinstance(inner, Task):
        for at, below in enumerate(inner.layers):
            if isinstance(below, OfAccount):
                rest: Any = (
                    type(inner)(inner.function, (*inner.layers[:at], *inner.layers[at + 1 :])) if len(inner.layers) > 1 else inner.function
                )
                return decorate(door, rest, layer.of(below.account))
    return decorate(door, inner, layer)


def decorator_of(door: str, make: Callable[[Account], Service]) -> Decorator:
    """What @batch and the like are: a service that an account makes runs the function."""
    layer = AtAws(make, door)

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return at_aws(door, inner, layer)

    decorator: Any = wrap
    return cast(Decorator, decorator)
