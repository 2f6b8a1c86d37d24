"""Values of classes that cannot be imported come back as instances of the caller's own classes,
however workers start."""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import gc
import shutil
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from entangle._shared.pickling import loads_kept
from entangle.errors import UnpicklableError
from entangle.interpreter import interpreter
from entangle.process import process
from entangle.thread import thread

from . import made_classes
from .made_classes import same

#: A class that its module has under another name than its own.
Row = collections.namedtuple("Another", "a b")  # type: ignore[name-match]
START = ("fork", "forkserver", "spawn")


@pytest.mark.parametrize("start", START)
def test_classes_that_are_made_in_a_function(start: str) -> None:
    assert made_classes.wrong(start) == []


@pytest.mark.parametrize("start", START)
def test_classes_of_the_script(start: str, tmp_path: Path) -> None:
    script = shutil.copy(made_classes.__file__, tmp_path)
    ran = subprocess.run([sys.executable, script, start], capture_output=True, text=True, timeout=100)
    assert (ran.stdout, ran.stderr) == ("all\n", "")


@pytest.mark.parametrize("start", START)
def test_a_class_that_its_module_has_under_another_name(start: Any) -> None:
    assert type(same(Row(1, 2))(start=start)) is Row


@pytest.mark.parametrize("start", START)
def test_an_error_of_a_local_class_is_caught_by_it(start: Any) -> None:
    class Mine(Exception):
        pass

    def fail() -> None:
        raise Mine("of my own")

    nested = process(lambda: process(fail)()())
    for call in (process(fail)(), same(process(fail)()), nested(), thread(fail)()):
        with pytest.raises(Mine, match="of my own"):
            call(start=start)


def test_a_local_class_comes_back_from_another_python() -> None:
    class Colour(enum.Enum):
        RED = 1

    there = interpreter(python=sys.executable)(same)
    assert there(there(Colour.RED))() is Colour.RED


@pytest.mark.parametrize("start", START)
def test_classes_that_each_body_makes_anew_are_not_mixed_up(start: Any) -> None:
    """Two workers run the same class statement, and each has its class at the same address. They
    are still two classes."""

    def made(n: int) -> Any:
        class Adder:
            def add(self, x: int) -> int:
                return x + n

        return Adder()

    def both(*adders: Any) -> list[int]:
        return [adder.add(0) for adder in adders]

    making = process(fresh=True)(made)
    assert process(both)(*(making(n) for n in range(4)))(start=start) == [0, 1, 2, 3]


def test_a_class_that_a_worker_changes_is_the_callers_as_it_was() -> None:
    class Counted:
        count = 0

    @process
    def change() -> Any:
        Counted.count += 1
        return Counted()

    assert isinstance(change()(start="fork"), Counted)
    assert Counted.count == 0


def test_a_class_that_nobody_holds_any_longer_goes() -> None:
    def there_and_back() -> None:
        class Gone:
            pass

        assert isinstance(same(Gone())(start="fork"), Gone)

    before = len(object.__subclasses__())
    for _ in range(3):
        there_and_back()
    gc.collect()
    assert len(object.__subclasses__()) <= before


# --- what cannot be pickled -----------------------------------------------------------------------


def _text(path: Path) -> Any:
    return path.open("w+")


def _binary(path: Path) -> Any:
    return path.open("wb")


def _socket(_: Path) -> Any:
    return socket.socket()


def _lock(_: Path) -> Any:
    return threading.Lock()


def _held(thing: Any) -> Any:
    return types.SimpleNamespace(kept=[{"it": thing}])


@process
def made_there(make: Any, path: Path, wrap: Any) -> Any:
    return wrap(make(path))


@pytest.mark.parametrize("make", [_text, _binary, _socket, _lock])
def test_open_files_locks_and_connections_do_not_travel(make: Any, tmp_path: Path) -> None:
    with contextlib.ExitStack() as open_here:
        thing = make(tmp_path / "file")
        if hasattr(thing, "close"):
            open_here.enter_context(thing)
        for value in (thing, [thing], _held(thing), functools.partial(print, thing), lambda: thing):
            with pytest.raises(UnpicklableError, match="argument 1 of task 'same' cannot travel"):
                same(value)(start="forkserver")
    for wrap in (id_of, _held):
        with pytest.raises(UnpicklableError, match="the value of task 'made_there' cannot travel"):
            made_there(make, tmp_path / "file", wrap)(start="fork")


def id_of(thing: Any) -> Any:
    return thing


@pytest.mark.parametrize("start", START)
def test_the_standard_streams_are_each_process_s_own(start: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom entangle.process import process\n@process\ndef say(stream):\n    print('said', file=stream)\n    return stream\n"
        f"assert say(sys.stdout)(start={start!r}) is sys.stdout\n"
        f"try:\n    say(sys.stdin)(start={start!r})\nexcept Exception as error:\n    print(type(error).__name__)\n"
    )
    ran = subprocess.run([sys.executable, script], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100)
    told = "UnpicklableError" if start != "fork" else "UnsupportedOperation"
    assert (ran.stdout, ran.stderr) == (f"said\n{told}\n", "")


#: `class Point: x = 1` and a context variable of a script, as version 0.3.0 pickled them.
OF_0_3_0 = (
    b"\x80\x05\x95\xf0\x01\x00\x00\x00\x00\x00\x00]\x94(\x8c\x15entangle._run.classes\x94\x8c\x06_class\x94\x93\x94(\x8c\x12"
    b"22afc988b03a2bb9.0\x94\x8c\x1022afc988b03a2bb9\x94\x8a\x060\x85s:\x07V\x8a\x06\xc0i2~F\x7f\x87\x94N\x87\x94\x8c\x05Point\x94"
    b"\x8c\x08builtins\x94\x8c\x06object\x94\x93\x94\x85\x94h\t\x8c\x04type\x94\x93\x94h\x08}\x94(\x8c\n__module__\x94\x8c\x08"
    b"__main__\x94\x8c\x0c__qualname__\x94h\x08u\x87\x94\x8c\x17cloudpickle.cloudpickle\x94\x8c\x14_make_skeleton_class\x94\x93\x94"
    b"(h\x0eh\x08h\x0c}\x94h\x10h\x11s\x8c db332242a4b74437b6f4d8d01bbb7ea8\x94Nt\x94t\x94R\x94\x8c\tfunctools\x94\x8c\x07partial"
    b"\x94\x93\x94h\x01\x8c\x05_fill\x94\x93\x94\x85\x94R\x94(h h\x14\x8c\x0f_class_setstate\x94\x93\x94\x85\x94}\x94Nt\x94bh\x1b}"
    b"\x94(\x8c\x07__doc__\x94N\x8c\n__module__\x94h\x11\x8c\r__slotnames__\x94]\x94\x8c\x01x\x94K\x01u}\x94\x86\x94\x86R0)\x81\x94"
    b"\x8c\x17entangle._run.variables\x94\x8c\x0bvariable_of\x94\x93\x94h\x11\x8c\x01v\x94K\x01\x85\x94\x87\x94R\x94e."
)


def test_values_that_an_earlier_version_has_kept_are_read() -> None:
    point, variable = loads_kept(OF_0_3_0)
    assert (type(point).__qualname__, point.x, variable.name, variable.get()) == ("Point", 1, "v", 1)


#: Layers of tasks, as version 0.3.0 pickled them. Some have other names now.
LAYERS_OF_0_3_0 = (
    b"\x80\x05\x95\x82\x01\x00\x00\x00\x00\x00\x00](\x8c\x15entangle._tasks.layer\x8c\nAttributes\x93)\x81}\x8c\nattributes}"
    b"\x8c\x01aK\x01ssb\x8c\x14entangle.interpreter\x8c\x10InterpreterLayer\x93)\x81}\x8c\ttransport\x94\x8c&entangle._remot"
    b"e.transport.interpreter\x8c\x0bInterpreter\x93)\x81}\x8c\x06python\x94\x8c\x07/bin/shsbsb\x8c\x0centangle.ssh\x8c\x03S"
    b"sh\x93)\x81}h\x00\x8c\x1eentangle._remote.transport.ssh\x8c\x03SSH\x93)\x81}(\x8c\x04host\x8c\x01h\x8c\x04userN\x8c"
    b"\x08key_fileNh\x01\x8c\x07python3\x8c\x04portN\x8c\x03envN\x8c\x0bknown_hostsNh\x00Nubsb\x8c\x17entangle._dataflow.nod"
    b"e\x8c\x08Dataflow\x93N\x8c\x06threadN\x87Re."
)


def test_tasks_that_an_earlier_version_has_kept_are_read() -> None:
    found = {type(layer).__name__: vars(layer) for layer in loads_kept(LAYERS_OF_0_3_0)}
    assert list(found) == ["Attributes", "Interpreter", "SSH", "Dataflow"]
    assert found["Attributes"] == {"attributes": {"a": 1}}
    assert found["Interpreter"]["transport"].python == "/bin/sh"
    assert found["SSH"]["transport"].host == "h"
    assert found["Dataflow"]["executor"] == "thread"
