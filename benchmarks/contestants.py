"""The contestants: entangle with each way to start workers, its peers, and references.

A contestant turns a function into something that can be called to build a graph (``task``), and
gets the value of what was built (``value``), each as the peer's documentation tells its users. A
peer is imported when it starts: so only the process that needs it pays for it, and the others run
without it.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from importlib import import_module
from typing import Any, ClassVar

from benchmarks import work


class Contestant:
    """A library that runs graphs of tasks."""

    name: ClassVar[str]
    short: ClassVar[str]
    distribution: ClassVar[str | None] = None
    """What to look up the version of; ``None`` for what comes with Python or with this project."""
    waits_for_children: ClassVar[bool] = True
    """Whether the CPU time of its processes can be told: the kernel drops it if none waits."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def start(self) -> None:
        """Start what stays up between runs, and wait until it is ready. No figure counts this."""

    def stop(self) -> None:
        """End everything that was started."""

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give the contestant's form of a function: calling it builds, or submits, one task."""
        raise NotImplementedError

    def value(self, built: Any) -> Any:
        """Run what was built and give its value."""
        raise NotImplementedError

    def stream(self, stages: Sequence[Callable[[Any], Any]], items: Iterable[Any]) -> Iterator[Any]:
        """Push items through one function after the other; give what comes out, in order."""
        raise NotImplementedError

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """Give the values of a function for many items, in order, as the documentation does it."""
        raise NotImplementedError

    def map_in_chunks(self, function: Callable[..., Any], items: Sequence[Any], size: int) -> list[Any]:
        """The same, with so many items sent at a time."""
        raise NotImplementedError

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function once, in another process, and give its value."""
        return self.value(self.task(function)(*args))


# ------------------------------------------------------------------ ours


class Entangle(Contestant):
    """entangle with its defaults: it chooses how to start workers."""

    name = "entangle"
    short = "entangle"
    way: ClassVar[str] = "auto"

    def start(self) -> None:
        os.environ["ENTANGLE_RECORD"] = "0"  # P13 has what recording costs
        self.decorated: Any = import_module("benchmarks.decorated")

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        decorated: Callable[..., Any] = getattr(self.decorated, function.__name__)
        return decorated

    def value(self, built: Any) -> Any:
        return built(start=self.way)

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        values: list[Any] = self.value(self.task(function).map(items))  # type: ignore[attr-defined]
        return values

    def stream(self, stages: Sequence[Callable[[Any], Any]], items: Iterable[Any]) -> Iterator[Any]:
        dataflow: Any = import_module("entangle.dataflow").dataflow
        flow: Any = None
        for stage in reversed(stages):
            flow = dataflow(self.task(stage))(*(() if flow is None else (flow,)))
        for (value,) in flow.stream(items, start=self.way):
            yield value


class EntangleFork(Entangle):
    """entangle; each run forks its workers from the caller."""

    name = "entangle by fork"
    short = "fork"
    way = "fork"


class EntangleForkserver(Entangle):
    """entangle; workers come from a server that an earlier run has started."""

    name = "entangle by forkserver"
    short = "forkserver"
    way = "forkserver"


# ------------------------------------------------------------------ references


class OneProcess(Contestant):
    """The same lines called one after the other in one process: no tasks at all."""

    name = "one process"
    short = "one process"

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def value(self, built: Any) -> Any:
        return built


class BareFork(Contestant):
    """A bare ``os.fork`` for each CPU, with the leaves dealt out beforehand: the best that the
    machine can do at the moment.

    It can run one shape alone: leaves and their sum.
    """

    name = "bare forks"
    short = "bare forks"

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: Node(function, args)

    def value(self, built: Any) -> Any:
        pipes: list[int] = []
        children: list[int] = []
        for hand in range(self.workers):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                mine = [leaf.function(*leaf.args) for leaf in built.args[hand :: self.workers]]
                os.write(writer, str(sum(mine)).encode())
                os._exit(0)
            os.close(writer)
            pipes.append(reader)
            children.append(child)
        sums = [int(os.read(reader, 64)) for reader in pipes]
        for child in children:
            os.waitpid(child, 0)
        for reader in pipes:
            os.close(reader)
        return sum(sums)


# ------------------------------------------------------------------ peers


class Node:
    """A task of a peer without graphs: as its users must, this runs them by hand."""

    __slots__ = ("args", "function", "value")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.value: Any = None

    def arguments(self) -> list[Any]:
        """Give the arguments with the values of the tasks among them."""
        return [arg.value if type(arg) is Node else arg for arg in self.args]


def in_order(root: Node) -> list[Node]:
    """Give ``root`` and the tasks below it, every task after those whose values it takes."""
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((arg, False) for arg in node.args if type(arg) is Node)
    return order


def in_waves(root: Node) -> list[list[Node]]:
    """Give the tasks as waves: those of a wave need only values of earlier waves."""
    depth: dict[int, int] = {}
    waves: list[list[Node]] = []
    for node in in_order(root):
        below = [depth[id(arg)] for arg in node.args if type(arg) is Node]
        mine = depth[id(node)] = 1 + max(below) if below else 0
        if mine == len(waves):
            waves.append([])
        waves[mine].append(node)
    return waves


class Futures(Contestant):
    """``concurrent.futures.ProcessPoolExecutor``: a task is submitted when the last
    of its arguments is there."""

    name = "concurrent.futures"
    short = "futures"

    def start(self) -> None:
        self.pool = ProcessPoolExecutor(self.workers)
        for future in [self.pool.submit(work.pause, i, 0.05) for i in range(2 * self.workers)]:
            future.result()

    def stop(self) -> None:
        self.pool.shutdown()

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: Node(function, args)

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        return list(self.pool.map(function, items))

    def map_in_chunks(self, function: Callable[..., Any], items: Sequence[Any], size: int) -> list[Any]:
        return list(self.pool.map(function, items, chunksize=size))

    def stream(self, stages: Sequence[Callable[[Any], Any]], items: Iterable[Any]) -> Iterator[Any]:
        values: Iterable[Any] = items
        for stage in stages:
            values = self.pool.map(stage, values)
        return iter(values)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(function, *args).result()

    def value(self, built: Any) -> Any:
        nodes = in_order(built)
        consumers: dict[Node, list[Node]] = {node: [] for node in nodes}
        pending: dict[Node, int] = {}
        for node in nodes:
            inputs = [arg for arg in node.args if type(arg) is Node]
            pending[node] = len(inputs)
            for one in inputs:
                consumers[one].append(node)
        finished: queue.SimpleQueue[tuple[Node, Future[Any]]] = queue.SimpleQueue()

        def submit(node: Node) -> None:
            future = self.pool.submit(node.function, *node.arguments())
            future.add_done_callback(lambda done: finished.put((node, done)))

        for node in nodes:
            if not pending[node]:
                submit(node)
        for _ in nodes:
            node, future = finished.get()
            node.value = future.result()
            for consumer in consumers[node]:
                pending[consumer] -= 1
                if not pending[consumer]:
                    submit(consumer)
        return built.value


class Joblib(Contestant):
    """joblib with its default processes (loky), one ``Parallel`` call
    for each wave of the graph."""

    name = "joblib"
    short = "joblib"
    distribution = "joblib"
    backend: ClassVar[str] = "loky"

    def start(self) -> None:
        joblib: Any = import_module("joblib")
        self.delayed = joblib.delayed
        self.parallel = joblib.Parallel(n_jobs=self.workers, backend=self.backend).__enter__()
        self.parallel([self.delayed(work.pause)(i, 0.05) for i in range(2 * self.workers)])

    def stop(self) -> None:
        self.parallel.__exit__(None, None, None)
        executors: Any = import_module("joblib.externals.loky")
        executors.get_reusable_executor().shutdown(wait=True)

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: Node(function, args)

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        values: list[Any] = self.parallel([self.delayed(function)(item) for item in items])
        return values

    def value(self, built: Any) -> Any:
        for wave in in_waves(built):
            values = self.parallel([self.delayed(node.function)(*node.arguments()) for node in wave])
            for node, value in zip(wave, values, strict=True):
                node.value = value
        return built.value


def apply(function: Callable[..., Any], arguments: list[Any]) -> Any:
    """Call a function. A pool that maps one function maps this one when the tasks differ."""
    return function(*arguments)


class Mpire(Contestant):
    """mpire with forked workers that it keeps, one ``map`` for each wave of the graph."""

    name = "mpire"
    short = "mpire"
    distribution = "mpire"

    def start(self) -> None:
        mpire: Any = import_module("mpire")
        self.pool = mpire.WorkerPool(n_jobs=self.workers, start_method="fork", keep_alive=True)
        self._map([(work.pause, [i, 0.05]) for i in range(2 * self.workers)])

    def stop(self) -> None:
        self.pool.stop_and_join()

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        values: list[Any] = self.pool.map(function, items)
        return values

    def map_in_chunks(self, function: Callable[..., Any], items: Sequence[Any], size: int) -> list[Any]:
        values: list[Any] = self.pool.map(function, items, chunk_size=size)
        return values

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply(function, args)

    def _map(self, pairs: list[tuple[Callable[..., Any], list[Any]]]) -> list[Any]:
        values: list[Any] = self.pool.map(apply, pairs, concatenate_numpy_output=False)
        return values

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: Node(function, args)

    def value(self, built: Any) -> Any:
        for wave in in_waves(built):
            values = self._map([(node.function, node.arguments()) for node in wave])
            for node, value in zip(wave, values, strict=True):
                node.value = value
        return built.value


class OnAnEngine(Contestant):
    """entangle's own tasks and calls, on the engine that the other base class starts."""

    def address(self) -> str:
        """The address for `entangle.engine`."""
        raise NotImplementedError

    def start(self) -> None:
        super().start()
        os.environ["ENTANGLE_RECORD"] = "0"
        self.decorated: Any = import_module("benchmarks.decorated")
        self.block: Any = import_module("entangle").engine(self.address())
        self.block.__enter__()

    def stop(self) -> None:
        self.block.__exit__(None, None, None)
        super().stop()

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not hasattr(self, "decorated"):
            return super().task(function)
        decorated: Callable[..., Any] = getattr(self.decorated, function.__name__)
        return decorated

    def value(self, built: Any) -> Any:
        return built() if hasattr(self, "decorated") else super().value(built)


class Ray(Contestant):
    """Ray on loopback with as many CPUs as there are, its workers warm; no
    dashboard, no usage statistics."""

    name = "Ray"
    short = "Ray"
    distribution = "ray"
    waits_for_children = False

    def start(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        self.ray: Any = import_module("ray")
        self.room = tempfile.mkdtemp(prefix="ray-")
        self.ray.init(
            address="local",
            num_cpus=self.workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=3 * 10**9,
            _node_ip_address="127.0.0.1",
            _temp_dir=self.room,
        )
        pause = self.task(work.pause)
        self.ray.get([pause(i, 0.05) for i in range(4 * self.workers)])

    def stop(self) -> None:
        self.ray.shutdown()
        shutil.rmtree(self.room, ignore_errors=True)

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        remote: Callable[..., Any] = self.ray.remote(function).remote
        return remote

    def value(self, built: Any) -> Any:
        return self.ray.get(built)


class EntangleOnRay(OnAnEngine, Ray):
    """entangle's own tasks and calls, sent whole to such a Ray."""

    name = "entangle on Ray"
    short = "on Ray"

    def address(self) -> str:
        return "ray"


class DaskProcesses(Contestant):
    """``dask.delayed`` on its multiprocessing scheduler, with a pool that stays."""

    name = "Dask multiprocessing"
    short = "Dask mp"
    distribution = "dask"

    def start(self) -> None:
        self.dask: Any = import_module("dask")
        import_module("dask.multiprocessing")
        self.pool = ProcessPoolExecutor(self.workers)
        for future in [self.pool.submit(work.pause, i, 0.05) for i in range(2 * self.workers)]:
            future.result()
        self.value(self.task(work.nothing)())

    def stop(self) -> None:
        self.pool.shutdown()

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        delayed: Callable[..., Any] = self.dask.delayed(function)
        return delayed

    def value(self, built: Any) -> Any:
        return built.compute(scheduler="processes", pool=self.pool)


class DaskDistributed(Contestant):
    """``dask.delayed`` on a local cluster of Dask distributed, one worker process
    for each CPU; no dashboard."""

    name = "Dask distributed"
    short = "Dask dist."
    distribution = "distributed"
    threads: ClassVar[int] = 1

    def start(self) -> None:
        self.room = tempfile.mkdtemp(prefix="dask-")
        self.dask: Any = import_module("dask")
        self.dask.config.set({"temporary-directory": self.room})
        distributed: Any = import_module("distributed")
        self.cluster = distributed.LocalCluster(
            n_workers=max(1, self.workers // self.threads),
            threads_per_worker=self.threads,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=50,
        )
        self.client = distributed.Client(self.cluster)
        pause = self.task(work.pause)
        self.value(self.dask.delayed(work.nothing)(*[pause(i, 0.05) for i in range(4 * self.workers)]))

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()
        shutil.rmtree(self.room, ignore_errors=True)

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        delayed: Callable[..., Any] = self.dask.delayed(function)
        return delayed

    def value(self, built: Any) -> Any:
        return self.client.compute(built).result()


class EntangleOnDask(OnAnEngine, DaskDistributed):
    """entangle's own tasks and calls, sent whole to such a cluster."""

    name = "entangle on Dask"
    short = "on Dask"

    def address(self) -> str:
        return str(self.cluster.scheduler_address).replace("tcp://", "dask://")


class DaskThreads(DaskDistributed):
    """Dask distributed with a hundred threads in each worker process."""

    name = "Dask distributed, 100 threads each"
    threads = 100


class Parsl(Contestant):
    """Parsl's HighThroughputExecutor on loopback, one worker process for
    each CPU; no usage tracking."""

    name = "Parsl"
    short = "Parsl"
    distribution = "parsl"

    def start(self) -> None:
        self.parsl: Any = import_module("parsl")
        config: Any = import_module("parsl.config")
        executors: Any = import_module("parsl.executors")
        providers: Any = import_module("parsl.providers")
        self.room = tempfile.mkdtemp(prefix="parsl-")
        self.kernel = self.parsl.load(
            config.Config(
                executors=[
                    executors.HighThroughputExecutor(
                        label="local",
                        address="127.0.0.1",
                        loopback_address="127.0.0.1",
                        max_workers_per_node=self.workers,
                        cores_per_worker=1,
                        provider=providers.LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
                    )
                ],
                run_dir=self.room,
                strategy="none",
                usage_tracking=0,
                initialize_logging=False,
            )
        )
        pause = self.task(work.pause)
        for waiting in [pause(i, 0.05) for i in range(4 * self.workers)]:
            waiting.result()

    def stop(self) -> None:
        self.kernel.cleanup()
        shutil.rmtree(self.room, ignore_errors=True)

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        app: Callable[..., Any] = self.parsl.python_app(function)
        return app

    def value(self, built: Any) -> Any:
        return built.result()


class NestedPools(Contestant):
    """A ``ProcessPoolExecutor`` for every run, also for those inside tasks: nesting without a
    common budget."""

    name = "a pool for each run"
    short = "nested pools"

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (function, args)

    def value(self, built: Any) -> Any:
        function, calls = built
        with ProcessPoolExecutor(self.workers) as pool:
            return function(*[future.result() for future in [pool.submit(one, *args) for one, args in calls]])


class PoolImap(Contestant):
    """``multiprocessing.Pool.imap``, chained once for each stage, with its default: an item at a
    time."""

    name = "multiprocessing.Pool.imap, chained"
    short = "Pool.imap"
    chunk: ClassVar[int] = 1

    def start(self) -> None:
        self.pool = multiprocessing.get_context("fork").Pool(self.workers)
        self.pool.map(work.leaf, range(self.workers))

    def stop(self) -> None:
        self.pool.terminate()
        self.pool.join()

    def stream(self, stages: Sequence[Callable[[Any], Any]], items: Iterable[Any]) -> Iterator[Any]:
        values: Iterable[Any] = items
        for stage in stages:
            values = self.pool.imap(stage, values, self.chunk)
        return iter(values)


class PoolMap(PoolImap):
    """``multiprocessing.Pool.map``, which sends a quarter of a worker's share at a time."""

    name = "multiprocessing.Pool.map"
    short = "Pool.map"

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        return self.pool.map(function, items)

    def map_in_chunks(self, function: Callable[..., Any], items: Sequence[Any], size: int) -> list[Any]:
        return self.pool.map(function, items, size)


class PoolApply(PoolImap):
    """``multiprocessing.Pool.apply``: one call at a time."""

    name = "multiprocessing.Pool.apply"
    short = "Pool.apply"

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply(function, args)


class ImapInChunks(PoolImap):
    """The same, with a hundred items sent at a time."""

    name = "multiprocessing.Pool.imap, chained, chunks of 100"
    short = "Pool.imap(100)"
    chunk = 100


class MpireStream(Contestant):
    """mpire's ``imap``, chained: a pool of workers for each stage, since one
    pool runs one map at a time."""

    name = "mpire.imap, chained, chunks of 100"
    short = "mpire"
    distribution = "mpire"

    def start(self) -> None:
        mpire: Any = import_module("mpire")
        self.pools = [mpire.WorkerPool(n_jobs=self.workers, start_method="fork", keep_alive=True) for _ in range(3)]
        for pool in self.pools:
            pool.map(work.leaf, range(self.workers))

    def stop(self) -> None:
        for pool in self.pools:
            pool.stop_and_join()

    def stream(self, stages: Sequence[Callable[[Any], Any]], items: Iterable[Any]) -> Iterator[Any]:
        values: Any = items
        many = len(values)
        for pool, stage in zip(self.pools, stages, strict=True):
            values = pool.imap(stage, values, iterable_len=many, chunk_size=100)
        return iter(values)


class _OnDisk(Contestant):
    """A library that keeps values of functions in a directory."""

    def start(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="entangle-bench-")

    def stop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def value(self, built: Any) -> Any:
        return built()


class JoblibMemory(_OnDisk):
    """``joblib.Memory``, which maps arrays."""

    name = "joblib.Memory"
    short = "Memory"
    distribution = "joblib"

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        joblib: Any = import_module("joblib")
        kept = joblib.Memory(self.folder, mmap_mode="c", verbose=0).cache(function)
        return lambda *args: lambda: kept(*args)


class DiskCache(_OnDisk):
    """``diskcache.Cache.memoize``, with room for large values."""

    name = "diskcache"
    short = "diskcache"
    distribution = "diskcache"

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        diskcache: Any = import_module("diskcache")
        self.cache = diskcache.Cache(self.folder, size_limit=1 << 33)
        kept = self.cache.memoize()(function)
        return lambda *args: lambda: kept(*args)

    def stop(self) -> None:
        self.cache.close()
        super().stop()


class EntangleDepot(_OnDisk):
    """entangle's ``cache=True``: a value is found before a run begins."""

    name = "entangle, cache=True"
    short = "entangle"

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        from entangle.cache import Cache
        from entangle.process import process

        return process(cache=Cache(where=self.folder))(function)


CONTESTANTS: dict[str, type[Contestant]] = {
    one.name: one
    for one in (
        Entangle,
        EntangleFork,
        EntangleForkserver,
        OneProcess,
        BareFork,
        Futures,
        Joblib,
        Mpire,
        Ray,
        DaskProcesses,
        DaskDistributed,
        DaskThreads,
        EntangleOnDask,
        EntangleOnRay,
        Parsl,
        NestedPools,
        PoolImap,
        PoolMap,
        PoolApply,
        ImapInChunks,
        MpireStream,
        JoblibMemory,
        DiskCache,
        EntangleDepot,
    )
}

REFERENCES = frozenset(
    {
        OneProcess.name,
        BareFork.name,
        EntangleFork.name,
        NestedPools.name,
        "ssh by hand",
        "frames over ssh by hand",
        "docker exec",
        "srun true",
        "a copy in memory",
        "fresh shared memory",
    }
)
"""Shown beside the others, and not counted when the best peer is looked for."""

PEERS = (
    Futures.name,
    Joblib.name,
    Mpire.name,
    Ray.name,
    DaskProcesses.name,
    DaskDistributed.name,
    Parsl.name,
)
