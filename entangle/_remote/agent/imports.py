"""The import hook of the far side: it asks for modules over the stream.

Modules of entangle and cloudpickle always come from the caller, so that both sides are of one
version. Any other module comes only if it is not installed here. What comes is pure Python: source,
or for our own modules and an equal version of Python compiled code, which saves time.

This file is the first that an agent gets. It needs the standard library only.
"""

from __future__ import annotations

import _imp
import importlib
import importlib.machinery
import importlib.util
import marshal
import os
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Any

#: A module: whether it is a package, its path at the caller, and its source or code.
Known = tuple[bool, str, Any]
#: Asks the caller for a module. The answer is {name: Known} with it and what it needs, or a text
#: that says why it cannot come, or None.
Ask = Callable[[str], Any]

#: Questions that are no name: all that a worker of this agent needs to begin; the source of all our
#: modules; the source of one (before its name).
ALL, SOURCES, SOURCE_OF = "*", "*source", "="
#: Before names: what to say if files or metadata of their packages are needed.
MODULES_ALONE = "!"

#: Packages that always come from the caller.
OURS = ("entangle", "cloudpickle")


class Finder:
    """Finds modules among those that have come, and asks for others."""

    #: Workers of an agent have it too; `_shared/module_lookup.py` asks.
    entangle_is_everywhere = True

    def __init__(self, ask: Ask | None, ours: bool, known: dict[str, Known] | None = None) -> None:
        self.ask = ask
        #: True: this one looks first, for our own modules. False: it looks last, for all others.
        self.ours = ours
        self.known = known if known is not None else {}
        self._sources: dict[str, Known] = {}
        #: Why top-level modules cannot come; "" where the caller has no such module.
        self.refused: dict[str, str] = {}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """The spec of a module that has come, or that the caller sends."""
        top, _, below = name.partition(".")
        if (top in OURS) != self.ours:
            return None
        found = self.known.get(name)
        if found is None:
            if name in self.refused or top in sys.stdlib_module_names:
                return None
            if below and not self.ours and top not in self.known:
                return None  # the package is installed here, without this part
            found = self._fetch(name)
            if found is None:
                return None
        spec = importlib.machinery.ModuleSpec(name, self, origin=found[1], is_package=found[0])  # type: ignore[arg-type]
        if found[0]:
            spec.submodule_search_locations = []
        return spec

    def _fetch(self, name: str) -> Known | None:
        if self.ask is None:
            return None
        try:
            answer = _without_import_lock(self.ask, name)
        except OSError:  # the connection is lost: the import fails, and the call with it
            answer = None
        if isinstance(answer, dict):
            self.known.update(answer)
        else:
            self.refused[name] = answer or ""
        return self.known.get(name)

    # As a loader ----------------------------------------------------------------------------

    def create_module(self, spec: Any) -> Any:
        """The usual module."""
        return None

    def exec_module(self, module: Any) -> None:
        """Run a module's code."""
        _, origin, text = self.known[module.__name__]
        module.__file__ = origin
        exec(self._code(text, origin), module.__dict__)

    def get_source(self, name: str) -> str | None:
        """The source, for tracebacks and `inspect`; None if only code has come."""
        text = self.known[name][2]
        if isinstance(text, str):
            return text
        if not self._sources and self.ask is not None:
            # For an agent of another version that this one starts in turn.
            answer = self.ask(SOURCES)
            self._sources = answer if isinstance(answer, dict) else {"": (False, "", "")}
        if name not in self._sources and self.ask is not None:
            answer = self.ask(SOURCE_OF + name)
            self._sources.update(answer if isinstance(answer, dict) else {name: (False, "", None)})
        source = self._sources.get(name)
        return source[2] if source is not None else None

    def get_code(self, name: str) -> Any:
        """The code, for `runpy`."""
        _, origin, text = self.known[name]
        return self._code(text, origin)

    def is_package(self, name: str) -> bool:
        """Whether it is a package."""
        return self.known[name][0]

    def get_data(self, path: str) -> bytes:
        """Always raises MissingModuleError. Without this, `pkgutil` says the file is missing."""
        folders = {os.path.dirname(origin): name for name, (package, origin, _) in self.known.items() if package}
        folder = os.path.dirname(path)
        while folder not in folders and folder != os.path.dirname(folder):
            folder = os.path.dirname(folder)
        raise self.without(folders.get(folder, ""), os.path.basename(path))

    def get_resource_reader(self, name: str) -> Any:
        """For `importlib.resources`."""
        return NoFiles(self, name)

    def without(self, name: str, file: str) -> Exception:
        """The error for a file of a package of which only the modules have come."""
        from entangle.errors import MissingModuleError

        top = name.partition(".")[0]
        # Importers come first: the user knows those, and pip installs them with all they need.
        names = [top]
        frame: Any = sys._getframe()
        while frame is not None:
            module = frame.f_globals.get("__name__") or ""
            if module in self.known and module.partition(".")[0] != names[-1]:
                names.append(module.partition(".")[0])
            frame = frame.f_back
        told = why_modules_alone(*reversed(names)) or f"module {top!r} was sent without the other files of its package"
        return MissingModuleError(f"{told} ({top!r} looked for {file!r})", name=name)

    @staticmethod
    def _code(text: Any, origin: str) -> Any:
        return compile(text, origin, "exec", dont_inherit=True) if isinstance(text, str) else marshal.loads(text)


def _without_import_lock(ask: Ask, name: str) -> Any:
    """Ask while this thread does not hold the import lock.

    `importlib` holds it around `find_spec`. The agent's main thread, which reads the answer, may
    need it: a garbage collection frees locks of modules, and their callback takes the import lock.
    """
    held = 0
    try:
        while True:
            _imp.release_lock()
            held += 1
    except RuntimeError:  # not held, or no longer
        pass
    try:
        return ask(name)
    finally:
        for _ in range(held):
            _imp.acquire_lock()


class NoFiles:
    """The files of a package, as `importlib.resources` asks for them (in both ways): none came.

    A program may name files without reading them, so the error comes when it looks.
    """

    def __init__(self, finder: Finder, package: str, path: str = "") -> None:
        self._finder, self._package, self._path = finder, package, path
        self.name = os.path.basename(path) or package

    def files(self) -> NoFiles:
        """The folder of the package."""
        return self

    def joinpath(self, *names: Any) -> NoFiles:
        """A file in it."""
        return NoFiles(self._finder, self._package, "/".join(filter(None, [self._path, *map(str, names)])))

    __truediv__ = joinpath

    def _look(self, name: Any = "", *args: Any, **kwargs: Any) -> Any:
        raise self._finder.without(self._package, self._path or str(name))

    is_file = is_dir = iterdir = is_resource = contents = open_resource = resource_path = _look

    def open(self, *args: Any, **kwargs: Any) -> Any:
        """Always raises MissingModuleError."""
        self._look()

    read_text = read_bytes = open


#: The two finders of this process, if it is an agent or a worker of one.
finders: list[Finder] = []


def install(ask: Ask | None, known: dict[str, Known] | None = None) -> None:
    """Have this process ask for modules that it lacks."""
    finders[:] = [Finder(ask, True, known), Finder(ask, False)]
    sys.meta_path.insert(0, finders[0])
    sys.meta_path.append(finders[1])
    # This module was executed, not imported. Make it look imported.
    import entangle._remote.agent

    myself = sys.modules[__name__]
    myself.__spec__ = finders[0].find_spec(__name__)
    entangle._remote.agent.imports = myself


#: Modules that came again and wait to be reloaded, in this order.
_renewed: list[str] = []
_loading = threading.Lock()


def renew(modules: dict[str, Known]) -> None:
    """These modules have changed at the caller. The next call reloads them; this does not wait."""
    finders[1].known.update(modules)
    _renewed.extend(modules)


def load_renewed() -> None:
    """Reload the modules that came again. Raises what they raise; their next import tries again."""
    with _loading:
        while _renewed:
            name = _renewed.pop(0)
            if name in sys.modules:
                try:
                    importlib.reload(sys.modules[name])
                except BaseException:
                    sys.modules.pop(name, None)
                    raise


def why_missing(name: str | None) -> str:
    """Why the caller could not send a top-level module; "" if it said nothing."""
    top = (name or "").partition(".")[0]
    return next((why for finder in finders for asked, why in finder.refused.items() if asked == top and why), "")


def why_modules_alone(*names: str) -> str:
    """What to say if more is needed of a package or distribution than its modules; "" for nothing.

    The names before the last use it. The answer is about the first that pip has installed.
    """
    ask = finders[-1].ask if finders else None
    answer = ask(MODULES_ALONE + " ".join(names[-20:])) if ask is not None and any(names) else None
    return answer if isinstance(answer, str) else ""


def package_of(path: str) -> str:
    """The package that has come and has this path in its folder at the caller; "" if none has."""
    for name, (package, origin, _) in list(finders[-1].known.items()) if finders else ():
        if package and origin and path.startswith(os.path.dirname(origin) + os.sep):
            return name
    return ""


def decode_answer(parts: Sequence[Any]) -> Any:
    """The content of a MODULE message."""
    return marshal.loads(zlib.decompress(parts[0]))


# In the workers of an agent ---------------------------------------------------------------------


def ask_at(address: str, name: str) -> Any:
    """Ask the agent of this worker for a module."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect("\0" + address[1:] if address.startswith("@") else address)
        line.sendall(name.encode() + b"\n")
        line.shutdown(socket.SHUT_WR)
        with line.makefile("rb") as answer:
            return marshal.loads(answer.read())


def join(address: str, known: dict[str, Known]) -> None:
    """Import as the agent at that address does."""
    import functools

    sys.path[:] = [entry for entry in sys.path if entry]
    install(functools.partial(ask_at, address), known)


def begin(known: dict[str, Known]) -> None:
    """The first thing an agent does, once it has its sources."""
    # Files in the working directory are not what the caller means.
    sys.path[:] = [entry for entry in sys.path if entry]
    install(None, known)
