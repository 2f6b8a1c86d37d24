"""Dask distributed as an engine: a flow becomes a graph of Dask.

Each node is a task of Dask, and each edge one of its edges: its scheduler decides where a node
runs, and its workers hand values to each other. Large constants are scattered once. Workers tell
the caller of nodes by an event each few milliseconds.

Dask runs a task again when a worker is lost with it, or with its value. A plugin of the scheduler
refuses that for tasks that say neither `retry` nor `idempotent`: it puts an error in the place of
the body before Dask sends it out a second time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

from entangle._engines import dask_node
from entangle._engines.engine_run import News
from entangle._engines.node_task import Failed, stop, text_of_lost
from entangle._engines.reaching import why_unreachable
from entangle._engines.shipment import LONG_PLAN, Parcel, Shipment
from entangle.errors import (
    EntangleError,
    FarError,
    LinkLostError,
    OptionError,
    ProcessTerminatedException,
    UnfitPythonError,
    UnreachableError,
)
from entangle.flow import Flow

#: Seconds for the scheduler to answer.
_PATIENCE = 10.0
#: Seconds after which a cluster without workers is mentioned.
_NO_WORKERS = 10.0
#: The resource of workers that stands for GPUs.
_GPU = "GPU"
#: What ends the keys of tasks that may run once, and of those that may run again; then come the
#: connection (8 letters) and the run (16).
_ONCE, _AGAIN = "-EO", "-EA"
_SUFFIX = 3 + 8 + 16


def _plugin(name: str) -> Any:
    """The plugin of the scheduler. Its class travels by value: it is defined in a function."""
    from distributed.diagnostics.plugin import SchedulerPlugin

    once, suffix = _ONCE, _SUFFIX

    class NoSecondRun(SchedulerPlugin):  # type: ignore[misc, unused-ignore]
        idempotent = True

        def __init__(self) -> None:
            self.name = name
            self.begun: dict[Any, str] = {}

        async def start(self, scheduler: Any) -> None:
            self.scheduler = scheduler

        def transition(self, key: Any, start: Any, finish: Any, *args: Any, **kwargs: Any) -> None:
            if type(key) is not str or key[-suffix : -suffix + 3] != once:
                return
            if finish == "processing":
                where = self.scheduler.tasks[key].processing_on
                self.begun[key] = where.address if where is not None else "?"
            elif finish == "forgotten":
                self.begun.pop(key, None)
            elif finish == "waiting" and key in self.begun:
                self.refuse(key)

        def refuse(self, key: str) -> None:
            from dask._task_spec import Task

            name, node, _ = key[: -suffix + 3].rsplit("-", 2)
            topic, run, lost = f"entangle-{key[-24:-16]}", key[-16:], self.begun[key]

            def refused() -> Any:
                from entangle._engines.dask_node import refuse_second_run

                return refuse_second_run(topic, run, int(node), name, lost)

            task = self.scheduler.tasks[key]
            task.run_spec = Task(key, refused)
            self.scheduler.log_event(topic, ("lost", run, int(node), lost))

    return NoSecondRun()


class DaskEngine:
    """A Dask cluster, through a client of its own."""

    def __init__(self, address: str) -> None:
        self.title = f"Dask at {address}"
        self._address = address
        self._client: Any = None
        self._comm: Any = None
        self._pid = os.getpid()
        self._connection = os.urandom(4).hex()
        self._runs: dict[str, tuple[News, Callable[[int], str]]] = {}
        self._compared: set[str] = set()

    def open(self) -> None:
        """Connect. Raises UnreachableError, UnfitPythonError; EntangleError where Dask is not
        installed."""
        try:
            import distributed
        except ImportError as error:
            raise EntangleError(f"{self.title} needs Dask distributed here: pip install 'py-entangle[dask]' ({error})") from None
        if why := why_unreachable(self._address.partition("://")[2]):
            raise self._unreachable(why)
        self._client = client = object.__new__(distributed.Client)  # so that one that fails to begin can be closed
        try:
            client.__init__(self._address, timeout=_PATIENCE, set_as_default=False, name="entangle")
        except BaseException as error:
            self.close()
            if isinstance(error, (OSError, ValueError)):
                raise self._unreachable(str(error) or type(error).__name__) from None
            raise
        try:
            self._compare()
            self._client.register_plugin(_plugin(f"entangle-{_version()}"))
            self._client.subscribe_topic(self._topic, self._hear)
            self._comm = client.scheduler_comm
        except BaseException:
            self.close()
            raise

    def _unreachable(self, why: str) -> UnreachableError:
        return UnreachableError(f"no Dask scheduler answers at {self._address}: {why}; start one with: dask scheduler")

    def connected(self) -> bool:
        """Whether this is the connection that was opened.

        A client reconnects by itself, also to a scheduler that was restarted, which knows neither
        our plugin nor our topic.
        """
        client = self._client
        return client is not None and client.status == "running" and client.scheduler_comm is self._comm

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            with contextlib.suppress(Exception):
                client.close()

    @property
    def _topic(self) -> str:
        return f"entangle-{self._connection}"

    def _hear(self, event: tuple[float, Any]) -> None:
        """Called by the client's thread, for each event of our topic."""
        _, body = event
        kind, run, *rest = pickle.loads(body) if isinstance(body, bytes) else body
        known = self._runs.get(run)
        if known is None:
            return
        news, names = known
        if kind == "lost":
            node, worker = rest
            rest = [node, text_of_lost(names(node), worker)]
        news.put((kind, *rest))

    # Versions -------------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Compare the versions of the scheduler, and of workers that are new, with ours.

        First by what Dask itself says of them: functions must not travel between versions.
        """
        client, here = self._client, sys.version_info[:2]
        found = client.get_versions(check=False)
        there = {"scheduler": found["scheduler"], **found["workers"]}
        new = {address: about for address, about in there.items() if address not in self._compared and about}
        for address, about in new.items():
            python = str(about["host"]["python"])
            if tuple(int(part) for part in python.split(".")[:2]) != here:
                whose = "the scheduler" if address == "scheduler" else f"the worker {address}"
                raise UnfitPythonError(
                    f"{self.title}: {whose} runs Python {'.'.join(python.split('.')[:3])}, and this is Python "
                    f"{'.'.join(map(str, sys.version_info[:3]))}; functions travel only between equal versions (3.x)"
                )
        for whose, ask in (("scheduler", client.run_on_scheduler), ("workers", client.run)):
            if whose == "scheduler" and "scheduler" not in new:
                continue
            try:
                answer = ask(_ask)
            except ModuleNotFoundError as error:
                raise self._lacks(f"the {whose}", error) from None
            for address, said in (answer if whose == "workers" else {"scheduler": answer}).items():
                if said != _version():
                    where = f"the worker {address}" if whose == "workers" else "the scheduler"
                    if said is None:
                        raise self._lacks(where, ModuleNotFoundError("py-entangle"))
                    raise UnfitPythonError(
                        f"{self.title}: {where} has entangle {said}, and here it is {_version()}; install one version on all of them"
                    )
        self._compared.update(there)

    def _lacks(self, whose: str, error: Exception) -> FarError:
        return UnfitPythonError(f"{self.title}: {whose} cannot import entangle ({error}); install it there: pip install py-entangle")

    # Runs -----------------------------------------------------------------------------------------

    def begin(self, shipment: Shipment, wanted: Sequence[int], news: News, run: str) -> DaskJob:
        """Begin a run whose caller wants the values of these nodes."""
        client = self._client
        if not self.connected():
            raise LinkLostError(f"{self.title}: the connection to the scheduler is lost")
        if not self._compared.issuperset(client.scheduler_info(n_workers=-1)["workers"]):
            self._compare()
        self._refuse(shipment.flow)
        self._runs[run] = news, shipment.flow.name
        try:
            return DaskJob(self, client, shipment, wanted, news, run)
        except BaseException:
            self.forget(run)
            raise

    def _refuse(self, flow: Flow) -> None:
        """Raise OptionError for GPUs that no worker has: Dask would wait for such a worker."""
        wanting = [body for body in map(flow.bodies.__getitem__, flow.bodies_used()) if body.gpus]
        if not wanting:
            return
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        most = max((worker["resources"].get(_GPU, 0) for worker in workers), default=0)
        for body in wanting:
            if body.gpus / body.share > most:
                raise OptionError(
                    f"task {body.name!r}: gpus={body.gpus}, and no worker of {self.title} says that it has as many (at most {most:g}); "
                    f'start workers that say so: dask worker … --resources "{_GPU}={body.gpus}"'
                )

    def forget(self, run: str) -> None:
        """Tell nobody of this run any more."""
        self._runs.pop(run, None)

    @property
    def topic(self) -> str:
        """The topic of the events that workers send to this caller."""
        return self._topic

    @property
    def connection(self) -> str:
        """What tells this connection from others, 8 letters."""
        return self._connection


def _version() -> str:
    """The version of entangle here."""
    return str(sys.modules["entangle"].__version__)


def _ask() -> Any:
    """The version of entangle; None where it is missing. Travels by value."""
    try:
        return __import__("entangle").__version__
    except ImportError:
        return None


async def _stop_there(run: str) -> None:
    """Called on each worker. Of what is no coroutine, Dask would wait for the end."""
    stop(run)


async def _tell_when_done(future: Any, node: int, news: News) -> None:
    """Called by the client's thread. A callback of the future would keep a thread for good."""
    await future._state.wait()
    news.put(("done", node))


def _on_gpus(graph: dict[str, Any], on_gpus: dict[float, list[str]]) -> Any:
    """A graph of Dask in which these tasks need GPUs, as many as the key says, by the name that
    Dask's documentation gives to this resource of workers."""
    from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

    layers: dict[str, Any] = {}
    for count, keys in on_gpus.items():
        layers[f"gpus-{count}"] = MaterializedLayer({key: graph.pop(key) for key in keys}, annotations={"resources": {_GPU: count}})
    layers["others"] = MaterializedLayer(graph)
    return HighLevelGraph(layers, {name: set() for name in layers})


class DaskJob:
    """The nodes of a run on a Dask cluster."""

    def __init__(self, engine: DaskEngine, client: Any, shipment: Shipment, wanted: Sequence[int], news: News, run: str) -> None:
        self._engine, self._client, self._run, self._news = engine, client, run, news
        self._flow = flow = shipment.flow
        self._wanted = frozenset(wanted)
        self._plans = shipment.plans
        self._end = end = f"{engine.connection}{run}"
        self._keys = {
            parcel.node: f"{flow.body(parcel.node).name}-{parcel.node}{_AGAIN if flow.body(parcel.node).repeatable else _ONCE}{end}"
            for parcel in shipment.parcels
        }
        large = {f"entangle-constant-{number}{_AGAIN}{end}": value for number, value in shipment.large.items()}
        #: Held until the run is over: the cluster forgets what nobody holds.
        self._scattered = client.scatter(large, hash=False) if large else {}
        #: Nodes whose values are held, by futures: those that the caller wants, and those that
        #: nodes take which come later.
        self._futures: dict[int, Any] = {}
        self._kept: dict[int, Any] = {}
        self._without_workers = 0.0
        self._looked = time.monotonic()

    def send(self, parcels: Sequence[Parcel], kept: Collection[int], urgent: bool) -> None:
        """Send nodes."""
        from dask._task_spec import DataNode, Task, TaskRef

        engine, run, end = self._engine, self._run, self._end
        graph: dict[str, Any] = {}
        #: Keys of tasks by how many GPUs they need.
        on_gpus: dict[float, list[str]] = {}
        for node, which, payload, sources, constants in parcels:
            key, plan, body = self._keys[node], self._plans[which], self._flow.body(node)
            if len(plan) > LONG_PLAN:
                named = f"entangle-plan-{which}{_AGAIN}{end}"
                graph[named] = DataNode(named, plan)
                plan = TaskRef(named)
            inputs = [TaskRef(self._keys[source]) for source in sources]
            inputs += [TaskRef(f"entangle-constant-{number}{_AGAIN}{end}") for number in constants]
            at_once = urgent or node in self._wanted
            graph[key] = Task(key, dask_node.run_on_dask, engine.topic, run, node, at_once, plan, payload, *inputs)
            if body.gpus:
                on_gpus.setdefault(body.gpus / body.share, []).append(key)
        self._submit(_on_gpus(graph, on_gpus) if on_gpus else graph, [parcel.node for parcel in parcels], kept)

    def _submit(self, graph: Any, nodes: Sequence[int], kept: Collection[int]) -> None:
        client = self._client
        held = [node for node in nodes if node in self._wanted or node in kept]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            found = client.get(graph, [self._keys[node] for node in held], sync=False)
        for node, future in zip(held, found, strict=True):
            if node in kept:
                self._kept[node] = future
            if node in self._wanted:
                self._futures[node] = future
                client.loop.add_callback(_tell_when_done, future, node, self._news)

    def give(self, node: int, value: Failed) -> None:
        """Have this in the place of the value of a node."""
        from dask._task_spec import DataNode

        key = self._keys[node]
        self._submit({key: DataNode(key, value)}, [node], [node])

    def drop(self, nodes: Sequence[int]) -> None:
        """Hold the values of these for the caller alone."""
        for node in nodes:
            self._kept.pop(node, None)

    def look(self) -> None:
        """Raise LinkLostError if the scheduler is gone. Logs that there are no workers."""
        if not self._engine.connected():
            raise LinkLostError(f"{self._engine.title}: the connection to the scheduler was lost while the run was under way")
        now = time.monotonic()
        if now - self._looked < 1.0:
            return
        self._looked = now
        if self._client.scheduler_info(n_workers=-1)["workers"]:
            self._without_workers = 0.0
        elif not self._without_workers:
            self._without_workers = now
        elif now - self._without_workers > _NO_WORKERS:
            self._without_workers = now + 3600
            logging.getLogger("entangle").warning("%s has no workers: the run waits for some", self._engine.title)

    def values(self, nodes: Sequence[int]) -> list[Any]:
        """The values of these nodes, which are done."""
        try:
            values: list[Any] = self._client.gather([self._futures[node] for node in nodes])
            return values
        except Exception as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> Exception:
        """An error of Dask in our words."""
        title = self._engine.title
        if type(error).__name__ == "KilledWorker":
            node = next((node for node, key in self._keys.items() if key == error.args[0]), -1)
            name = self._flow.name(node) if node >= 0 else str(error.args[0])
            return ProcessTerminatedException(
                f"task {name!r}: {error.args[2] + 1} workers of {title} died one after the other while they had it, the last one "
                f"{getattr(error.args[1], 'address', error.args[1])}"
            )
        if self._client.status != "running" or type(error).__name__ in ("FutureCancelledError", "CancelledError", "FuturesCancelledError"):
            return LinkLostError(f"{title} has dropped the run: {error}")
        return EntangleError(f"{title} could not run the graph: {type(error).__name__}: {error}")

    def stop(self) -> None:
        """Drop what has not begun, and stop what runs, as far as that is possible."""
        client = self._client
        if client.status != "running":
            return
        with contextlib.suppress(Exception):
            client.cancel([*self._futures.values(), *self._kept.values()], force=True)
        with contextlib.suppress(Exception):
            client.run(_stop_there, self._run, wait=False)

    def end(self) -> None:
        """Let the cluster forget the run."""
        self._engine.forget(self._run)
        for future in (*self._futures.values(), *self._kept.values(), *self._scattered.values()):
            with contextlib.suppress(Exception):
                future.release()
        self._futures, self._kept, self._scattered = {}, {}, {}
