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

from entangle._remote.agent.imports import OURS, Known
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
    "entangle._services.far.connections",
    "entangle._services.far.program",
)
#: Rooms that go whole: nobody answers there when a module is wanted that has not come.
_ROOMS = ("entangle._records", "entangle._depot", "entangle._shared.identity")
#: What the program itself needs: it comes within it.
_CONNECTIONS = "entangle._services.far.connections"
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

    same = MAGIC_NUMBER.hex() == {magic!r}

    def module(name, origin, code):
        made = sys.modules[name] = types.ModuleType(name)
        made.__file__ = origin
        exec(compile(code, origin, "exec") if isinstance(code, str) else marshal.loads(code), made.__dict__)
        return made

    if address.startswith("http"):
        import json

        request = module("entangle._services.far.connections", {origin!r}, {code!r} if same else {text!r}).request

        def read(url):
            for seconds in (0.5, 2, 5, 10, 0):
                try:
                    status, _, body = request("GET", url)
                    if status == 200 or status == 404 and url == address:
                        return body if status == 200 else None
                    wrong = OSError("GET was refused by the bucket with status %d: %s" % (status, body[:300].decode("utf-8", "replace")))
                    if not seconds or status < 500:
                        break
                except OSError as error:
                    wrong = error
                    if not seconds:
                        break
                time.sleep(seconds)
            raise wrong

        given = read(address)
        if given is None:
            sys.stderr.write("entangle: there is no message " + name + " any more: its end is known\\n")
            sys.exit(0)
        given = json.loads(given)
        addresses = given["code"]
    else:
        def read(path):
            with open(path, "rb") as file:
                return file.read()

        given = addresses = None

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
    known = codes({compiled!r} if same else {source!r})
    imports = module("entangle._remote.agent.imports", *known["entangle._remote.agent.imports"][1:])
    imports.begin(known)
    imports.importlib.import_module("entangle._services.far.program").run(address, name, float(lasts), codes, given)


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
                modules.first()  # raises where there are no sources
                found = {"source": self._add(self._engine(None), "source")}
                found["compiled"] = self._add(self._engine(magic)) if same else found["source"]
                self.common = tuple(dict.fromkeys(found.values()))
                (_, origin, text), (*_, code) = (_connections(each) for each in (None, magic if same else None))
                program = _PROGRAM.format(magic=magic, origin=origin, text=text, code=code, **found).encode()
                self._program = self._mailbox.add_code(_hash(program), program)
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
        names = [*_OURS, *modules.FIRST]
        for room in _ROOMS:
            names += [room, *modules.names_in(room)]
        found = {name: modules.to_send(name, magic) for name in names}
        return {**{name: value for name, value in found.items() if isinstance(value, tuple)}, **known}

    def _add(self, known: dict[str, Any], name: str = "") -> str:
        data = zlib.compress(marshal.dumps(known, 2), 6)
        name = name or _hash(data)
        self._mailbox.add_code(name, data)
        return name


def _connections(magic: str | None) -> Known:
    """The module that comes within the program."""
    found = modules.to_send(_CONNECTIONS, magic)
    assert isinstance(found, tuple)  # as `modules.first` says else
    return found


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
