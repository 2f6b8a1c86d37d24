"""The paths of the server, and their answers. A thread answers each request, from the table of a
live run, or from the records of one that is over."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entangle.errors import EntangleError, RecordsError
from entangle.web import live, recorded
from entangle.web.lanes import timeline
from entangle.web.page_graph import GraphPart, drawn
from entangle.web.recorded import Absent
from entangle.web.unfinished import unfinished

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

STATIC = Path(__file__).parent / "static"

#: Seconds between two looks at a live run; after a look that takes long, the pause is longer.
EVERY = 0.2
#: Seconds after which something is sent on a silent stream, so that a dead one is noticed.
STILL_HERE = 10.0

#: Forms to download: the method of `entangle.records.Run`, the type, the suffix of the file.
EXPORTS = {
    "svg": ("to_svg", "image/svg+xml", "svg"),
    "mermaid": ("to_mermaid", "text/plain; charset=utf-8", "mmd"),
    "dot": ("to_dot", "text/vnd.graphviz", "dot"),
    "trace": ("to_trace", "application/json", "trace.json"),
    "prov": ("to_prov", "application/json", "prov.json"),
    "json": ("to_dict", "application/json", "json"),
}


def application(stopping: Callable[[], bool] = lambda: False) -> Starlette:
    """The application, without the guard, which goes around it. `stopping` says whether the server
    is shutting down; then streams end."""
    # Import late: on Python 3.10 starlette imports a backport that changes sys.excepthook.
    from starlette.applications import Starlette
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    def events(request: Request) -> Response:
        return _stream(_all_runs(stopping))

    def run_events(request: Request) -> Response:
        return _stream(_one_run(request.path_params["run"], stopping))

    return Starlette(
        routes=[
            Route("/api/events", events),
            Route("/api/runs", _answer(_runs)),
            Route("/api/unfinished", _answer(_unfinished)),
            Route("/api/runs/{run}", _answer(_run)),
            Route("/api/runs/{run}/events", run_events),
            Route("/api/runs/{run}/graph", _answer(_graph)),
            Route("/api/runs/{run}/timeline", _answer(_timeline)),
            Route("/api/runs/{run}/tasks", _answer(_tasks)),
            Route("/api/runs/{run}/nodes", _answer(_nodes)),
            Route("/api/runs/{run}/nodes/{node}", _answer(_node)),
            Route("/api/runs/{run}/ancestors/{node}", _answer(_ancestors)),
            Route("/api/runs/{run}/descendants/{node}", _answer(_descendants)),
            Route("/api/runs/{run}/export/{form}", _answer(_export)),
            Route("/api/compare", _answer(_compare)),
            Route("/api/values/{digest}", _answer(_value)),
            Route("/api/{rest:path}", _answer(_nothing)),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ]
    )


class _Bad(Exception):
    """The parameters of a request are wrong."""


def _answer(ask: Callable[[Request], Any]) -> Callable[[Request], Any]:
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response

    async def answered(request: Request) -> Response:
        try:
            found = await run_in_threadpool(ask, request)
        except Absent as error:
            return JSONResponse({"error": str(error)}, 404)
        except _Bad as error:
            return JSONResponse({"error": str(error)}, 400)
        except RecordsError as error:
            return JSONResponse({"error": str(error)}, 404 if "no run" in str(error) else 500)
        except (EntangleError, sqlite3.Error) as error:
            return JSONResponse({"error": str(error)}, 500)
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            # A row is damaged. Other requests can still be answered.
            return JSONResponse({"error": f"This cannot be read, it may be damaged: {type(error).__name__}: {error}"}, 500)
        return found if isinstance(found, Response) else JSONResponse(found)

    return answered


def _number(request: Request, name: str, usual: float | None, least: float, most: float) -> Any:
    given = request.query_params.get(name)
    if given is None:
        return usual
    try:
        value = float(given)
    except ValueError:
        raise _Bad(f"{name} must be a number, not {given!r}") from None
    if not least <= value <= most:
        raise _Bad(f"{name} is {value:g}; it must be from {least:g} to {most:g}")
    return value


def _either(running: Callable[[], Any], over: Callable[[], Any]) -> Any:
    """Ask for a live run, then for one that is over. In this order, a run that ends in between is
    found, too."""
    try:
        return running()
    except Absent:
        return over()


def _runs(request: Request) -> Any:
    limit = int(_number(request, "limit", 100, 1, 10_000))
    found, more = recorded.runs(limit, request.query_params.get("query", ""), request.query_params.get("state", ""))
    return {"runs": found, "more": more, "left_out": recorded.left_out()}


def _unfinished(request: Request) -> Any:
    return unfinished()


def _run(request: Request) -> Any:
    run = request.path_params["run"]
    return _either(lambda: live.info(run), lambda: recorded.info(run))


def _graph(request: Request) -> Any:
    run = request.path_params["run"]
    opened = [name for name in request.query_params.get("open", "").split(",") if name]
    return _either(lambda: live.graph(run, opened), lambda: drawn(recorded.parts(run, bool(opened)), opened))


def _timeline(request: Request) -> Any:
    run = request.path_params["run"]
    by = request.query_params.get("by", "worker")
    if by not in ("worker", "cpu", "place"):
        raise _Bad(f"by must be worker, cpu or place, not {by!r}")
    width = int(_number(request, "width", 1200, 100, 10_000))
    start, end = _number(request, "start", None, 0, 1e12), _number(request, "end", None, 0, 1e12)
    stretches, total = _either(lambda: live.stretches(run, by), lambda: recorded.stretches(run, by))
    return timeline(stretches, total, width, start, end)


def _tasks(request: Request) -> Any:
    run = request.path_params["run"]
    return {"tasks": _either(lambda: live.tasks(run), lambda: recorded.tasks(run))}


def _nodes(request: Request) -> Any:
    run = request.path_params["run"]
    limit = int(_number(request, "limit", 100, 1, 10_000))
    terms = [request.query_params.get(name, "") for name in ("order", "state", "query")]
    return _either(lambda: live.nodes(run, limit, *terms), lambda: recorded.nodes(run, limit, *terms))


def _place(request: Request) -> tuple[str, str, int]:
    """The run that the page shows; and the run and number of the node, whose name is `number` or
    `run:number`."""
    root = request.path_params["run"]
    run, colon, number = request.path_params["node"].rpartition(":")
    if not (number.isascii() and number.isdigit()) or len(number) > 12:
        raise _Bad("a node is named by its number, or as RUN:NUMBER")
    return root, run if colon else root, int(number)


def _node(request: Request) -> Any:
    place = _place(request)
    return _either(lambda: live.node(*place), lambda: recorded.node(*place))


def _ancestors(request: Request) -> Any:
    place = _place(request)
    return _either(lambda: live.way(*place, True), lambda: recorded.way(*place, True))


def _descendants(request: Request) -> Any:
    place = _place(request)
    return _either(lambda: live.way(*place, False), lambda: recorded.way(*place, False))


def _export(request: Request) -> Any:
    from starlette.responses import PlainTextResponse

    from entangle import records

    form = request.path_params["form"]
    if form not in EXPORTS:
        raise _Bad(f"there is no form {form!r}; use one of {', '.join(EXPORTS)}")
    method, kind, ending = EXPORTS[form]
    run = records.run(request.path_params["run"])
    made = getattr(run, method)()
    text = made if isinstance(made, str) else json.dumps(made, default=str)
    # As an attachment: an SVG that is opened as a page could run a script from a value.
    return PlainTextResponse(
        text,
        media_type=kind,
        headers={"content-disposition": f'attachment; filename="{run.name if run.name.isidentifier() else "run"}-{run.id[:8]}.{ending}"'},
    )


def _compare(request: Request) -> Any:
    a, b = request.query_params.get("a"), request.query_params.get("b")
    if not a or not b:
        raise _Bad("the parameters a and b must name the runs to compare")
    return recorded.compare(a, b)


def _value(request: Request) -> Any:
    return recorded.makers(request.path_params["digest"])


def _nothing(request: Request) -> Any:
    raise Absent("There is no such path.")


# Streams ------------------------------------------------------------------------------------------


def _stream(messages: AsyncIterator[str]) -> Response:
    from starlette.responses import StreamingResponse

    return StreamingResponse(messages, media_type="text/event-stream")


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


async def _all_runs(stopping: Callable[[], bool]) -> AsyncIterator[str]:
    """The live runs, whenever they have changed, and a string that changes with the records."""
    from starlette.concurrency import run_in_threadpool

    before, sent = None, 0.0
    while not stopping():
        cards = await run_in_threadpool(live.cards)
        version = await run_in_threadpool(recorded.version)
        state = ([(card["id"], card["done"], card["running"], int(card["seconds"])) for card in cards], version)
        if state != before or time.monotonic() - sent > STILL_HERE:
            before, sent = state, time.monotonic()
            yield _event("runs", {"live": cards, "version": version})
        await asyncio.sleep(0.5)


async def _one_run(run: str, stopping: Callable[[], bool]) -> AsyncIterator[str]:
    """Look at a run until it is over. The graph is sent only when it has changed."""
    from starlette.concurrency import run_in_threadpool

    graph, counts, sent = None, None, 0.0
    seen: dict[str, GraphPart] = {}
    while not stopping():
        began = time.monotonic()
        try:
            look = await run_in_threadpool(live.look, run, seen)
        except Absent:
            yield _event("ended", {})
            return
        now = time.monotonic()
        if look["graph"] == graph:
            del look["graph"]
        else:
            graph = look["graph"]
        if "graph" in look or look["counts"] != counts or now - sent > 1.0:
            counts, sent = look["counts"], now
            yield _event("look", look)
        await asyncio.sleep(max(EVERY, 3 * (now - began)))
