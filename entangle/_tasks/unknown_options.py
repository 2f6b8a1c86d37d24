"""Options that are not known where they are given: errors name the nearest one, and say where one
that belongs elsewhere goes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import hide
from entangle.errors import OptionError

F = TypeVar("F", bound=Callable[..., Any])

#: Options of a whole run.
_OF_A_RUN = ("timeout", "workers", "start", "progress")
#: What other libraries call the number of workers.
_WORKERS = frozenset(
    {"max_workers", "maxworkers", "n_workers", "nworkers", "num_workers", "n_jobs", "njobs", "jobs"}
    | {"processes", "n_processes", "num_processes", "nprocs", "concurrency"}
)


def option_of_a_run(name: str) -> str:
    """What `call.run` calls this option; an empty text if it has none like it."""
    return "workers" if name in _WORKERS else name if name in _OF_A_RUN else ""


def goes_elsewhere(name: str, value: object) -> str:
    """Where an option goes that is none of a function's parameters; an empty text if nowhere."""
    if name == "return_exceptions":
        return f"write gather(call, return_exceptions={value_in_short(value)})"
    option = option_of_a_run(name)
    return f"for the whole run write call.run({option}={value_in_short(value)})" if option else ""


def nearest(name: str, known: Iterable[str], least: float = 0.5) -> str:
    """The known name that is most like this one; an empty text if none is."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1, cutoff=least)
    return near[0] if near else ""


def refuse_options(
    where: str,
    known: Sequence[str],
    unknown: Mapping[str, Any],
    elsewhere: Callable[[str, object], str] = goes_elsewhere,
) -> None:
    """Raise OptionError for options that are not known; names the nearest one.

    `elsewhere` says where an option goes that belongs to something else.
    """
    for name, value in unknown.items():
        option = option_of_a_run(name)
        meant = option if option in known else nearest(name, known, 0.75)
        if not meant and (hint := elsewhere(name, value)):
            told = f"; {hint}."
        else:
            meant = meant or nearest(name, known)
            told = f"; did you mean {meant!r}?" if meant else "."
        raise OptionError(f"{where} has no option {name!r}{told} It has: {', '.join(known) or 'none'}")


def of_a_stream(name: str, value: object) -> str:
    """As `goes_elsewhere`, for streams, whose options concern one value at a time."""
    if name == "return_exceptions":
        return "write on_error='skip', or a function that gets the errors"
    option = option_of_a_run(name)
    if option == "timeout":
        return f"for each value write @process(timeout={value_in_short(value)})"
    return "inflight= is how many values are under way" if option == "workers" else ""


def of_a_push(name: str, value: object) -> str:
    """As `goes_elsewhere`, for values that are pushed into a dataflow."""
    option = option_of_a_run(name)
    if option == "timeout":
        return f"for each node write @process(timeout={value_in_short(value)})"
    return f"write @dataflow(maxworkers={value_in_short(value)})" if option == "workers" else ""


def knows_its_options(where: str, elsewhere: Callable[[str, object], str] = goes_elsewhere) -> Callable[[F], F]:
    """Let a function that users call raise a clear error for an option that it does not have.

    Its errors then point at the line that called it, as by `edge`. To checkers its signature stays
    as it is. `where` names it in errors; {} in it stands for what it is a method of.
    """

    def wrap(function: F) -> F:
        code = function.__code__
        parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        known = tuple(function.__kwdefaults__ or ()) or parameters[1:]

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                if not kwargs.keys() <= set(parameters):
                    of = where.format(getattr(args[0], "__name__", "") if args else "")
                    refuse_options(of, known, {name: kwargs[name] for name in kwargs if name not in parameters}, elsewhere)
                return function(*args, **kwargs)
            except BaseException as error:
                hide(error)
                raise

        return checked  # type: ignore[return-value]

    return wrap
