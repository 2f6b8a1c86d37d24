"""The code that a function reaches: the project's functions and classes, and what these read.

Each of them is a part, whose digest is its own content, in which other parts are named. So a change
is seen in the part that has changed, and in no other.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import types
from collections import deque
from collections.abc import Mapping
from typing import Any

from entangle._shared.identity import classes, project
from entangle._shared.identity.code_facts import CodeFacts, facts_of
from entangle._shared.identity.values import Content, NoContent, by_name, hashed
from entangle._shared.identity.witness import ABSENT, Witness, is_dunder
from entangle._shared.identity.wrapped import unwrapped

_Names = frozenset[str]
#: Where code says one of these, annotations of functions count.
_READS_ANNOTATIONS = frozenset(
    ("__annotations__", "annotation", "get_annotations", "get_type_hints", "getfullargspec", "signature", "return_annotation")
)


class _Unknown(NoContent):
    """Something is reached that was not when the code was walked through."""


class Reach:
    """What `roots` reach; the package `home` counts as part of the project.

    `parts`: the digest of each part, by its name in words. `digest`: of all of them. Modules are
    told in words alone: a function that has moved to another module is the same. Raises NoContent
    where a module of the project would have to be imported, and `imports` is false.
    """

    def __init__(self, roots: tuple[Any, ...], home: str, imports: bool = True) -> None:
        self.roots = roots
        self._imports = imports
        self.home = home
        self.parts: dict[str, str] = {}
        self._witness = Witness()
        #: How parts name a part, by the `id` of the object, or of a namespace with a name in it.
        self._labels: dict[Any, bytes] = {}
        self._held: list[Any] = []
        self._numbers: dict[tuple[str, str], int] = {}
        self._waiting: deque[tuple[str, bytes, Any]] = deque()
        self._digests: list[bytes] = []
        self._walking = True
        self._content = Content(self._reference)
        self._names: set[str] = set()
        functions: list[tuple[str, bytes, types.FunctionType]] = []
        called = self._told(roots[0], "the layers around it") + self._called(roots[1])
        if roots[0] or not isinstance(roots[1], (types.FunctionType, type)):
            self._add("the object that is called", b"", called)  # what a partial or an instance holds
        else:
            self._digests.append(called)
        while self._waiting:
            title, label, value = self._waiting.popleft()
            if isinstance(value, types.FunctionType):
                functions.append((title, label, value))
                self._add(title, label, self._function(value))
            else:
                self._add(title, label, self._class(value))
        if not self._names.isdisjoint(_READS_ANNOTATIONS):
            for title, label, value in functions:
                told = self._content.of([(name, classes.annotation_text(one)) for name, one in classes.annotations_of(value).items()])
                self._add(f"the annotations of {title}", label + b" annotations", told)
        self._walking = False
        self._witness.close()
        self.digest = hashlib.sha256(b"".join(sorted(self._digests))).digest()

    def _called(self, target: Any) -> bytes:
        if isinstance(target, types.FunctionType):
            return self._reference(target)
        return self._told(target, "the object that is called")

    def holds(self) -> bool:
        """Whether the code is still the same."""
        return self._witness.holds(Content(self._reference))

    def label(self, value: Any) -> bytes | None:
        """How the parts name a function or a class, if it is among them."""
        return self._labels.get(id(value))

    def _reference(self, value: Any) -> bytes:
        """What stands for a function, a class or a module in the content of something else."""
        label = self._labels.get(id(value))
        if label is not None:
            return label
        if isinstance(value, types.CodeType):
            return b"code " + facts_of(value).digest
        if isinstance(value, types.ModuleType):
            return self._whole_module(value)
        name = project.library_name(value, self.home)
        if name is not None:
            return by_name(*name, project.compiled(name[0]))
        if isinstance(value, types.FunctionType) and project.is_ours(value.__globals__.get("__name__", "")):
            layers, function = unwrapped(value)
            return Content(self._reference).of((layers, None if function is value else function, value.__qualname__))
        if not self._walking:
            raise _Unknown(value, "it is new")
        kind = "function" if isinstance(value, types.FunctionType) else "class"
        title, label = self._named(kind, value.__qualname__, f"{project.named(value.__module__ or '?')}.{value.__qualname__}")
        self._labels[id(value)] = label
        self._held.append(value)
        self._waiting.append((title, label, value))
        return label

    def _named(self, kind: str, name: str, words: str) -> tuple[str, bytes]:
        """The title and the label of a new part. Those of one name are numbered."""
        number, again = (self._numbers.get(key, 0) + 1 for key in ((kind, name), (kind + " title", words)))
        self._numbers[kind, name], self._numbers[kind + " title", words] = number, again
        title = f"the {kind} {words}" if again == 1 else f"the {kind} {words} ({again})"
        return title, b"&" + f"{kind} {number} {name}".encode("utf-8", "surrogatepass")

    def _add(self, title: str, label: bytes, content: bytes) -> None:
        digest = hashlib.sha256(content)
        self.parts[title] = digest.hexdigest()[:32]
        self._digests.append(hashlib.sha256(label + b"\0" + digest.digest()).digest())

    def _told(self, value: Any, what: str) -> bytes:
        """The content of a value that code reads."""
        try:
            content = self._content.of(value)
        except NoContent as error:
            raise error.within(what) from None
        self._witness.told(value, content)
        return content

    def _data(self, kind: str, key: Any, name: str, words: str, value: Any, what: str) -> bytes:
        """What stands for data that code reads by a name, which is a part of its own."""
        label = self._labels.get(key)
        if label is None:
            title, label = self._named(kind, name, words)
            self._labels[key] = label
            self._add(title, label, self._told(value, what))
        return label

    def _function(self, function: types.FunctionType) -> bytes:
        self._witness.read_function(function)
        space = function.__globals__
        module = space.get("__name__", "")
        of_project = not isinstance(module, str) or project.is_of_project(module, self.home)
        facts = facts_of(function.__code__)
        said = [facts.digest] if of_project else [by_name(module, function.__code__.co_name)]
        own = function.__qualname__
        said.append(self._told(function.__defaults__, f"a default value of {own}"))
        for name, value in sorted((function.__kwdefaults__ or {}).items()):
            said += [name.encode(), self._told(value, f"the default value of {name!r} of {own}")]
        if not of_project and isinstance(vars(function).get("registry"), types.MappingProxyType):  # functools.singledispatch
            said.append(self._told(vars(function)["registry"], f"an implementation of {own}"))
            return _joined(said)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            said += [name.encode(), self._variable(cell, name, function)]
        if of_project:
            self._names |= facts.names
            said += self._attributes(function, facts.names)
            for name in sorted({*facts.reads, *(facts.names & space.keys() if "globals" in facts.reads else ())}):
                said += [name.encode(), self._global(space, name, facts.names, own)]
            for module, level in facts.imports:
                said.append(self._import(module, level, space, facts, own))
        return _joined(said)

    def _variable(self, cell: types.CellType, name: str, function: types.FunctionType) -> bytes:
        value = self._witness.read_cell(cell)
        if value is ABSENT:
            return b"absent"
        if isinstance(value, (types.FunctionType, type)):
            return self._reference(value)
        what = f"variable {name!r} of {function.__qualname__}"
        self._held.append(cell)
        words = f"{name} of {project.named(function.__module__ or '?')}.{function.__qualname__}"
        return self._data("variable", id(cell), f"{name} {function.__qualname__}", words, value, what)

    def _attributes(self, function: types.FunctionType, names: _Names) -> list[bytes]:
        """What code reads of the attributes of a function."""
        said = []
        for name, value in self._witness.read_attributes(function, names):
            said += [name.encode(), self._told(value, f"the attribute {name!r} of {function.__qualname__}")]
        if "__doc__" in names:
            said.append(self._told(self._witness.read_docstring(function), "the docstring"))
        return said

    def _global(self, space: dict[str, Any], name: str, names: _Names, who: str) -> bytes:
        value = self._witness.read(space, name)
        if value is ABSENT:
            return b"builtin"
        if name == "__name__" and isinstance(value, str):
            value = project.named(value)
        return self._read(space, name, value, names, f"the global {name!r} that {who} uses", set())

    def _read(self, space: Mapping[str, Any], name: str, value: Any, names: _Names, what: str, passed: set[int]) -> bytes:
        """What code reads by a name of a module: of functions and modules, the attributes that it
        names."""
        if isinstance(value, types.FunctionType):
            return _joined([self._reference(value), *self._attributes(value, names)])
        if isinstance(value, types.ModuleType):
            return self._module(value, names, passed)
        if isinstance(value, type):
            return self._reference(value)
        module = space.get("__name__", "?")
        words = f"{project.named(module) if isinstance(module, str) else '?'}.{name}"
        return self._data("global", (id(space), name), name, words, value, what)

    def _module(self, module: types.ModuleType, names: _Names | None, passed: set[int]) -> bytes:
        """A module, by its name; one of the project by those attributes that the code names, or by
        all, where it is an item of something."""
        if not project.is_of_project(module.__name__, self.home):
            return b"module " + by_name(module.__name__, project.compiled(module.__name__))
        said = [b"module"]
        if id(module) not in passed:
            passed.add(id(module))
            space = vars(module)
            wanted = [name for name in (space if names is None else names) if not is_dunder(name)]
            for name, value in self._witness.read_some(space, wanted):
                said += [name.encode(), self._read(space, name, value, names or frozenset(), f"{module.__name__}.{name}", passed)]
        return _joined(said)

    def _whole_module(self, module: types.ModuleType) -> bytes:
        """A module that is an item of something."""
        if not self._walking:
            raise _Unknown(module, "it is new")
        content = self._labels[id(module)] = hashed(self._module(module, None, set()))
        self._held.append(module)
        return content

    def _import(self, module: str, level: int, space: dict[str, Any], facts: CodeFacts, who: str) -> bytes:
        """A module that a function imports when it runs; imports it, as the function would."""
        name = module
        try:
            name = importlib.util.resolve_name("." * level + module, space.get("__package__") or "") if level else module
            if project.is_of_project(name, self.home):
                if not self._imports and name not in sys.modules:
                    raise NoContent(name, "it is a module that is not imported")
                importlib.import_module(name)
        except ImportError:
            return b"missing " + by_name(name)
        said = [b"import"]
        for one in dict.fromkeys((name.partition(".")[0], name)):
            found = self._witness.read(sys.modules, one)
            said.append(by_name(one) if found is ABSENT else self._module(found, facts.names, set()))
        return _joined(said)

    def _class(self, kind: type) -> bytes:
        own = kind.__qualname__
        said = [self._told(base, f"a base of class {own}") for base in kind.__bases__]
        said.append(self._told(type(kind), f"the metaclass of {own}"))
        for name, value in classes.counted(kind, self._witness.read_class(kind)):
            said += [name.encode(), self._told(value, f"{own}.{name}")]
        return _joined(said)


def _joined(said: list[bytes]) -> bytes:
    return b"".join(b"%d:%b" % (len(one), one) for one in said)
