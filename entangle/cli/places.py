"""`entangle places`: what names stand for; `entangle places check NAME...`: whether tasks can run
there."""

from __future__ import annotations

import builtins
import functools
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from entangle._shared.unrecorded import unrecorded
from entangle.cli.exit_status import ABSENT, DONE, FAILED, UNREACHABLE, Refused
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, print_table, text
from entangle.cli.terminal_text import plain, stdout
from entangle.errors import OptionError

if TYPE_CHECKING:
    from entangle._remote.caller.check import Report
    from entangle._remote.caller.place_files import Places
    from entangle._remote.transport import Transport
    from entangle.task import Layer


@dataclass
class NamedPlace:
    """One place: its name, the kind and the name of each host, and where that is said; `trouble`
    says what is wrong with its table."""

    name: str
    kinds: list[str]
    hosts: list[str]
    file: str
    table: str
    trouble: str = ""


def places(as_json: bool) -> None:
    """List them, by name."""
    from entangle._remote.caller.place_files import known_places

    known = known_places(of_script=False)
    found = [_found(known, name)[0] for name in sorted(known.tables)]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        console().print(text(known.none()), soft_wrap=True)
        return
    rows = [
        [
            text(one.name),
            text(", ".join(dict.fromkeys(one.kinds))),
            text(one.trouble.removeprefix(f"{one.file}: ") or ", ".join(one.hosts)),
            text(one.file),
        ]
        for one in found
    ]
    print_table(("place", "kind", "hosts", "file"), rows)


def check(names: Sequence[str], packages: Sequence[str], as_json: bool) -> int:
    """Check places, all hosts at once. Gives 5 where no host of a place can be used, 1 where a
    package is missing that is needed or was asked for, or where a place is not well defined. Raises
    Refused for a name that is none."""
    from entangle._remote.caller.open_channels import close_all
    from entangle._remote.caller.place_files import known_places

    known = known_places(of_script=False)
    for name in names:
        if name not in known.tables:
            raise Refused(known.absent(name), ABSENT)
    found = [_found(known, name) for name in names]
    wanted = list(packages) or _needed()
    try:
        with unrecorded(), ThreadPoolExecutor(16) as pool:
            reports = [[pool.submit(look, wanted) for look in (_looks(layer) if layer is not None else ())] for _, layer in found]
            looked = [[one.result() for one in of_place] for of_place in reports]
    finally:
        close_all()
    if as_json:
        told = [{**asdict(place), "hosts": [asdict(report) for report in of]} for (place, _), of in zip(found, looked, strict=True)]
        print_json(told)
    else:
        for (place, _), of in zip(found, looked, strict=True):
            _show(place, of)
    if any(of and all(report.trouble for report in of) for of in looked):
        return UNREACHABLE
    lacking = any(version is None for of in looked for report in of for version in report.packages.values())
    return FAILED if lacking or any(place.trouble for place, _ in found) else DONE


def _found(known: Places, name: str) -> tuple[NamedPlace, Layer | None]:
    from entangle.place import layer_of

    file, table, _ = known.tables[name]
    try:
        definition = known[name]
        layer = layer_of(definition)
    except OptionError as error:
        return NamedPlace(name, [], [], file, table, str(error)), None
    return NamedPlace(name, [kind for kind, _ in definition.hosts], _hosts(layer), file, table), layer


def _hosts(layer: Layer) -> list[str]:
    transport = _transport(layer)
    if transport is not None:
        return [one.place for one in transport.alternatives or (transport,)]
    named = getattr(layer, "transport", None) or getattr(getattr(layer, "place", None), "service", None)
    return [named.place if named is not None else "this machine"]


def _transport(layer: Layer) -> Transport | None:
    """The transport of a layer whose agents are there while the program is."""
    from entangle._remote.caller.far import Far

    return layer.transport if isinstance(layer, Far) and type(layer).send is Far.send else None


def _looks(layer: Layer) -> list[Callable[[Sequence[str]], Report]]:
    """What gives the report of each host, when it is called with the names of packages."""
    from entangle._remote.caller.check import look_at

    transport = _transport(layer)
    if transport is None:
        return [functools.partial(_look_by_runs, layer)]
    return [functools.partial(look_at, one) for one in transport.alternatives or (transport,)]


def _look_by_runs(layer: Layer, packages: Sequence[str]) -> Report:
    """The report of a place by runs of tasks: what starts anew for each run stays for them all."""
    from entangle import session
    from entangle._remote.caller.check import look_by
    from entangle.process import process
    from entangle.task import decorate

    def call(task: Any, *args: Any) -> Any:
        # By value, as a function of a script: a service has no modules of ours but the engine.
        looks = types.FunctionType(task.function.__code__, {"__builtins__": builtins}, task.__name__)
        looks.__module__ = "__main__"
        return decorate("place", looks if layer.ships else process(looks), layer)(*args)()

    with session():  # each call may be a job of its own: few are timed
        if layer.ships:
            return look_by(call, _hosts(layer)[0], packages, calls=3)
        return look_by(call, os.uname().nodename, packages)


def _needed() -> list[str]:
    """The packages that the project around the working directory depends on everywhere."""
    from entangle._remote.caller.place_files import PROJECT, toml

    at = os.getcwd()
    while not os.path.isfile(path := os.path.join(at, PROJECT)):
        if at == (at := os.path.dirname(at)):
            return []
    try:
        with open(path, encoding="utf-8") as file:
            wanted = toml(file.read()).get("project", {}).get("dependencies", [])
        names = [re.match(r"[A-Za-z0-9._-]+", one) for one in wanted if ";" not in one]
    except (OSError, ValueError, TypeError, AttributeError):
        return []
    return [name[0] for name in names if name is not None]


def _show(place: NamedPlace, reports: Sequence[Report]) -> None:
    if place.trouble:
        print(f"{plain(place.name)}: {plain(place.trouble, lines=True)}", file=sys.stderr)
        return
    print(plain(f"{place.name} ({', '.join(dict.fromkeys(place.kinds))}; {place.file})"), file=stdout())
    for report in reports:
        said = "".join(f"  {line}\n" for line in str(report).splitlines())
        print(plain(said, lines=True), end="", file=sys.stderr if report.trouble else stdout())
