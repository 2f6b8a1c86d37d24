"""The code that lies in a mailbox: the program, the engine, and modules of the project.

Nobody can be asked for a module there, so all come first: what the project has loaded here, and
what the modules that a function uses import.
"""

from __future__ import annotations

import hashlib
import importlib.util
import marshal
import sys
import threading
import zlib
from typing import Any

from entangle._remote.agent.imports import OURS
from entangle._remote.caller import modules
from entangle._remote.caller.requirements import modules_behind
from entangle._services.mailbox import Mailbox

#: What the far program runs on, beside what an agent does.
_OURS = (
    "entangle._services",
    "entangle._services.envelope",
    "entangle._services.mailbox",
    "entangle._services.far",
    "entangle._services.far.addresses",
    "entangle._services.far.program",
    "entangle._records",
)
#: Functions whose imports are remembered at most.
MOST = 256

_PROGRAM = """\
import sys
if sys.version_info < (3, 10):
    sys.stderr.write("entangle: this Python is %d.%d.%d; entangle needs 3.10 or newer\\n" % sys.version_info[:3])
    sys.exit(86)


def main(program, address, name, lasts):
    import hashlib, marshal, os, time, types, zlib
    from importlib.util import MAGIC_NUMBER

    if address.startswith("http"):
        import json, urllib.request

        def read(url):
            for seconds in (0.5, 2, 5, 10, 0):
                try:
                    with urllib.request.urlopen(url, timeout=60) as file:
                        return file.read()
                except OSError as error:
                    if not seconds or getattr(error, "code", 500) < 500:
                        raise
                    time.sleep(seconds)

        try:
            addresses = json.loads(read(address))["code"]
        except OSError as error:
            if getattr(error, "code", 0) != 404:
                raise
            sys.stderr.write("entangle: there is no message " + name + " any more: its end is known\\n")
            sys.exit(0)
    else:
        def read(path):
            with open(path, "rb") as file:
                return file.read()

        addresses = None

    # What runs many messages on one machine keeps the code here, by its hash.
    folder = os.environ.get("ENTANGLE_CODE", "") if addresses else ""

    def kept(name):
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as file:
                data = file.read()
            if hashlib.sha256(data).hexdigest().startswith(name):
                return data
        except OSError:
            pass
        data = read(addresses[name])
        try:
            with open(path + "-" + str(os.getpid()), "wb") as file:
                file.write(data)
            os.rename(file.name, path)
        except OSError:
            pass
        return data

    def codes(name):
        if folder and name != "source":
            data = kept(name)
        else:
            data = read(addresses[name] if addresses else os.path.join(os.path.dirname(program), name))
        return marshal.loads(zlib.decompress(data))

    sys.argv[1:] = []
    known = codes({first!r})
    imports = sys.modules["entangle._remote.agent.imports"] = types.ModuleType("entangle._remote.agent.imports")
    imports.__file__ = known[imports.__name__][1]
    exec(compile(known[imports.__name__][2], imports.__file__, "exec"), imports.__dict__)
    imports.begin(known)
    imports.finders[0].known.update(codes({compiled!r} if MAGIC_NUMBER.hex() == {magic!r} else {source!r}))
    imports.importlib.import_module("entangle._services.far.program").run(address, name, float(lasts), codes)


main(*sys.argv[1:5])
"""


class Code:
    """The code in one mailbox. Threads share it."""

    def __init__(self, mailbox: Mailbox, about: dict[str, Any]) -> None:
        self._mailbox, self._about = mailbox, about
        self._guard = threading.Lock()
        self._program = ""
        #: The names of the code that every call needs.
        self.common: tuple[str, ...] = ()
        self._behind: dict[Any, tuple[frozenset[str], dict[str, str]]] = {}
        self._count = 0
        self._loaded: dict[str, Any] = {}
        self._modules: dict[frozenset[str], str] = {}

    def program(self) -> str:
        """What the program there is read by."""
        with self._guard:
            if not self._program:
                magic = self._about["magic"]
                same = magic == importlib.util.MAGIC_NUMBER.hex()
                names = {"first": modules.first(), "source": self._engine(None)}
                if same:
                    names["compiled"] = self._engine(magic)
                found = {name: self._add(known, "source" if name == "source" else "") for name, known in names.items()}
                self.common = tuple(dict.fromkeys(found.values()))
                text = _PROGRAM.format(magic=magic, **{"compiled": found["source"], **found}).encode()
                self._program = self._mailbox.add_code(_hash(text), text)
            return self._program

    def modules_for(self, function: Any) -> tuple[str, dict[str, str]]:
        """The name of what has the modules that a call of this may import; and for modules that do
        not come, what pip must install if they are missing there."""
        with self._guard:
            behind = self._behind.get(function)
        if behind is None:
            own, others = modules_behind(function)
            behind = frozenset(own), {name: modules.version_of(name) or name for name in others}
        with self._guard:
            if len(self._behind) > MOST:
                self._behind.clear()
            self._behind[function] = behind
            if len(sys.modules) != self._count or any(_spec_of(name) is not spec for name, spec in self._loaded.items()):
                self._count = len(sys.modules)
                self._loaded = {name: _spec_of(name) for name in list(sys.modules) if _is_own(name)}
                self._modules.clear()  # some are new, or were loaded again
            found = self._modules.get(behind[0])
            if found is None:
                known = {name: modules.to_send(name, None) for name in sorted({*self._loaded, *behind[0]})}
                found = self._modules[behind[0]] = self._add({name: value for name, value in known.items() if isinstance(value, tuple)})
        return found, behind[1]

    @staticmethod
    def _engine(magic: str | None) -> dict[str, Any]:
        known: dict[str, Any] = marshal.loads(zlib.decompress(modules.bundle(magic)))
        names = [*_OURS, *modules.names_in("entangle._records")]
        found = {name: modules.to_send(name, magic) for name in names}
        return {**{name: value for name, value in found.items() if isinstance(value, tuple)}, **known}

    def _add(self, known: dict[str, Any], name: str = "") -> str:
        data = zlib.compress(marshal.dumps(known, 2), 6)
        name = name or _hash(data)
        self._mailbox.add_code(name, data)
        return name


def _spec_of(name: str) -> Any:
    return getattr(sys.modules.get(name), "__spec__", None)


def _is_own(name: str) -> bool:
    """Whether a loaded module is the project's, or one of ours that an engine lacks."""
    spec = _spec_of(name)
    if spec is None or spec.name != name:
        return False
    top = name.partition(".")[0]
    if top in OURS:
        return name.startswith(("entangle.tests", "entangle.examples", "entangle._testing"))
    return top not in sys.stdlib_module_names and modules.is_project(spec)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
