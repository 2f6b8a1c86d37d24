"""@slurm: the function runs in an allocation of a Slurm cluster.

More: docs/how_to/slurm.md.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from entangle._remote.caller.far import Far
from entangle._remote.transport.slurm import SlurmTransport, check_line
from entangle._remote.transport.slurm_queue import seconds_of
from entangle._services.caller.at_service import AtService
from entangle._services.mailbox import default_folder
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._tasks.layer import Decorated
from entangle._tasks.option_values import check_whether, is_number
from entangle._worker.away import AwayPlace
from entangle.errors import OptionError
from entangle.flow import THREAD, Body
from entangle.task import Decorator, Task, decorate, refuse_unknown

__all__ = ["slurm"]

_OPTIONS = (
    *("partition", "time", "cpus", "memory", "gres", "nodes", "account", "qos", "constraint"),
    *("setup", "options", "jobs", "python", "detached", "mailbox"),
)
#: Seconds of a walltime beside the deadline of a call, for the start of the Python there.
_START = 60.0


class Slurm(Far):
    """The layer of @slurm."""

    transport: SlurmTransport
    #: It may wait for long, and the calling thread must look after the run meanwhile.
    carrier = THREAD

    def __init__(self, transport: SlurmTransport, needed: float | None) -> None:
        super().__init__(transport)
        #: Seconds that a call may take; None where it has no deadline.
        self.needed = needed

    def place_of(self, rest: Decorated, again: Body | None, furnishing: Any) -> AwayPlace:
        """The allocations, as the place of calls that no thread waits for."""
        from entangle._remote.caller.allocated_calls import AllocatedPlace

        return AllocatedPlace(self.transport, rest, again, self.needed)

    def send(self, rest: Decorated, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of it there."""
        from entangle._remote.caller.allocations import allocations
        from entangle._remote.caller.open_channels import channel_to

        held = allocations(self.transport)
        place = held.take(self.needed, rest.__name__)
        try:
            return channel_to(place.transport).call(rest, args, kwargs, place.queued)
        finally:
            held.give_back(place)


@edge
def slurm(
    function: None = None,
    /,
    *,
    partition: str | None = None,
    time: float | str | timedelta | None = None,
    cpus: int = 1,
    memory: str | int | None = None,
    gres: str | None = None,
    nodes: int = 1,
    account: str | None = None,
    qos: str | None = None,
    constraint: str | None = None,
    setup: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    jobs: int = 1,
    python: str = "python3",
    detached: bool = False,
    mailbox: str | os.PathLike[str] | None = None,
    **unknown: Any,
) -> Decorator:
    """Run the function in an allocation of a Slurm cluster, with the layers below.

    An allocation is one job of Slurm's that takes many calls: it holds a Python, which is started
    once and stays for the calls of the run. Nothing needs to be installed there.

    - `time`: the walltime of an allocation: seconds, a timedelta, or a string as Slurm takes it
      ("1:00:00", "2-00:00:00"). By default the `timeout` of a layer below, plus a minute. Calls
      that would not fit into what is left go to the next allocation.
    - `cpus`: CPUs on each node, and how many calls it takes at once.
    - `memory`: on each node: bytes, or a string such as "4G".
    - `nodes`: nodes of one allocation; each has a Python of its own, and calls go where the fewest
      are.
    - `jobs`: allocations at once, at most. One more is asked for when calls wait; one that has had
      no call for a minute, or for the `idle` of a session, is given back.
    - `partition`, `gres`, `account`, `qos`, `constraint`: as Slurm has them.
    - `setup`: shell commands, one a line, that run before the Python starts, such as "module load
      python".
    - `options`: further options of `salloc`, as {"reservation": "tests", "exclusive": True}.
    - `python`: the interpreter there, 3.10 or newer.
    - `detached`: no allocation, but a job a call, by `sbatch --no-requeue`; what is ready at once
      goes in arrays. `options` are those of `sbatch`.
    - `mailbox`: of detached calls: a folder that the nodes see as well, for calls, values, scripts
      and logs; by default ENTANGLE_MAILBOX, else `~/.local/state/entangle/mailbox`.

    A warm call takes well under a millisecond besides what the body takes; a cold one as long as
    Slurm needs to grant an allocation, and half a second. Where it waits longer than a moment, the
    run says why.

    Allocations end with the run, in a session with the session. When the caller dies, they are
    given back at once, and within a minute if all its processes here are killed.

    A detached call takes as long as Slurm needs to start a job, and a second. Ten thousand of them
    cost no thread here, and one `squeue` asks about all of them. Their jobs outlive a caller that
    dies, up to their walltime. One that ends without an outcome is a ProcessTerminatedException, or
    a ProcessTimeoutException after the walltime, with Slurm's reason, the script and the log; with
    `retry` below, it is submitted again.

    Raises OptionError here for bad options, and where neither `time` nor a `timeout` is given.
    Running a call raises UnreachableError where Slurm refuses the allocation or is not there,
    UnfitPythonError, and LinkLostError where the job ends during the call, with its number, its
    node and Slurm's reason: TIMEOUT, OUT_OF_MEMORY, NODE_FAIL, PREEMPTED, CANCELLED.

        @slurm(partition="main", time="1:00:00", cpus=4, memory="8G")
        def simulate(seed): ...
    """
    refuse_unknown("slurm", _OPTIONS, unknown)
    if function is not None:
        raise OptionError("@slurm needs parentheses: @slurm(time='1:00:00')")
    stated = {"partition": partition, "gres": gres, "account": account, "qos": qos, "constraint": constraint, "python": python}
    for name, value in stated.items():
        if value is not None and (not isinstance(value, str) or not value.strip() or value.startswith("-") or "\n" in value):
            raise OptionError(f"@slurm: {name}={value_in_short(value)}; it must be a string that does not begin with a dash")
    for name, number in (("cpus", cpus), ("nodes", nodes), ("jobs", jobs)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise OptionError(f"@slurm: {name}={value_in_short(number)}; it must be a whole number above 0")
    check_whether("@slurm", detached=detached)
    if not detached and mailbox is not None:
        raise OptionError("@slurm: mailbox= is for detached=True; leave it out, or write detached=True as well")
    if detached and jobs != 1:
        raise OptionError(f"@slurm: jobs={jobs} counts allocations, and detached=True makes each call a job of its own; leave one out")
    if mailbox is not None and (not isinstance(mailbox, (str, os.PathLike)) or not os.fspath(mailbox)):
        raise OptionError(f"@slurm: mailbox={value_in_short(mailbox)}; it must be the path of a folder that the nodes see as well")
    walltime = _walltime(time)
    asked = SlurmTransport(
        time=walltime or 0.0,
        partition=partition,
        cpus=cpus,
        memory=_memory(memory),
        gres=gres,
        nodes=nodes,
        account=account,
        qos=qos,
        constraint=constraint,
        setup=_setup(setup),
        options=_further(options),
        jobs=jobs,
        python=python,
    )

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        timeout = _timeout(inner)
        if walltime is None and timeout is None:
            raise OptionError(
                "@slurm needs to know how long: @slurm(time='1:00:00'), the walltime of an allocation, or a timeout in a layer below: "
                "@slurm() above @process(timeout=600)"
            )
        if walltime is not None and timeout is not None and timeout > walltime:
            raise OptionError(
                f"@slurm: time={value_in_short(time)} is shorter than the timeout of {timeout:g} s, so no call would fit into it; "
                "make time= longer, or timeout= shorter"
            )
        lasts = walltime if walltime is not None else (timeout or 0.0) + _START
        if detached:
            return decorate("slurm", inner, _detached(replace(asked, time=lasts), mailbox))
        return decorate("slurm", inner, Slurm(replace(asked, time=lasts), timeout))

    decorator: Any = wrap
    return cast(Decorator, decorator)


def _detached(asked: SlurmTransport, mailbox: str | os.PathLike[str] | None) -> AtService:
    """The layer of a job a call."""
    from entangle._services.caller.slurm_jobs import SlurmJobs

    folder = os.path.abspath(os.path.expanduser(mailbox)) if mailbox is not None else default_folder()
    stated = tuple(option for option in asked.salloc()[1:] if option != "--no-bell")
    jobs = SlurmJobs(stated, asked.time, os.path.join(folder, "slurm"), asked.python, asked.setup, asked.partition)
    return AtService(jobs, folder, "slurm")


def _timeout(inner: Any) -> float | None:
    """The deadline that the layers below set (seconds)."""
    found = [terms["timeout"] for layer in getattr(inner, "layers", ()) if (terms := layer.terms()).get("timeout") is not None]
    return min(found) if found else None


def _walltime(given: object) -> float | None:
    """A walltime in seconds. Raises OptionError."""
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(seconds, str):
        seconds = seconds_of(seconds)
    if given is None:
        return None
    if not isinstance(seconds, (int, float)) or not is_number(seconds) or seconds <= 0:
        told = "it must be seconds, a timedelta, or a string such as '1:00:00' or '2-00:00:00'"
        raise OptionError(f"@slurm: time={value_in_short(given)}; {told}")
    return float(seconds)


def _memory(given: object) -> str | None:
    """Memory as Slurm takes it. Raises OptionError."""
    if given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return f"{math.ceil(given / 1024)}K"
    if isinstance(given, str) and (found := re.fullmatch(r"0*([1-9][0-9]*)([bkmgtBKMGT]?)", given)) is not None:
        unit = found[2].upper()
        return f"{found[1]}{unit}" if unit in ("K", "M", "G", "T") else f"{math.ceil(int(found[1]) / 1024)}K"
    raise OptionError(f"@slurm: memory={value_in_short(given)}; it must be a number of bytes, or a string such as '512M' or '4G'")


def _setup(given: object) -> tuple[str, ...]:
    """Lines of the shell. Raises OptionError."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(line, str) and line.strip() for line in given):
        raise OptionError(f"@slurm: setup={value_in_short(given)}; it must be a list of lines, such as ['module load python']")
    for line in given:
        check_line(line)
    return tuple(given)


def _further(given: object) -> tuple[tuple[str, str], ...]:
    """Further options of salloc, as pairs; "" without a value. Raises OptionError."""
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise OptionError(
            f"@slurm: options={value_in_short(given)}; it must be a dict, such as {{'reservation': 'tests', 'exclusive': True}}"
        )
    found = []
    for name, value in given.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
            raise OptionError(f"@slurm: options: {name!r} is no long option of salloc; write it without dashes first")
        if value is False or value is None:
            continue
        if not isinstance(value, (str, int, float)) or "\n" in str(value):
            raise OptionError(f"@slurm: options: {name}={value_in_short(value)}; it must be a string, a number or True")
        found.append((name.replace("_", "-"), "" if value is True else str(value)))
    return tuple(sorted(found))


named_as_its_decorator(__name__)
