"""Modules that run a graph while they are imported: it runs once, when the user's program imports
them, and never in a worker."""

import textwrap
from pathlib import Path

import pytest

from .callers import Caller

#: Each module begins with this. It counts the imports.
HEAD = """
import os
os.write(os.open(os.environ["IMPORTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT), b"flowmod\\n")
from entangle.dataflow import dataflow
from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

@process
def two():
    return 2

@process
def add(a, b):
    return a + b

"""

#: The ways in which a module may run a graph.
RUNS = {
    "a call": "print('the value is', add(two(), two())())",
    "a future": "print('the value is', add(two(), two())(proc=True).result())",
    "a future that is asked later": "print('the value is', add(two(), two()).future().entangle())",
    "a workflow that gets a workflow": """
        @workflow
        def four():
            return add(two(), two())
        @workflow
        def six(value):
            return add(value(), two())
        print('the value is', six(four)())
    """,
    "await": """
        import asyncio
        async def main():
            return await add(two(), two())
        print('the value is', asyncio.run(main()))
    """,
    "a dataflow": """
        @dataflow
        @process
        def double(x):
            return 2 * x
        print('the value is', double()(2))
    """,
    "a stream": """
        @dataflow
        @process
        def double(x):
            return 2 * x
        print('the value is', list(double().stream([1, 2])))
    """,
    "a function that the module calls": """
        def main():
            return add(two(), two())()
        print('the value is', main())
    """,
    "a nested run": """
        @process
        def outer():
            return add(two(), two())()
        print('the value is', outer()())
    """,
}


def caller_with(folder: Path, source: str, modules: dict[str, str], **environment: str) -> Caller:
    """A script with modules beside it, whose imports are counted."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return Caller(folder, source, IMPORTS=str(folder / "imports"), **environment)


def finish(caller: Caller) -> tuple[int, str, str, int]:
    """The exit status, the output, and how often the module was imported."""
    try:
        status, out, err = caller.start().finish(30)
    finally:
        caller.stop()
    assert caller.files() == []
    imports = caller.folder / "imports"
    return status, out, err, imports.read_text().count("flowmod") if imports.exists() else 0


def line_of(text: str, needle: str) -> int:
    """The number of the first line that contains a string."""
    return text[: text.index(needle)].count("\n") + 1


@pytest.mark.parametrize("how", RUNS)
def test_a_module_that_runs_a_graph_when_it_is_imported(tmp_path: Path, how: str, start: str) -> None:
    """It runs once: what a module defines while it is imported is pickled by value, as that of a
    script."""
    text = HEAD + textwrap.dedent(RUNS[how])
    status, out, err, imports = finish(caller_with(tmp_path, "import flowmod", {"flowmod": text}, ENTANGLE_START=start))
    assert (status, out.count("the value is"), imports) == (0, 1, 1), err


@pytest.mark.parametrize("start", ["forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
@pytest.mark.parametrize("how", ["a call", "await", "a stream", "a function that the module calls"])
def test_a_module_that_runs_a_graph_in_a_worker(tmp_path: Path, how: str, start: str) -> None:
    """The worker imports the module for the first time. That is one error, which names the module
    and the line, and nothing runs."""
    body = textwrap.indent(textwrap.dedent(RUNS[how]), "    ")
    text = HEAD + f"if os.path.exists('seen'):\n{body}\n"
    source = "import flowmod\nopen('seen', 'w').close()\nprint(flowmod.add(flowmod.two(), flowmod.two())())"
    status, out, err, imports = finish(caller_with(tmp_path, source, {"flowmod": text}, ENTANGLE_START=start))
    assert (status, out) == (1, ""), err
    last = [line for line in err.splitlines() if "RunAtImportError" in line]
    assert "module 'flowmod'" in last[-1], err
    where = "main())" if how == "a function that the module calls" else "print('the value is', "
    assert f"line {line_of(text, where)})" in last[-1], err
    assert "__main__" in last[-1]
    assert "outside of any task" not in err
    assert imports <= 4, imports  # its own import, and those of the workers of one run


def test_a_module_that_waits_for_a_thread_which_runs_a_graph(tmp_path: Path) -> None:
    """Another thread than the one that begins the run is still importing the module."""
    main = """
        import threading
        def main():
            print('the value is', add(two(), two())())
        mine = threading.Thread(target=main)
        mine.start()
        mine.join()
    """
    text = HEAD + textwrap.dedent(main)
    status, out, err, imports = finish(caller_with(tmp_path, "import flowmod", {"flowmod": text}, ENTANGLE_START="forkserver"))
    assert (status, out, imports) == (0, "the value is 4\n", 1), err


USES = """
import os
from entangle.process import process

@process
def make():
    import flowmod
    return flowmod.Mine()

@process
def take(value):
    return type(value).__name__
"""


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_value_whose_module_runs_a_graph(tmp_path: Path, start: str) -> None:
    """The worker that takes the value imports its module to unpickle it. It must not run the
    module's graph, which belongs to no task."""
    module = HEAD + "class Mine:\n    pass\n\nif os.environ.get('QUIET') != str(os.getpid()):\n    add(two(), two())()\n"
    source = """
    import os
    from uses import process, make, take
    from entangle.errors import RunAtImportError

    @process
    def made():
        os.environ["QUIET"] = str(os.getpid())
        return make.__wrapped__()

    try:
        print(take([made(), made()])())
    except RunAtImportError as error:
        assert "flowmod" in str(error), error
        print("refused")
    """
    status, out, err, _ = finish(caller_with(tmp_path, source, {"flowmod": module, "uses": USES}, ENTANGLE_START=start))
    # One worker may have made both values, and then unpickles none.
    assert (status, out) in ((0, "refused\n"), (0, "list\n")), err


def test_a_body_may_import_a_module_that_runs_a_graph(tmp_path: Path) -> None:
    """It is an ordinary nested run."""
    source = """
    from entangle.process import process

    @process
    def imports():
        import flowmod
        return flowmod.value

    if __name__ == "__main__":
        print(imports()())
    """
    module = HEAD + "value = add(two(), two())()\n"
    status, out, err, imports = finish(caller_with(tmp_path, source, {"flowmod": module}, ENTANGLE_START="fork"))
    assert (status, out, imports) == (0, "4\n", 1), err


def test_a_module_that_an_agent_imports(tmp_path: Path) -> None:
    """Another Python imports the modules of the caller. It neither runs a graph of theirs, nor
    imports a module that is still being imported."""
    there = HEAD + "from entangle.interpreter import interpreter\nimport sys\n@interpreter(python=sys.executable)\n@process\n"
    there += "def there():\n    return two()()\n"
    status, out, err, imports = finish(caller_with(tmp_path, "import flowmod", {"flowmod": there + "print('the value is', there()())"}))
    assert (status, out, imports) == (0, "the value is 2\n", 1), err
    there += "if os.path.exists('seen'):\n    print('the value is', two()())\n"
    source = "import flowmod\nopen('seen', 'w').close()\nprint(flowmod.there()())"
    status, out, err, imports = finish(caller_with(tmp_path, source, {"flowmod": there}))
    assert (status, out, imports) == (1, "", 1 + 2), err
    assert "RunAtImportError: module 'flowmod'" in err, err


def test_a_body_that_imports_the_module_which_runs_it(tmp_path: Path) -> None:
    """The module was pickled with the body. If the worker imported it by name, it would run again,
    and so on without end."""
    module = HEAD + "@process\ndef more():\n    import flowmod\n    return flowmod.two()()\nprint('the value is', more()())\n"
    status, out, err, imports = finish(caller_with(tmp_path, "import flowmod", {"flowmod": module}, ENTANGLE_START="forkserver"))
    assert (status, out, imports) == (1, "", 2), err
    assert "RunAtImportError: module 'flowmod'" in err, err


def test_a_module_that_starts_a_thread_which_runs_a_graph(tmp_path: Path) -> None:
    """The thread may begin its run after the worker has joined its own. It must be refused then,
    too: else each worker would start another one."""
    module = HEAD + textwrap.dedent("""
        import threading, time
        def later():
            gate.wait()
            try:
                add(two(), two())()
            except Exception as error:
                told.append(error)
        told, gate = [], threading.Event()
        late = threading.Thread(target=later, daemon=True)
        late.start()
        @process
        def release():
            gate.set()
            late.join()
            return [str(error) for error in told]
    """)
    source = "import flowmod\nprint(flowmod.release()())"
    status, out, err, _ = finish(caller_with(tmp_path, source, {"flowmod": module}, ENTANGLE_START="forkserver"))
    assert status == 0, err
    assert "runs a graph while it is imported" in out


def test_a_module_that_exits_when_it_is_imported_by_a_worker(tmp_path: Path) -> None:
    """An error that keeps a worker from joining its run is an error of the run, with the worker's
    traceback."""
    module = HEAD + "import sys\nif os.path.exists('seen'):\n    {}\nopen('seen', 'w').close()\n"
    for how in ("sys.exit(3)", "raise ValueError('not here')"):
        (tmp_path / "seen").unlink(missing_ok=True)
        source = "import flowmod\nprint(flowmod.two()())"
        status, _, err, _ = finish(caller_with(tmp_path, source, {"flowmod": module.format(how)}, ENTANGLE_START="forkserver"))
        assert status == 1
        told = next(line for line in err.splitlines() if line.startswith(("entangle.errors.E", "entangle.errors.U")))
        assert ("SystemExit: 3" if "exit" in how else "ValueError: not here") in told
        assert "flowmod.py" in err


def test_a_module_with_the_name_of_one_that_workers_need(tmp_path: Path) -> None:
    """Every interpreter that we start searches the script's directory first. It must not run a
    graph of a module that it finds there."""
    source = "from flowmod import two\nif __name__ == '__main__':\n    print(two()())"
    mine = "from flowmod import two\ntwo()()\n"
    status, out, err, imports = finish(caller_with(tmp_path, source, {"flowmod": HEAD, "cloudpickle": mine}, ENTANGLE_START="forkserver"))
    assert (status, out) == (1, "")
    assert "RunAtImportError: module 'cloudpickle'" in err, err
    assert "EntangleError: the forkserver ended while it started" in err, err
    assert imports <= 6, imports  # two servers at most: not one for each worker that was needed
