"""How a worker that was not forked joins its run: it reads the flow from the run's directory."""

from __future__ import annotations

import bisect
import copy
import itertools
import os
import pickle
import struct
from typing import Any, NoReturn

from entangle._shared import module_lookup
from entangle._shared.frame import Frame
from entangle._shared.home import Home, devices_of, private
from entangle._shared.limits import explaining_limits
from entangle._shared.pickling import dumps_for_others, why_not
from entangle._shared.site import Site
from entangle._shared.store import Place, Store, aside
from entangle._shared.summaries import argument_at, call_in_short
from entangle._shared.table import Table, reserve
from entangle._shared.unpickling import BrokenPart, failing_part, unpickling_error
from entangle._worker import importing, inheritance, library_threads
from entangle._worker.failures import describe, note_call
from entangle._worker.serving import Serving, serve
from entangle._worker.worker import Worker
from entangle.cookies import jobserver_flags, jobserver_style
from entangle.errors import EntangleError, LimitError, RemoteTraceback, RunAtImportError, StoreFullError, add_note, set_cause
from entangle.flow import DEVICE, IN_CALLER, UNCHANGING, Body, Flow, Shape

#: The exit status of a worker that failed outside any body: it could not join its run, or hit a bug
#: of ours.
BROKEN = 70


def described(site: Site) -> bytes:
    """What a worker that was not forked needs to know of its run, pickled once a run.

    In a frame, a call that others find by name has its arguments apart, in `site.given`. What is
    left then has a number, `site.told`, and is the same for all runs for which it says the same.

    Raises UnpicklableError naming what cannot travel.
    """
    if site.described:
        return site.described
    plan = site.flow.plan if site.frame is not None else None
    if plan is not None:
        module_lookup.look_afresh()
        buffers: list[memoryview] = []
        try:
            constants = site.flow.constants
            if not plan.bodies[0].is_found():
                site.given = b""
            elif UNCHANGING.issuperset(map(type, constants)):
                site.given = pickle.dumps(constants, 5)
            else:
                site.given = dumps_for_others(constants, aside(buffers), buffers.clear)
        except Exception:  # it is told below what cannot travel
            site.given = b""
        plan = plan if site.given else None
        if plan is not None and buffers:
            site.given = _with_buffers(site, site.given, buffers)
    state = inheritance.pickled()
    says = plan, state, site.home, site.shares, jobserver_style(), sorted(module_lookup.travelled)
    known = _told.get(plan) if plan is not None else None
    if known is not None and known[0] == says:
        _, site.told, site.described = known
        return site.described
    flow = plan or _without_what_stays(site.flow)
    buffers = []
    try:
        with explaining_limits("workers cannot be told what to run"):
            pickled = dumps_for_others(flow, aside(buffers) if site.stores and plan is None else None, buffers.clear)
    except LimitError:
        raise
    except Exception as error:
        raise _what_cannot_travel(flow, error) from None
    tells = {
        "flow": _with_buffers(site, pickled, buffers) if buffers else pickled,
        "home": site.home,
        "home_spill": os.path.dirname(site.spill),
        "state": state,
        "plan": plan is not None,
        "jobserver": jobserver_style(),
        "shares": site.shares,
        "claims": site.claims,
        "visible": site.visible,
    }
    tells["travelled"] = sorted(module_lookup.travelled)
    site.described = pickle.dumps(tells, 5)
    if plan is not None:
        site.told = next(_numbers)
        if len(_told) >= MOST_TOLD:
            _told.clear()
        _told[plan] = says, site.told, site.described
    return site.described


#: In a caller: what workers are told of calls, by their plans: after what that says, its number.
_told: dict[Flow, tuple[tuple[Any, ...], int, bytes]] = {}
_numbers = itertools.count(1)
#: How many plans are remembered, here and in each worker.
MOST_TOLD = 32

#: A pickle whose large buffers lie in a file of the run begins with this and their place: no pickle
#: begins so.
_BESIDE, _PLACE = b"B", struct.Struct("<cqqq")


def _with_buffers(site: Site, pickled: bytes, buffers: list[memoryview]) -> bytes:
    """Store the large buffers of a pickle for all workers of a run, and tell the pickle where.

    Raises StoreFullError if there is no room anywhere.
    """
    return _PLACE.pack(_BESIDE, *site.stores[0].put_buffers(buffers)) + pickled


def _apart(pickled: bytes, store: Store | None) -> tuple[bytes | memoryview, list[memoryview]]:
    """A pickle that the caller has made, and its large buffers, mapped.

    Raises NotJoined if they are gone: the run is over.
    """
    if store is None or pickled[:1] != _BESIDE:
        return pickled, []
    place: Place = _PLACE.unpack_from(pickled)[1:]
    try:
        return memoryview(pickled)[_PLACE.size :], store.parts(place)[1]
    except FileNotFoundError:
        raise NotJoined(0) from None


def write_flow(site: Site) -> None:
    """Write down, once a run, what a worker that was not forked needs to know.

    Raises UnpicklableError naming what cannot travel.
    """
    if site.flow_path:
        return
    body = described(site)
    for directory in (site.directory, site.spill):
        if directory != site.directory:  # if that is gone, its run or its process is over
            os.makedirs(directory, mode=0o700, exist_ok=True)
        path = os.path.join(directory, "flow")
        try:
            with open(path, "xb", opener=private) as file:
                reserve(file.fileno(), 0, len(body) + len(site.given))
                file.write(body)
                file.write(site.given)
        except OSError as error:
            os.unlink(path)
            if directory == site.spill:
                raise StoreFullError(
                    error.errno,
                    f"no room for a flow of {len(body):,} bytes, neither in {site.directory} nor in {site.spill}; "
                    "free some, or point ENTANGLE_RUN_DIR or TMPDIR at a larger place",
                ) from None
        else:
            site.flow_path, site.described = path, b""
            return


def _without_what_stays(flow: Flow) -> Flow:
    """The flow without what only the invoking process uses, which may be large or unpicklable.

    Nodes, terms and names stay, to decide what is next and to report what has failed.
    """
    stays = [body.carrier in IN_CALLER for body in flow.bodies]
    if not any(stays):
        return flow
    others = copy.copy(flow)
    others.bodies = [
        Body(*body)._replace(function=_Away() if body.may_be_away else _elsewhere, on=(Exception,), rescue=None) if here else body
        for body, here in zip(flow.bodies, stays, strict=True)
    ]
    others.shapes = [Shape(0)] * len(flow.shapes)
    for body, shape in flow.pairs():
        if not stays[body]:
            others.shapes[shape] = flow.shapes[shape]
    others.constants = flow.constants[:]
    # Leaves are for processes. Most nodes here, such as gathers, take no constant.
    starts, pending = flow.starts, flow.pending
    here = [
        node for node in range(flow.leaves, flow.count) if stays[flow.body_of[node]] and starts[node + 1] - starts[node] > pending[node]
    ]
    unneeded = {~taken for node in here for taken in flow.inputs[flow.starts[node] : flow.starts[node + 1]] if taken < 0}
    if unneeded:
        others.constants_in_short = None
        for node in range(flow.count):
            if not stays[flow.body_of[node]]:
                unneeded.difference_update(~taken for taken in flow.inputs[flow.starts[node] : flow.starts[node + 1]] if taken < 0)
        for constant in unneeded:
            others.constants[constant] = None
    return others


class _Away:
    """Stands for a function of the invoking process that only waits. Its nodes are the away
    worker's here as well: two processes that differ on a lane would lose them."""

    may_be_away = True

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        _elsewhere()


def _elsewhere(*_: Any, **__: Any) -> NoReturn:
    raise EntangleError("this body runs only in the process that has started the run")


def _what_cannot_travel(flow: Flow, error: Exception) -> Exception:
    for node in range(flow.count):
        first = flow.starts[node]
        for position, taken in enumerate(flow.inputs[first : flow.starts[node + 1]]):
            if taken < 0:
                try:
                    dumps_for_others(flow.constants[~taken])
                except Exception:
                    what = f"argument {argument_at(flow, node, first + position)} of task {flow.name(node)!r}"
                    refused = why_not(flow.constants[~taken], what, dumps_for_others)
                    note_call(refused, flow, node, call_in_short(flow, node))
                    return refused
    for body in flow.bodies:
        for what, part in body.made_of():
            try:
                dumps_for_others(part)
            except Exception:
                return why_not(part, f"{what} of task {body.name!r}", dumps_for_others)
    return EntangleError(f"the flow cannot be sent to a worker: {type(error).__name__}: {error}")


class NotJoined(Exception):
    """A worker has not joined its run: `code` is its exit status, 0 if the run is over."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def join_run(directory: str, flow_path: str, slot: int, lane: int, serial: int, fds: list[int], devices: list[str] | None = None) -> Worker:
    """Become a worker of the run in that directory, in a process not forked from its supervisor.
    `devices` are those that this process serves for life, brought up to date here.

    Raises NotJoined if the run is over, or if what it is made of cannot be unpickled here.
    """
    with importing.joining():
        try:
            with open(flow_path, "rb") as file:
                known = pickle.load(file)
                given = file.read()
            _take_on(known["state"], "before")
            table = Table.attach(os.path.join(directory, "table"))
        except FileNotFoundError:
            raise NotJoined(0) from None  # it has ended before we joined
        spill, store = _spill_of(known, directory), None
        if _BESIDE in (known["flow"][:1], given[:1]):
            store = Store(directory, table, slot, serial, spill)
        try:
            flow, serving = _flow_of(known, given, directory, table, slot, lane, store, devices=devices)
        except BaseException:
            if store is not None:
                store.close()
            raise
        wake, wake_threads, tell = (fds[0], fds[1]), (fds[2], fds[3]), fds[4]
        wake_devices = list(zip(fds[5::2], fds[6::2], strict=True))
        site = Site(flow, table, directory, known["home"], spill, wake, wake_threads, tell, wake_devices)
        if store is not None:
            site.stores.append(store)
            store.elsewhere = site.elsewhere
        return _worker_of(known, site, slot, lane, serial, serving, store)


def join_in_frame(described: bytes, told: int, given: bytes, frame: Frame, directory: str, slot: int, lane: int, serial: int) -> Worker:
    """Become a worker of a run that has begun in a frame. `described` is what its caller tells,
    empty if that has been `told` under this number; `given` are arguments beside it.

    Raises NotJoined if what the run is made of cannot be unpickled here.
    """
    with importing.joining():
        known, plan = (pickle.loads(described), None) if described else _known[told]
        site = frame.kept_site(alone=told > 0)
        frame.directory, frame.spill = directory, _spill_of(known, directory)
        table = site.table if site is not None else Table.seen_in(frame.memory, frame.table_fd)
        store = frame.store_for(table, slot, serial)
        try:
            _take_on(known["state"], "before")
            flow, serving = _flow_of(known, given, directory, table, slot, lane, store, plan)
        except BaseException:
            table.release()
            raise
        if told:
            _known[told] = known, flow.plan
        if site is None:
            site = Site(flow, table, directory, known["home"], frame.spill, frame.wake, (-1, -1), frame.tell)
            site.frame = frame
            site.stores.append(store)
            store.elsewhere = site.elsewhere
        else:
            site.begin_again(flow, directory, frame.spill)
        return _worker_of(known, site, slot, lane, serial, serving, store)


def _spill_of(known: dict[str, Any], directory: str) -> str:
    """The twin on disk of the directory of a run."""
    return os.path.join(known["home_spill"], os.path.basename(directory))


#: In a warm worker: what it was told under numbers, and the plans that were in it.
_known: dict[int, tuple[dict[str, Any], Flow | None]] = {}


def forget_told(number: int) -> None:
    """Forget what was told under this number; under all if it is negative."""
    if number < 0:
        _known.clear()
    else:
        _known.pop(number, None)


#: The home that this process has adopted last.
_home = ""
#: The caller's state that this process has taken on, pickled.
_state = b""
#: Whether a worker that stays must first put back what it began with, before it takes on another
#: state.
refuses_another_state = False


class AnotherState(Exception):
    """The caller's state is not the one that this process has taken on. Nothing has been done
    yet."""


def _take_on(state: bytes, when: str) -> None:
    """Take over the caller's state, unless this process has it already.

    Raises AnotherState if it has another one, and must not take on a second.
    """
    global _state
    if state == _state:
        return
    if when == "before":
        if _state and refuses_another_state:
            raise AnotherState
        _state = b""
    inheritance.take_on(pickle.loads(state), when)
    if when == "after":
        _state = state


def forget_state() -> None:
    """Note that the caller's state has been put back."""
    global _state
    _state = b""


def state_of_caller() -> bytes:
    """The caller's state that this process has taken on, pickled."""
    return _state


def _flow_of(
    known: dict[str, Any],
    given: bytes,
    directory: str,
    table: Table,
    slot: int,
    lane: int,
    store: Store | None,
    plan: Flow | None = None,
    devices: list[str] | None = None,
) -> tuple[Flow, Serving | None]:
    """The flow of the run that this process joins, and the devices that it serves, if any. With
    `plan`, all but the arguments are here already."""
    if os.environ.get("ENTANGLE_JOBSERVER") != known["jobserver"]:
        os.environ["ENTANGLE_JOBSERVER"] = known["jobserver"]
    library_threads.keep_to(known["shares"].each)  # before the caller's modules import any
    global _home
    if plan is None or _home != known["home"]:
        Home.adopt(known["home"], known["home_spill"])
        _home = known["home"]
    serving = None
    if lane >= DEVICE:  # before the flow is loaded, which imports modules of the user's
        claim, run = known["claims"][lane - DEVICE], os.path.basename(directory)[1:]
        serving = serve(lambda: devices_of(known["home"]), claim, known["visible"], run, table, slot, lane, devices)
        if serving is None:
            raise NotJoined(0)
    module_lookup.arrive(known["travelled"])
    within = ""
    pickled, buffers = _apart(known["flow"], store)
    arguments, beside = _apart(given, store)
    try:
        # A body may have loaded its module anew.
        flow: Flow = plan if plan is not None and plan.bodies[0].is_found() else pickle.loads(pickled, buffers=buffers)
        if known["plan"]:
            pickled, buffers, within = arguments, beside, ".constants"
            flow = flow.with_constants(pickle.loads(arguments, buffers=beside))
        _take_on(known["state"], "after")
    except BaseException as error:
        if serving is not None:
            serving.leave()  # this process may live on
        if _refuse(directory, error, pickled, buffers, within):
            raise NotJoined(BROKEN) from None
        raise
    return flow, serving


def _worker_of(
    known: dict[str, Any], site: Site, slot: int, lane: int, serial: int, serving: Serving | None, store: Store | None = None
) -> Worker:
    site.visible = known["visible"]
    if site.makeflags is None:
        site.makeflags = jobserver_flags(os.path.join(site.home, "budget"))
    offer_jobs(site)
    site.shares = known["shares"]
    worker = Worker(site, slot, lane, serial, store)
    worker.serving = serving
    return worker


def offer_jobs(site: Site) -> None:
    """Offer the CPUs of the process tree to programs that bodies start."""
    if site.makeflags is not None and os.environ.get("MAKEFLAGS") != site.makeflags:
        os.environ["MAKEFLAGS"] = site.makeflags


#: The message of the error while the part that cannot be unpickled is unknown; the supervisor
#: names that part.
_RUN = "what the run is made of cannot be unpickled in a worker"


def _refuse(directory: str, error: BaseException, pickled: bytes | memoryview, buffers: list[memoryview], within: str) -> bool:
    """Write down, for the supervisor, why a worker cannot join its run. Gives whether it did.

    The pickle is that of the flow, or of what lies `within` it.
    """
    told: BaseException | None = error
    while told is not None and not isinstance(told, RunAtImportError):
        told = told.__cause__ or told.__context__
    part: BrokenPart | None = None
    if told is None:
        part = failing_part(pickled, buffers) if isinstance(error, Exception) else None
        if part is not None and within:
            part = part._replace(steps=(within, *part.steps))
        told = unpickling_error(error, _RUN, part)
        told.__cause__ = error
    try:
        body = pickle.dumps({**describe(told, "", 1), "part": part}, 5)
        draft = os.path.join(directory, f"refused-{os.getpid()}")
        with open(draft, "xb", opener=private) as file:
            file.write(body)
        os.rename(draft, os.path.join(directory, "refused"))  # one report is as good as another
    except OSError:
        return False
    return True


def refusal(directory: str, flow: Flow) -> BaseException | None:
    """Why a worker could not join the run in that directory; None if none has said so."""
    try:
        with open(os.path.join(directory, "refused"), "rb") as file:
            report = pickle.load(file)
    except (OSError, EOFError):
        return None
    error: BaseException = pickle.loads(report["error"])
    part: BrokenPart | None = report["part"]
    whose = _whose(flow, part.steps) if part is not None else ""
    if part is not None and whose:
        why = str(error).partition(" raises ")[2]
        below = "".join(part.steps[2:])
        error = type(error)(f"{whose} cannot be unpickled in a worker: {part.kind}{f' at {below}' if below else ''} raises {why}")
    set_cause(error, RemoteTraceback(report["text"]))
    add_note(error, report["where"])
    return error


def _whose(flow: Flow, steps: tuple[str, ...]) -> str:
    """What the steps into a flow's pickle lead to, in its author's terms."""
    if len(steps) < 2 or not (steps[1].startswith("[") and steps[1][1:-1].isdigit()):
        return ""
    number = int(steps[1][1:-1])
    if steps[0] == ".bodies" and number < len(flow.bodies):
        return f"the function of task {flow.bodies[number].name!r}"
    if steps[0] == ".constants" and ~number in flow.inputs:
        node = bisect.bisect_right(flow.starts, flow.inputs.index(~number)) - 1
        return f"argument {argument_at(flow, node, flow.inputs.index(~number))} of {call_in_short(flow, node)}"
    return ""
