"""The arguments of a body that has failed are kept, so that it can be run again with them. So are
those of one that has ended well, where values are kept.

Nothing is kept before a body has ended. Arguments are taken as they were made: constants from the
flow, values from the store. A value that came from hand to hand is taken from the body, which may
have changed it.

A worker keeps values alone. The task of a kept call is pickled, and its code read, by the process
that began the run: that takes modules which each worker would import anew.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import compress
from types import FunctionType
from typing import Any

from entangle._shared import masks
from entangle._shared.frame import LINK
from entangle._shared.kept_calls import FOLDER, MOST, KeptCall, KeptTask, KeptValue, every, share, write, write_task
from entangle._shared.masks import is_secret
from entangle._shared.pickling import PicklerByName, pickler_by_value, says_ours, why_not
from entangle._shared.site import Site
from entangle._shared.store import NOWHERE, Store, aside, in_record
from entangle._shared.summaries import arguments_in_turn, call_in_short, cut, path_in_short
from entangle._shared.table import DONE, FAILED, IN_RECORD
from entangle._worker.inheritance import directory
from entangle._worker.library_threads import users_environment
from entangle.flow import COPY, UNCHANGING, Flow, Template

#: The most inputs of a call that is kept though it has ended well: each costs some microseconds.
_MOST_INPUTS = 10_000
#: The most tasks of a run that are kept.
_MOST_TASKS = 1000
#: The most characters of the value of a variable that is kept.
_LONGEST = 4096
#: Variables of a terminal or a login, which are those of whoever runs the call again.
_OF_LOGIN = frozenset(("TERM", "COLUMNS", "LINES", "SHLVL", "PWD", "OLDPWD", "_", "DISPLAY", "WAYLAND_DISPLAY", "WINDOWID", "MAKEFLAGS"))
_OF_LOGINS = ("SSH_", "XDG_SESSION", "DBUS_", "ENTANGLE_RECORD")


def _too_large(most: int) -> str:
    size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
    return f"is too large: the arguments of a call may have {size} together"


class _TooLarge(Exception):
    pass


class _Gone(Exception):
    pass


class _Bounded(io.BytesIO):
    """Takes a bounded number of bytes: a value may be larger than the memory that is left."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._left = most

    def write(self, part: Any) -> int:
        self._left -= memoryview(part).nbytes
        if self._left < 0:
            raise _TooLarge
        return super().write(part)


def keep(site: Site, store: Store | None, node: int, failed: str, call: str, given: Sequence[Any] | None = None) -> None:
    """Keep the call of a node that has failed, if the run is recorded. Never raises.

    `failed` is the type of its error, and `call` the call in short. `given` are the arguments that
    the body had, keywords last; None where they are gone.
    """
    try:
        folder = _folder(site)
        task = getattr(site.flow.body(node), "task", None)
        if folder and task is not None and not site.flow.rearmed and not site.flow.body(node).ours:
            taking = _Taking(site, store, loads=given is not None)
            write(folder, _kept(site, taking, node, task, (failed, call), given))
    except Exception:  # no run fails otherwise for the sake of it
        return


def keep_ended(site: Site, store: Store | None, node: int) -> None:
    """Keep the call of a node that has ended well, in a run whose values are kept: of many, some,
    and the one that gives the value of the run. Never raises."""
    flow = site.flow
    if node % every(flow.count) and not (len(flow.sinks) == 1 and node == flow.sinks[0]):
        return
    if flow.starts[node + 1] - flow.starts[node] > _MOST_INPUTS:
        return
    try:
        folder = _folder(site)
        task = getattr(flow.body(node), "task", None)
        if folder and task is not None and not flow.rearmed and not flow.body(node).ours:
            taking = _Taking(site, store, loads=True, most=share(flow.count))
            write(folder, _kept(site, taking, node, task, ("", call_in_short(flow, node)), None))
    except Exception:  # no run fails for the sake of it
        return


def keep_tasks(site: Site, whole: bool) -> None:
    """Keep the tasks of the calls that have failed in a run that is over, in the process that began
    it; those of all calls, if the run is one whose values are kept (`whole`). Never raises."""
    flow = site.flow
    try:
        folder = "" if flow.rearmed else _folder(site)
        bodies = set(flow.body_of if whole else compress(flow.body_of, map(FAILED.__eq__, bytes(site.table.states))))
        for body in sorted(bodies)[:_MOST_TASKS] if folder else ():
            task = getattr(flow.bodies[body], "task", None)
            if task is not None and not flow.bodies[body].ours:
                write_task(folder, site.run_id, body, KeptTask(_pickled_task(task), _code(task), sys.version_info[:2]))
        surroundings()  # compiles the masks, once for all workers that are forked later
    except Exception:  # no run fails otherwise for the sake of it
        return


def _folder(site: Site) -> str:
    """Where the kept calls of a run lie; "" if nothing is kept of it."""
    if site.record:
        segments = os.path.dirname(site.record)
    else:
        with open(os.path.join(site.directory, LINK), "rb", buffering=0) as file:
            segments = os.fsdecode(file.read())
    folder = os.path.join(os.path.dirname(segments), FOLDER)
    return folder if os.path.isdir(folder) else ""


def _kept(site: Site, taking: _Taking, node: int, task: Any, told: tuple[str, str], given: Sequence[Any] | None) -> KeptCall:
    flow, table = site.flow, site.table
    templates: list[Template] = []
    keywords: list[str] = []
    values: list[KeptValue] = []
    for index, (template, inputs, keyword, parameter) in enumerate(arguments_in_turn(flow, node)):
        name = parameter or str(index + 1)
        keywords.append(keyword)
        at_hand = (given[index],) if given is not None and index < len(given) else None
        if why := _secret(flow, template, inputs, parameter) or _unkept(template):
            templates.append(None)
            values.append(KeptValue(name, why=why))
            continue
        try:
            parts = [taking.value(name, one) for one in inputs]
        except _Gone:
            template = None
            parts = [taking.at_hand(name, at_hand)]
        templates.append(template)
        values += parts
    lacks = any(value.why for value in values)
    if lacks:  # nobody can run it again: what is left says why
        values = [value if value.why else KeptValue(value.argument) for value in values]
    function = task.function
    module = str(getattr(function, "__module__", "") or "")
    space = getattr(function, "__globals__", {})
    head = {
        "run": site.run_id,
        "node": node,
        "body": flow.body_of[node],
        "name": masks.masked(flow.name(node)),
        "task": task.__name__,
        "module": module,
        "qualified": task.__qualname__,
        "file": getattr(getattr(function, "__code__", None), "co_filename", ""),
        "package": space.get("__package__") or "",
        "attempt": table.attempts[node] + 1,
        "failed": told[0],  # its text may quote a secret
        "call_path": masks.masked(path_in_short(flow, node)) if told[0] else "",  # it may be long, and errors show it
        "call": told[1],
        **surroundings(),
    }
    return KeptCall(head, b"" if lacks else _pickled((keywords, templates), MOST), values)


def surroundings() -> dict[str, Any]:
    """What a body finds around it, as far as it can be made again; without secrets."""
    variables: dict[str, str] = {}
    hidden: list[str] = []
    for name, value in users_environment().items():
        if name in _OF_LOGIN or name.startswith(_OF_LOGINS):
            continue
        if len(value) > _LONGEST or _is_hidden(name, value):
            hidden.append(name)
        else:
            variables[name] = value
    return {
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "executable": sys.executable,
        "directory": directory(),
        "path": [entry for entry in sys.path if isinstance(entry, str)],
        "argv": masks.cleaned(list(sys.argv)),
        "environment": variables,
        "hidden": sorted(hidden),
    }


@lru_cache(maxsize=1024)  # a run may keep a thousand calls, all with the same variables
def _is_hidden(name: str, value: str) -> bool:
    return is_secret(name) or masks.masked(f"{name}={value}") != f"{name}={value}"


def _code(task: Any) -> dict[str, str]:
    """The digests of the parts of the code that a task reaches, by their names."""
    from entangle._shared.identity import identify

    try:
        return identify(task.__name__, task.function, (), {}, imports=False).parts
    except Exception:  # code without an identity, or none yet: nobody can tell then whether it has changed
        return {}


def _pickled_task(task: Any) -> bytes:
    """The pickle of a task; nothing if it cannot be pickled, or may hold a secret."""
    for part in (task, task.function):
        try:
            body = _pickled(part, MOST)
        except Exception:
            continue
        return b"" if masks.hides_one(body) else body
    return b""


def _secret(flow: Flow, template: Template, inputs: list[int], parameter: str) -> str:
    """Why an argument is not kept for its name's sake; "" if it is."""
    if is_secret(parameter) or any(one >= 0 and is_secret(flow.body(one).name) for one in inputs):
        return "may be a secret, by its name"
    if template not in (None, COPY):  # a dict in the call: its keys are constants beside the values
        keys = [flow.constants[~one] for one in inputs if one < 0]
        if any(is_secret(masks.name_of(key)) for key in keys):
            return "may hold a secret, by a name in it"
    return ""


def _unkept(template: Template) -> str:
    """Why the containers of an argument are not kept; "" if they are. One may have attributes, and
    its class fields."""
    if template in (None, COPY):
        return ""
    try:
        return "may hold a secret" if masks.hides_one(_pickled(template, MOST)) else ""
    except _TooLarge:
        return _too_large(MOST)
    except Exception as error:  # a `__reduce__` may raise anything
        return cut(f"cannot be pickled: {type(error).__name__}: {error}", 300)


def _pickled(value: Any, most: int, buffers: list[memoryview] | None = None) -> bytes:
    """The pickle of a value, for a process with another script; its large buffers go to `buffers`,
    if given. Raises _TooLarge above so many bytes, and what pickling raises."""

    def dump(pickler: Callable[..., pickle.Pickler]) -> bytes:
        if buffers is not None:
            buffers.clear()
        file = _Bounded(most)
        pickler(file, aside(buffers) if buffers is not None else None).dump(value)
        if file.tell() + sum(buffer.nbytes for buffer in buffers or ()) > most:
            raise _TooLarge
        return file.getvalue()

    try:
        body = dump(lambda file, take: _PicklerOfLoaded(file, 5, buffer_callback=take))
        if not says_ours(body):
            return body
    except _TooLarge:
        raise
    except Exception:  # a `__reduce__` may raise anything
        pass
    return dump(pickler_by_value)


class _PicklerOfLoaded(PicklerByName):
    """Names only what is in a module that is loaded: pickle would import another one. cloudpickle
    does not."""

    def reducer_override(self, value: Any) -> Any:
        """Raise for what is in no loaded module, also for its instances."""
        kind = value if isinstance(value, (FunctionType, type)) else type(value)
        if kind.__module__ not in sys.modules:
            raise pickle.PicklingError(f"module {kind.__module__} is not loaded")
        return super().reducer_override(value)


class _Taking:
    """Takes the values of one call, up to a bound."""

    def __init__(self, site: Site, store: Store | None, loads: bool, most: int = MOST) -> None:
        self._site = site
        self._loads = loads
        self._store = store
        self._most = self._left = most

    def value(self, name: str, taken: int) -> KeptValue:
        """An input of the call. Raises _Gone where it is nowhere but in the body."""
        site, table = self._site, self._site.table
        if taken < 0:
            return self._of(name, site.flow.constants[~taken])
        _, _, offset, size, where, _, _, _ = table.record(taken)
        if table.states[taken] != DONE or (where == NOWHERE and taken not in site.local):
            raise _Gone
        if where == IN_RECORD:
            return self._of(name, in_record(offset, size))
        if where == NOWHERE or self._store is None:
            return self._of(name, site.local[taken], at_hand=True)
        pickled, buffers = self._store.parts((where, offset, size))
        found = KeptValue(name, pickled, buffers)
        # Where the worker is gone, its supervisor runs no code of the value's class for it.
        if self._loads and found.size <= self._left and says_ours(bytes(pickled)):
            return self._of(name, self._store.get((where, offset, size)))
        return self._checked(found)

    def at_hand(self, name: str, value: tuple[Any] | None) -> KeptValue:
        """An argument as the body has it."""
        return KeptValue(name, why="was in its worker alone, which is gone") if value is None else self._of(name, value[0], at_hand=True)

    def _of(self, name: str, value: Any, at_hand: bool = False) -> KeptValue:
        try:
            buffers: list[memoryview] = []
            pickled = _pickled(value, self._left, buffers)
        except _TooLarge:
            return KeptValue(name, why=_too_large(self._most))
        except Exception:
            return KeptValue(name, why=cut(f"cannot be pickled: {why_not(value, 'it')}", 300))
        if type(value) is str and masks.masked(value) != value:
            return KeptValue(name, why="may be a secret, by its look")
        return self._checked(KeptValue(name, pickled, buffers, at_hand=at_hand and type(value) not in UNCHANGING))

    def _checked(self, value: KeptValue) -> KeptValue:
        if value.size > self._left:
            return KeptValue(value.argument, why=_too_large(self._most))
        if masks.hides_one(value.pickled, value.buffers):
            return KeptValue(value.argument, why="may hold a secret")
        self._left -= value.size
        return value
