"""The decorator @lmbda: a function that stands in Lambda, or one that runs there."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, overload

from entangle._aws.lambda_calls import LambdaCalls, lambda_options
from entangle._aws.lambda_function import AtFunction, checked_name
from entangle._aws.layers import AtAws, InAccount, at_aws
from entangle._aws.machine_options import architecture_of, mebibytes, variables
from entangle._shared.tracebacks import edge
from entangle.errors import OptionError
from entangle.task import Decorator, InjectingDecorator, Task, refuse_unknown

_LMBDA = ("function", "qualifier", "role", "image", "python", "memory", "timeout", "architecture", "env", "layers")


# The first: what a call takes is up to the function there. The second runs the body.
@overload
def lmbda(*, function: str, qualifier: str | None = None) -> InjectingDecorator: ...
@overload
def lmbda(
    *,
    role: str,
    image: str | None = None,
    python: str | None = None,
    memory: str | int = 1769,
    timeout: float = 900,
    architecture: str | None = None,
    env: Mapping[str, str] | None = None,
    layers: Sequence[str] = (),
) -> Decorator: ...
@edge
def lmbda(
    below: None = None,
    /,
    *,
    function: str | None = None,
    qualifier: str | None = None,
    role: str | None = None,
    image: str | None = None,
    python: str | None = None,
    memory: str | int = 1769,
    timeout: float = 900,
    architecture: str | None = None,
    env: Mapping[str, str] | None = None,
    layers: Sequence[str] = (),
    **unknown: Any,
) -> Any:
    """Have AWS Lambda answer: a function that stands there, by its name, or the one below.

    **A function that stands there**: `@lmbda(function="resize")`.

    - `function`: its name, or its ARN.
    - `qualifier`: a version, such as "3", or an alias; by default the newest.

    The arguments of a call are the event, as JSON: `proxy(1, 2)` sends `{"args": [1, 2]}`,
    `proxy(k=3)` sends `{"kwargs": {"k": 3}}`, and a single dict is sent as it is. What the function
    answers is the value. The body below is not run; only its name counts. `timeout`, `retry` and
    limits of other decorators hold here.

    No thread waits for an answer: up to 1,000 requests of a process are under way at once. Where
    Lambda runs no more of the function at the moment, the request is sent once more after a while,
    for five minutes at most. It is never sent again where the function may have run, unless `retry`
    says so. A call takes what Lambda takes and a few milliseconds. If the caller dies, or a call is
    cancelled, a function that runs already runs on to its end.

    **The one below**: `@lmbda(role="arn:…")` runs it there, with the layers below; its value comes
    back.

    - `role`: the ARN of the role that it has there. It needs none of S3 for entangle.
    - `python`: the version of the runtime, such as "3.12"; by default the caller's.
    - `image`: in place of a runtime, an image of `entangle image build --for lambda`, in ECR.
    - `memory`: MiB, or a string such as "2GB"; 128 to 10,240. 1,769 MiB have one CPU.
    - `timeout`: how long a call may take (seconds), with the start of its program; up to 900.
    - `architecture`: "x86_64" or "arm64".
    - `env`: environment variables. `layers`: ARNs of layers of Lambda.

    A function is made for these options, once, and used again: `entangle aws gc` removes those that
    were not used for long. Calls and values go through the bucket of @aws, by addresses that are
    signed for single objects. Lambda never runs a body again by itself; `retry` of a layer below
    invokes it once more. Only the temporary directory can be written to there.

    A cold call takes one or two seconds, a warm one some tenths. If the caller dies, what runs
    there ends within a minute, and what has not begun never does.

    Needs the extra `aws`. Raises OptionError here for bad options. Running a call raises
    UnreachableError where AWS refuses something, or where there is no such function. Of a function
    that stands there, it raises LambdaError where that fails, with its error and the end of its
    log; ArgumentError for what JSON does not have, and for events above 6 MB; and LinkLostError
    where the connection ends before the answer comes. Of the one below, it raises what that raises,
    ProcessTimeoutException, and ProcessTerminatedException where its process dies, with the end of
    the log.

        @lmbda(function="resize", qualifier="live")
        @aws(profile="lab")
        def resize(): ...

        resize({"key": "cat.png", "width": 200})()
    """
    refuse_unknown("lmbda", _LMBDA, unknown)
    if below is not None:
        raise OptionError("@lmbda needs parentheses: @lmbda(function='…') or @lmbda(role='…')")
    layer: InAccount
    if function is not None:
        given: dict[str, object] = {"role": role, "image": image, "python": python, "architecture": architecture, "env": env}
        usual = {"memory": (memory, 1769), "timeout": (timeout, 900), "layers": (layers, ())}
        given |= {name: value for name, (value, default) in usual.items() if value != default}
        if others := [name for name, value in given.items() if value is not None]:
            raise OptionError(f"@lmbda: function= names one that stands in Lambda, and {others[0]}= is for the body below; leave one out")
        checked_name(function, qualifier)
        layer = AtFunction(function, qualifier)
    else:
        if role is None:
            raise OptionError("@lmbda needs function='…', a function that stands in Lambda, or role='arn:…', to run the body below")
        if qualifier is not None:
            raise OptionError("@lmbda: qualifier= is for function=, a function that stands in Lambda")
        calls = lambda_options(role, image, python, mebibytes("lmbda", memory), timeout, layers)
        layer = AtAws(
            functools.partial(
                LambdaCalls, **calls, architecture=architecture_of("lmbda", architecture), environment=variables("lmbda", env)
            ),
            "lmbda",
        )

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return at_aws("lmbda", inner, layer)

    return wrap
