"""Every example runs as documented, exits with success, and prints something meaningful."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import entangle.examples

from .callers import ROOT, output_of
from .gremlins import Gremlin
from .services import given
from .services.hosts import what_is_missing
from .ways import installed, missing

#: What the output of each example must contain, as regular expressions.
TELLING = {
    "durableexample": [r"killed\nkilled\n320", r"download\('cy'\) ran 1 time\b", r"measure +ran 2 times", r"total +ran 2 times"],
    "dataflowexample": [r"told: emit", r"told: greet", r"leaves: \(27, 'ADA LOVELACE!', 12\)", r"again"],
    "dataflowexample2": [r"most frequent", r"process \d+", r"thread"],
    "lambdaexample": [r"is even", r"is odd", r"ends here"],
    "listexample": [r"3 ways", r"1 way\b", r"0 ways"],
    "listexample2": [r"invoice.*archived", r"urgent", r"discarded"],
    "streamexample": [r"window", r"rows", r"skipped", r"results"],
    "aiexample": [r"337 parameters", r"accuracy +\d"],
    "dockerexample": [r"here .*Python 3", r"container .*Python 3", r"3 calls in 1 container"],
    "interleavedexample": [
        r"station 0 says 11\.25 before the slow",
        r"station 4 says 12\.75 before the slow",
        r"station 2 says 12\.00 *\n",
    ],
    "lineageexample": [
        r"^21 comparisons, from 2\.087 to 2\.674\nmade from 1 add, 1 multiply, 20 sample, 10 disturb\n",
        r"  add: .*department=structures\n  multiply: .*\n43 calls in the container\n12 calls here\n$",
    ],
    "multitriggerexample": [
        r"^40 runs, .*; 39 ended well\n  ran with 1 … ran with 79\n  ValueError: 13 is none of ours\n  there is nothing to run",
        r"\nremembered: 39 done, 1 failed\n$",
    ],
    "hosts": [r"port \d+: Python 3"],
    "cloudsexample": [r"^1 add, 1 multiply, 16 sample, 8 disturb, \d+ look at: -?\d+\.\d{3}\n$"],
    "mixedplacesexample": [r"docker +1 call\n", r"ssh +1 call\n", r"slurm +\d+ calls in \d jobs?\n", r"local +\d+ calls\n"],
    "pipelinesexample": [
        r"small: 45\.279\n",
        r"\nsmall: 1 add, 5 disturb, 10 sample, 1 small\nlarge: 1 add, 10 disturb, 1 large, 20 sample\n",
        r"both have made the values of 1 add, 5 disturb, 10 sample\n$",
    ],
    "sshdataflowexample": [r"emit +gave", r"leaves are", r"hello > emit@here > printx@\d+ > printz@\d+ > echo@\d+"],
    "sshschedulerexample": [r"three +on", r"add +on", r"result is 5"],
    "example": [r"add", r"process \d+", r"result is 10"],
    "example2": [r"(?i)server", r"\d+"],
    # Each process serves one GPU for life. On one CPU, one process may take both nodes.
    "example3": [
        r"There is no GPU.*NVML.*ENTANGLE_GPUS=0,1",
        r"GPU [01],.* 100 populations",
        r"GPU [01],.* 400 populations.*25% have died out",
    ],
    "gpuexample": [r"There is no GPU.*NVML.*ENTANGLE_GPUS=0,1", r"square in process \d+ on GPU", r"mean is 3.16", r"largest is 39601"],
    "example4": [r"(?i)struck out", r"78,?498"],
    "example5": [r"(?i)area", r"\d\.\d"],
    "example6": [r"(?i)process", r"\d+"],
    "example_graph": [r'"add": \[', r'"6": \[\]', r'"subtract"'],
    "example_graph_future": [r"pending", r"called back", r"done"],
    "example_with_future": [r"called back with 9592", r"9592"],
    "fetch_example": [r"^page 13: JSONDecodeError: Expecting value", r"\n177\.00 in all, at most 3 requests at once\n$"],
    "images_example": [r"^half\.png: \w*Error\n24 thumbnails, of \[\(60, 96\), \(96, 60\)\] pixels: \d+ times smaller\n$"],
    "map_example": [
        r"^6171 takes 261 steps; 10,000 numbers",
        r"steps\(7\)>: 16\n.*steps\(0\)>: ValueError\('0 never.*\n.*steps\(27\)>: 111\n$",
    ],
    "cached_analysis_example": [
        r"^first +(December: .*), computed: 12 read, 1 report, 12 spread, 12 typical\nagain +\1, computed: nothing\n"
        r"comment +\1, computed: nothing\nhelper +December: .*, computed: 1 report, 12 typical\n$"
    ],
    "sweep_example": [r"of 100  poly, C=1\n", r"no score +rbf, C=-1: ValueError\n$"],
    "retry_example": [r"done on attempt 3", r"ProcessRetryException", r"attempt 4"],
    "schedulerexample": [r"(?i)cpu", r"\d"],
    "schedulerexample2": [r"(?i)cpu", r"\d"],
    "web_app_example": [r"^an option to buy at 90 is worth 10\.31\n", r"at 110 is worth 0\.51\n<session of \d+ warm workers>\n$"],
    "timeoutexample": [r"ProcessTimeoutException|took|longer", r"ThreadTimeoutException|thread"],
}

#: Examples that run in containers; those on other hosts are in FAR.
CONTAINED = ("aiexample", "dockerexample", "lineageexample")
#: Examples that install packages in their container, from an index on the network.
INSTALLING = ("aiexample",)
#: The examples that a new user writes first, and their largest number of lines.
EVERY_DAY, LINES = ("cached_analysis_example", "fetch_example", "images_example", "map_example", "sweep_example"), 60
#: Examples that log their progress, if they take longer than a second.
SHOWING = ("images_example",)
NEEDED = {"sweep_example": "sklearn", "images_example": "PIL"}
#: Examples that send their records to a Gremlin server.
GRAPHED = ("pipelinesexample",)
#: Examples that also need an engine or a cloud: `engines/test_examples_there.py` and
#: `clouds/test_documents.py` run them.
ENGINES = ("cloudsexample", "mixedplacesexample")
FAR = ("hosts", "sshdataflowexample", "sshschedulerexample")

FOUND = sorted(module.name for module in pkgutil.iter_modules(entangle.examples.__path__))


def run(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an example as a user would."""
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", f"entangle.examples.{name}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(runs), **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_every_example_is_known_here() -> None:
    assert sorted(TELLING) == FOUND


@pytest.mark.parametrize("name", [name for name in FOUND if name not in (*ENGINES, *GRAPHED)])
@pytest.mark.timeout(120)
def test_example(name: str, tmp_path: Path) -> None:
    if name in FAR and (lacking := what_is_missing()):
        missing(lacking)
    if name in INSTALLING:
        given.packages()
    if name in NEEDED:
        installed(NEEDED[name])
    check(name, tmp_path, **({"ENTANGLE_IMAGE": given.image()} if name in CONTAINED else {}))


@pytest.mark.parametrize("name", GRAPHED)
@pytest.mark.timeout(120)
def test_example_with_a_graph_database(name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    installed("gremlin_python")
    server = Gremlin(tmp_path_factory.mktemp("gremlin"))
    try:
        check(name, tmp_path, ENTANGLE_GRAPH=server.address)
    finally:
        server.kill()


def check(name: str, tmp_path: Path, **environment: str) -> None:
    """Run an example, and check what it printed and left behind."""
    done = run(name, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if not (name in SHOWING and "thumbnail" in line)]
    assert told == []
    for wanted in TELLING.get(name, []):
        assert re.search(wanted, done.stdout), f"{wanted!r} is not in what it printed:\n{done.stdout}"
    assert [path.name for path in (tmp_path / "runs").glob("entangle-*/*")] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]  # an example leaves no files behind


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
@pytest.mark.parametrize("name", ["example", "retry_example", "example5"])
def test_example_without_fork(name: str, start: str, tmp_path: Path) -> None:
    done = run(name, tmp_path, ENTANGLE_START=start)
    assert done.returncode == 0, done.stderr
    for wanted in TELLING[name]:
        assert re.search(wanted, done.stdout), done.stdout


def test_an_example_that_lacks_a_package_says_what_to_install(tmp_path: Path) -> None:
    """All run in one process, which finds only the packages of the core."""
    asking = {name for name in FOUND if "pip install" in source_of(name)}
    assert asking >= {name for name in FOUND if name not in CONTAINED and others_in(source_of(name))}
    for package in ("cloudpickle", "psutil"):
        origin = importlib.util.find_spec(package)
        assert origin is not None
        assert origin.origin is not None
        (tmp_path / package).symlink_to(Path(origin.origin).parent)
    program = (
        "import runpy, sys\n"
        "for name in sys.argv[1:]:\n"
        "    print(end=f'\\n{name}: ', flush=True)\n"
        "    try:\n"
        "        runpy.run_module(f'entangle.examples.{name}', run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        print(end)\n"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, "-S", "-W", "ignore", "-c", program, *asking],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line)
    assert {name for name in asking if not re.search(r" needs .*: pip install 'py-entangle\[\w+\]'$", told[name])} == set(), told


def source_of(name: str) -> str:
    return Path(entangle.examples.__path__[0], f"{name}.py").read_text(encoding="utf-8")


def others_in(source: str) -> set[str]:
    """The modules that a program imports from outside the standard library and this package."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"entangle"}


@pytest.mark.parametrize("name", FOUND)
def test_an_example_says_what_it_shows(name: str) -> None:
    source = source_of(name)
    assert source.startswith('"""')
    assert '__name__ == "__main__"' in source


@pytest.mark.parametrize("name", EVERY_DAY)
def test_what_people_write_every_day_is_short(name: str) -> None:
    source = source_of(name)
    assert len(source.splitlines()) <= LINES


def test_the_sweep_finds_what_scikit_learn_finds_by_itself(tmp_path: Path) -> None:
    """In one other process, one setting after the other: tests fork this process, so it must not
    load scikit-learn."""
    source = """
    import sys
    from sklearn.datasets import load_digits
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import SVC
    from entangle.examples.sweep_example import sweep

    X, y = load_digits(return_X_y=True)
    def alone(name):
        kernel, penalty = name.split(", C=")
        return 100 * cross_val_score(SVC(kernel=kernel, C=float(penalty)), X[:200], y[:200], cv=3).mean()

    found = sweep(200)
    bad = {name: type(value).__name__ for name, value in found.items() if not isinstance(value, float)}
    print(len(found), bad, all(abs(alone(name) - value) < 1e-9 for name, value in found.items() if name not in bad))
    """
    installed("sklearn")
    assert output_of(tmp_path, source, PYTHONWARNINGS="default") == "10 {'rbf, C=-1': 'ValueError'} True\n"


#: Runs a notebook with nbclient, and prints the outputs of its cells as JSON.
EXECUTE = """
import json, sys
import nbclient, nbformat
book = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(book, timeout=100, kernel_name="python3").execute()
cells = [cell for cell in book.cells if cell.cell_type == "code"]
print(json.dumps([[output.get("data", output) for output in cell.outputs] for cell in cells]))
"""


@pytest.mark.timeout(180)
def test_the_notebook_ends_in_a_table(tmp_path: Path) -> None:
    """Runs the real notebook. The best settings are flexible enough; the bad one is an error in its
    row."""
    for package in ("nbclient", "ipykernel", "pandas"):
        installed(package)
    notebook = Path(entangle.examples.__path__[0], "sweep_notebook.ipynb")
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert sum(len(cell["source"]) for cell in cells) <= LINES
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    runs = tmp_path / "runs"
    runs.mkdir()
    folders = {f"{name}_DIR": str(tmp_path / name) for name in ("JUPYTER_CONFIG", "JUPYTER_RUNTIME", "JUPYTER_DATA")}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(notebook)],
        cwd=tmp_path,
        env={**os.environ, **folders, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(runs), "IPYTHONDIR": str(tmp_path / "ipython")},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    outputs = json.loads(done.stdout.splitlines()[-1])
    table = outputs[-1][0]
    assert "<table" in table["text/html"]
    rows = [line.split(maxsplit=4) for line in table["text/plain"].splitlines()[1:]]
    assert len(rows) == 9
    assert {row[1] for row in rows[:4]} == {"5", "7"}
    assert all(float(row[3]) < 0.21 for row in rows[:6])
    assert rows[-1][1:] == ["3", "1.0", "NaN", "a part of 1.0 leaves no points"]
    assert list(runs.glob("entangle-*/*")) == []
