"""Tasks of modules that another process cannot import by name: plug-ins, modules run by `runpy`,
modules whose file is gone."""

from pathlib import Path

import pytest

from .test_importing import caller_with, finish

#: A module with tasks, classes, and a graph of them.
MODULE = """
import collections, dataclasses, enum, os
from entangle.dataflow import dataflow
from entangle.process import process

os.write(os.open(os.environ["IMPORTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT), b"flowmod\\n")
factor = 3

class Colour(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Item:
    size: int
    colour: Colour = Colour.RED

class Wrapped:
    def __init__(self, held):
        self.held = held

class OwnError(ValueError):
    pass

def helper(x):
    return factor * x

@process
def grow(item):
    assert isinstance(item, Item) and item.colour is Colour.RED
    return Item(helper(item.size))

@process
def wrap(item):
    return Wrapped(item)

@process
def fails():
    raise OwnError("mine")

@process
def nested(item):
    return grow(grow(item))()

@dataflow
@process
def each(item):
    return Item(item.size + 1)

def main():
    held = wrap(grow(Item(1)))()
    assert type(held) is Wrapped and held.held == Item(3), held
    assert held.held.colour is Colour.RED
    assert nested(Item(1))() == Item(9)
    assert [item.size for (item,) in each().stream([Item(1), Item(2)])] == [2, 3]
    try:
        fails()()
    except OwnError as error:
        assert "mine" in str(error)
    print("the value is", held.held.size)
"""

LOADED = {
    "a plug-in": """
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("plug_in", "flowmod.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["plug_in"] = module
        spec.loader.exec_module(module)
        module.main()
    """,
    "a plug-in that is not registered": """
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("plug_in", "flowmod.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main()
    """,
    "run_path": "import runpy\nrunpy.run_path('flowmod.py')['main']()",
    "run_module": "import runpy\nrunpy.run_module('flowmod')['main']()",
    "run_module with its name": "import runpy\nrunpy.run_module('flowmod', alter_sys=True)['main']()",
    "a finder of the program": """
        import importlib.abc, importlib.util, sys
        class Finder(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                return importlib.util.spec_from_file_location(name, "flowmod.py") if name == "plug_in" else None
        sys.meta_path.append(Finder())
        import plug_in
        plug_in.main()
    """,
    "a folder that was searched for a while": """
        import os, shutil, sys
        os.mkdir("plugins")
        shutil.copy("flowmod.py", "plugins/plug_in.py")
        sys.path.insert(0, "plugins")
        import plug_in
        sys.path.remove("plugins")
        plug_in.main()
    """,
    "another module of the same name": """
        import os, shutil, sys
        os.mkdir("plugins")
        shutil.copy("flowmod.py", "plugins/plug_in.py")
        open("plug_in.py", "w").close()
        sys.path.insert(0, "plugins")
        import plug_in
        sys.path.remove("plugins")
        plug_in.main()
    """,
    "a module made by hand": """
        import sys, types
        module = types.ModuleType("plug_in")
        sys.modules["plug_in"] = module
        with open("flowmod.py") as file:
            exec(file.read(), module.__dict__)
        module.main()
    """,
    "a module that is found": "import flowmod\nflowmod.main()",
}


@pytest.mark.parametrize("how", LOADED)
def test_tasks_of_a_module_that_was_loaded_in_another_way(tmp_path: Path, how: str, start: str) -> None:
    """The tasks return their values, and the classes of these values are the caller's, as after a
    fork. No process imports the module a second time."""
    status, out, err, imports = finish(caller_with(tmp_path, LOADED[how], {"flowmod": MODULE}, ENTANGLE_START=start))
    assert (status, out) == (0, "the value is 3\n"), err
    if how != "a module that is found":
        assert imports == 1
