"""Ray as an engine: each node of a flow is a task of Ray, each edge a reference to an object.

Ray's scheduler decides where a node runs, and its object store moves values. What the caller is
told of nodes comes by an inbox (`ray_inbox.py`), and not by the values, which stay there. Of a
worker that is gone nothing comes: now and then the caller asks which nodes have ended without a
word.

Ray runs a task again when its worker or its value is lost. `max_retries=0` keeps it from that, for
tasks that say neither `retry` nor `idempotent`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from entangle._engines import ray_node
from entangle._engines.engine_run import News
from entangle._engines.node_task import Failed, text_of_lost
from entangle._engines.ray_inbox import Letter, RayInbox
from entangle._engines.reaching import why_unreachable
from entangle._engines.shipment import LONG_PLAN, Parcel, Shipment
from entangle._worker.failures import describe
from entangle.errors import EntangleError, LinkLostError, OptionError, ProcessTerminatedException, UnfitPythonError, UnreachableError

#: A head starts a server for each client, and gives it up where that takes long on a busy machine.
_NO_SERVER, _TRIES = ("Starting Ray client server failed", "start_specific_server"), 3
#: How often Ray may run a task again that may run again, after it was lost.
_AGAIN = 5
#: Seconds for the first worker to answer.
_PATIENCE = 60.0
#: Seconds between two looks for nodes that were lost; longer where that is asked of many.
_ASKS = 0.25
#: Seconds between two looks whether the head is there; for the end of a connection to one that is
#: not.
_EVERY, _SHUT_DOWN = 1.0, 5.0


class RayEngine:
    """A Ray cluster. A process is connected to one at a time."""

    def __init__(self, address: str) -> None:
        self.title = "Ray" if address == "auto" else f"Ray at {address.removeprefix('ray://')}"
        self._address = address
        self._ours = False
        #: Whether the cluster did not answer any more when it was last looked for.
        self.lost = False
        self._settings = contextlib.ExitStack()
        self._inbox: RayInbox | None = None
        self._functions: dict[Any, Any] = {}
        self._jobs: dict[str, RayJob] = {}

    def open(self) -> None:
        """Connect, unless this process is connected. Raises UnreachableError, UnfitPythonError;
        EntangleError where Ray is not installed."""
        try:
            import ray
        except ImportError as error:
            raise EntangleError(f"{self.title} needs Ray here: pip install 'py-entangle[ray]' ({error})") from None
        if ray.is_initialized():
            if self._address != "auto":
                raise OptionError(
                    f'{self.title}: this process is connected to Ray already, and it can be to one cluster at a time; write engine("ray")'
                )
        else:
            self._connect(ray)
        try:
            self._inbox = RayInbox(ray, self._hear, self._hears_no_more)
            self._compare(ray)
        except BaseException:
            self.close()
            raise

    def _connect(self, ray: Any) -> None:
        if self._address != "auto" and (why := why_unreachable(self._address.removeprefix("ray://"))):
            raise self._unreachable(why)
        try:
            self._join(ray)
        except BaseException as error:
            with contextlib.suppress(Exception):
                ray.shutdown()  # else it counts as connected
            if isinstance(error, RuntimeError) and "ersion mismatch" in str(error):
                raise UnfitPythonError(f"{self.title} runs other versions than this program: {error}") from None
            if isinstance(error, (RuntimeError, ConnectionError, ValueError, TimeoutError)):
                raise self._unreachable(str(error) or type(error).__name__) from None
            raise
        self._ours = True
        # Where a connection is lost, Ray would start a cluster of its own with the next use of it.
        self._settings.enter_context(_with_settings(RAY_ENABLE_AUTO_CONNECT="0"))

    def _join(self, ray: Any) -> None:
        for left in reversed(range(_TRIES)):
            try:
                with _with_settings(RAY_USAGE_STATS_ENABLED="0"):
                    ray.init(self._address, configure_logging=False, namespace=f"entangle-{os.urandom(4).hex()}")
                return
            except (RuntimeError, ConnectionError) as error:
                if not left or not any(said in str(error) for said in _NO_SERVER):
                    raise
            with contextlib.suppress(Exception):
                ray.shutdown()

    def _unreachable(self, why: str) -> UnreachableError:
        return UnreachableError(f"no {self.title} answers: {why}; start one with: ray start --head")

    def _compare(self, ray: Any) -> None:
        """Compare the version of entangle on some worker; Ray itself has compared those of Python.

        Each worker is asked again by its first node: `ray_node.function_for`."""
        try:
            ray.get(self.function("entangle", 0, 0, cpus=0).remote(), timeout=_PATIENCE)
        except ray.exceptions.GetTimeoutError:
            raise UnreachableError(
                f"{self.title}: no worker answers within {_PATIENCE:g} s; ray status shows whether nodes are there and have free CPUs"
            ) from None
        except Exception as error:
            if unfit := self.unfit(error):
                raise unfit from None
            raise EntangleError(f"{self.title}: no task can be run: {type(error).__name__}: {error}") from None

    def unfit(self, error: BaseException) -> UnfitPythonError | None:
        """The error of a worker that has another version of entangle, or none; else None."""
        _, found, told = str(error).partition(ray_node.UNFIT)
        if not found:
            return None
        there, python, host = told.partition("\n")[0].split("|")
        has = f"entangle {there}" if there else "no entangle"
        return UnfitPythonError(
            f"{self.title}: a worker on {host} has {has} ({python}), and here it is entangle {_version()}; "
            f"install one version on all of them: pip install py-entangle=={_version()}"
        )

    def connected(self) -> bool:
        """Whether Ray still holds the connection. What it has given up, it never takes up again."""
        import ray

        return not self.lost and self._inbox is not None and bool(ray.is_initialized())

    def close(self) -> None:
        """Disconnect, where `open` has connected. Runs that are under way have lost it then."""
        was_lost, self.lost = self.lost or not self.connected(), True
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            inbox.close(_SHUT_DOWN)
        self._functions = {}
        if self._ours:
            import ray

            self._ours = False
            # Where the cluster is gone, it may wait for long.
            ending = threading.Thread(target=_shut_down, args=(ray,), name="entangle-ray-shutdown", daemon=True)
            ending.start()
            ending.join(_SHUT_DOWN if was_lost else None)
            if was_lost:
                _leave_to_itself()
            self._settings.close()

    def is_gone(self, ray: Any) -> bool:
        """Whether the connection is lost, or the head does not answer any more."""
        if self.lost:
            return True
        address = self._address.removeprefix("ray://")
        if ray.is_initialized() and address == "auto":
            address = ray.get_runtime_context().gcs_address
        self.lost = not ray.is_initialized() or bool(why_unreachable(address))
        return self.lost

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Raise LinkLostError in place of what a lost connection makes Ray raise. What serves a
        client may be gone while the head is there: Ray never connects to another one by itself."""
        try:
            yield
        except Exception as error:
            if not _of_connection(error):
                raise
            self.lost = True
            raise LinkLostError(f"{self.title}: the connection was lost while the run was under way: {_in_short(error)}") from None

    def begin(self, shipment: Shipment, wanted: Sequence[int], news: News, run: str) -> RayJob:
        """Begin a run whose caller wants the values of these nodes."""
        import ray

        if not self.connected():
            raise LinkLostError(f"{self.title}: the connection is lost")
        with self.asking():
            return RayJob(self, ray, shipment, wanted, news, run)

    def expect(self, run: str, job: RayJob) -> None:
        """Have a run hear what is told of it."""
        self._jobs[run] = job

    def forget(self, run: str) -> None:
        """Tell nobody of this run any more."""
        self._jobs.pop(run, None)

    def _hear(self, letter: Letter) -> None:
        """Called by the thread of the inbox."""
        run, worker, items = letter
        job = self._jobs.get(run)
        if job is not None:
            job.hear(worker, items)

    def _hears_no_more(self, error: BaseException) -> None:
        """Called by the thread of the inbox, when that is gone."""
        self.lost = True
        for job in list(self._jobs.values()):
            job.broken(LinkLostError(f"{self.title}: what workers tell of the run does not come any more: {type(error).__name__}: {error}"))

    def function(self, name: str, again: int, gpus: float, cpus: int = 1) -> Any:
        """The function of Ray for nodes of this name."""
        key = name, again, gpus, cpus
        found = self._functions.get(key)
        if found is None:
            import ray

            assert self._inbox is not None
            made = self._functions.get(())
            if made is None:
                made = self._functions[()] = ray.remote(ray_node.function_for(self._inbox.name, _version()))
            options = {"num_gpus": gpus} if gpus else {}
            found = self._functions[key] = made.options(name=name, num_cpus=cpus, max_retries=again, **options)
        return found


class RayJob:
    """The nodes of a run on a Ray cluster."""

    def __init__(self, engine: RayEngine, ray: Any, shipment: Shipment, wanted: Sequence[int], news: News, run: str) -> None:
        self._engine, self._ray, self._news, self._run = engine, ray, news, run
        self._flow = shipment.flow
        self._wanted = frozenset(wanted)
        self._parcels = {parcel.node: parcel for parcel in shipment.parcels}
        #: For each node its value, by reference.
        self._values: dict[int, Any] = {}
        #: Nodes of which nothing was told yet; and those of them that had ended at the last look.
        self._left: set[int] = set()
        self._ended: frozenset[int] = frozenset()
        #: Nodes whose values are others than those that their first takers were given; and how many
        #: there were when a node was submitted.
        self._replaced: dict[int, int] = {}
        self._made: dict[int, int] = {}
        self._looked = self._asked = time.monotonic()
        self._asks = _ASKS
        self._urgent = False
        self._large = {number: ray.put(value) for number, value in shipment.large.items()}
        self._plans = [ray.put(plan) if len(plan) > LONG_PLAN else plan for plan in shipment.plans]
        engine.expect(run, self)

    def send(self, parcels: Sequence[Parcel], kept: Collection[int], urgent: bool) -> None:
        """Send nodes. All values are held until the run is over."""
        self._urgent = urgent
        with self._engine.asking():
            for parcel in parcels:
                self._submit(parcel)

    def give(self, node: int, value: Failed) -> None:
        """Have this in the place of the value of a node."""
        with self._engine.asking():
            self._values[node] = self._ray.put(value)
        if node in self._wanted:
            self._news.put(("done", node))

    def drop(self, nodes: Sequence[int]) -> None:
        """Nothing: a value that is lost may be wanted again."""

    def _submit(self, parcel: Parcel) -> None:
        node, body = parcel.node, self._flow.body(parcel.node)
        again = max(_AGAIN, body.retry) if body.repeatable else 0
        function = self._engine.function(body.name, again, body.gpus / body.share if body.gpus else 0)
        inputs = [self._values[source] for source in parcel.sources] + [self._large[number] for number in parcel.constants]
        plan = self._plans[parcel.plan]
        if type(plan) is not bytes:
            inputs.insert(0, plan)
            plan = b""
        told = ray_node.packed(self._run, node, self._urgent or node in self._wanted, plan, parcel.payload)
        self._left.add(node)
        self._made[node] = len(self._replaced)
        self._values[node] = function.remote(told, *inputs)

    def hear(self, worker: str, items: list[tuple[Any, ...]]) -> None:
        """Pass on what a worker tells. Called by the thread of the inbox."""
        self._news.put(("heard", worker, items))
        for item in items:
            if item[0] == "told":
                node = item[1][0]
                self._left.discard(node)
                if node in self._wanted:
                    self._news.put(("done", node))

    def broken(self, error: Exception) -> None:
        """Have the run end. From any thread."""
        self._news.put(("broken", error))

    def _look_for_losses(self, now: float) -> None:
        """Find nodes that have ended without a word: their workers are gone, or could not begin."""
        left = sorted(self._left)
        if not left:
            return
        ended, _ = self._ray.wait([self._values[node] for node in left], num_returns=len(left), timeout=0, fetch_local=False)
        known = set(ended)
        before, self._ended = self._ended, frozenset(node for node in left if self._values[node] in known)
        # Of one that had ended at the last look, what is told should be here by now.
        for node in sorted(before & self._ended & self._left):
            value = self._values[node]
            try:
                self._ray.get(value)
            except Exception as error:
                if _of_connection(error):
                    raise
                self._lost(node, self._made[node], error)
                continue
            # Its worker died when it had a value, and before it could tell.
            self._left.discard(node)
            if node in self._wanted:
                self._news.put(("done", node))
        self._asked = time.monotonic()
        self._asks = max(_ASKS, 20 * (self._asked - now))

    def _lost(self, node: int, made: int, error: BaseException) -> None:
        """Ray has no value of a node: its worker is gone, or that of a node that it takes."""
        parcel = self._parcels[node]
        if any(self._replaced.get(source, -1) >= made for source in parcel.sources):
            self._replaced[node] = len(self._replaced)
            self._submit(parcel)
            return
        self._left.discard(node)
        if unfit := self._engine.unfit(error):
            self.broken(unfit)
            return
        name = self._flow.name(node)
        cause = getattr(error, "cause", None) or error
        exceptions = self._ray.exceptions
        if not isinstance(
            cause,
            (exceptions.WorkerCrashedError, exceptions.ObjectLostError, exceptions.NodeDiedError, exceptions.OutOfMemoryError),
        ):
            gone = _of_connection(cause) or isinstance(cause, (exceptions.LocalRayletDiedError, exceptions.RaySystemError))
            kind = LinkLostError if gone else EntangleError
            self.broken(kind(f"{self._engine.title} could not run task {name!r}: {type(error).__name__}: {error}"))
            return
        said = str(cause).strip().partition("\n")[0]
        text = f"{text_of_lost(name, '')} ({self._engine.title}: {type(cause).__name__}: {said})"
        if self._flow.guarded is None or not self._flow.guarded[node]:
            self._news.put(("lost", node, text))
            return
        lost = ProcessTerminatedException(text)
        report = {**describe(lost, name, 1, ""), "path": "", "text": ""}
        self._replaced[node] = len(self._replaced)
        self._values[node] = self._ray.put(Failed(node, report))
        self._news.put(("failed", node, report))
        if node in self._wanted:
            self._news.put(("done", node))

    def look(self) -> None:
        """Raise LinkLostError if the cluster is gone. Ray itself would wait for a minute, and then
        end this process."""
        now = time.monotonic()
        connected = self._engine.connected()
        if now - self._asked >= self._asks and connected:
            with self._engine.asking():
                self._look_for_losses(now)
        if now - self._looked < _EVERY and connected:
            return
        self._looked = now
        if self._engine.is_gone(self._ray):
            raise LinkLostError(f"{self._engine.title}: the connection was lost while the run was under way")

    def values(self, nodes: Sequence[int]) -> list[Any]:
        """The values of these nodes, which are done."""
        if not self._engine.connected():
            raise LinkLostError(f"{self._engine.title}: the connection was lost while the run was under way")
        try:
            with self._engine.asking():
                values: list[Any] = self._ray.get([self._values[node] for node in nodes])
            return values
        except LinkLostError:
            raise
        except self._ray.exceptions.ObjectLostError as error:
            raise ProcessTerminatedException(f"{self._engine.title} has lost a value of the run: {error}") from None
        except Exception as error:
            raise EntangleError(f"{self._engine.title} cannot give a value of the run: {type(error).__name__}: {error}") from error

    def stop(self) -> None:
        """Drop what has not begun, and raise KeyboardInterrupt in bodies that run. To kill their
        workers might end tasks of others, which these have taken meanwhile."""
        self._engine.forget(self._run)
        for node in sorted(self._left, reverse=True):
            if not self._engine.connected():
                return
            try:
                self._ray.cancel(self._values[node])
            except Exception as error:
                if _of_connection(error):
                    return
                continue  # it has ended meanwhile

    def end(self) -> None:
        """Let the cluster forget the run."""
        self._engine.forget(self._run)
        self._values, self._large, self._plans, self._left = {}, {}, [], set()


def _of_connection(error: BaseException) -> bool:
    """Whether an error of Ray means that the connection is lost. A client gets those of gRPC."""
    return isinstance(error, ConnectionError) or any(kind.__module__.partition(".")[0] == "grpc" for kind in type(error).__mro__)


def _in_short(error: BaseException) -> str:
    """An error of Ray in a line; those of gRPC say of themselves much that is of use to nobody."""
    details = getattr(error, "details", None)
    said = str(details() if callable(details) else error).strip().partition("\n")[0]
    return f"{type(error).__name__.lstrip('_')}: {said}" if said else type(error).__name__.lstrip("_")


def _leave_to_itself() -> None:
    """Have Ray tell nothing to a cluster that is gone, at an error or at the end of the program: it
    would wait for an answer for minutes."""
    worker: Any = sys.modules.get("ray._private.worker")
    if worker is None:
        return
    if sys.excepthook is getattr(worker, "custom_excepthook", None):
        sys.excepthook = worker.normal_excepthook
    atexit.unregister(worker.shutdown)


def _shut_down(ray: Any) -> None:
    with contextlib.suppress(Exception):
        ray.shutdown()


@contextlib.contextmanager
def _with_settings(**settings: str) -> Iterator[None]:
    """Have these variables in the environment during the block, unless they are there."""
    missing = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def _version() -> str:
    """The version of entangle here."""
    return str(sys.modules["entangle"].__version__)
