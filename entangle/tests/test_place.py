"""`@place`: what a name stands for, which host is used, and the command `entangle places`."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entangle import records
from entangle._remote.caller.open_channels import close_all
from entangle._worker import inline
from entangle._worker.worker import here
from entangle.cli import main
from entangle.errors import OptionError, UnreachableError
from entangle.place import place
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import Layer, task

from .evidence import note, notes
from .far_bodies import add, where
from .places import far_pythons
from .services import given
from .services.hosts import Hosts


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    """Hosts that are reached by ssh."""
    return given.shared_hosts()


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that is the working directory, and a user who has defined no places."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "project" / "below"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder.parent


def table(**options: Any) -> str:
    """Options as TOML, whose arrays and strings are written as in JSON."""
    told = {name: json.dumps(value) for name, value in options.items() if not isinstance(value, list)}
    told |= {name: f"[{', '.join(_inline(one) for one in value)}]" for name, value in options.items() if isinstance(value, list)}
    return "".join(f"{name} = {value}\n" for name, value in told.items())


def _inline(value: Any) -> str:
    return "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + "}" if isinstance(value, dict) else json.dumps(value)


def define(file: Path, **places: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write a file that defines these places."""
    file.parent.mkdir(parents=True, exist_ok=True)
    above = "tool.entangle.places" if file.name == "pyproject.toml" else "places"
    told = [f"[{above}.{name}]\n{table(**one)}" for name, one in places.items() if isinstance(one, dict)]
    told += [f"[[{above}.{name}]]\n{table(**one)}" for name, many in places.items() if isinstance(many, list) for one in many]
    file.write_text("\n".join(told))


def broken_python(folder: Path) -> Path:
    """A Python that cannot be used: a program that notes its start and exits."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\necho started >> {folder / 'starts'}\necho 'gone fishing' >&2\nexit 1\n")
    program.chmod(0o755)
    return program


# --- what a name stands for -----------------------------------------------------------------------


def test_a_place_runs_the_layers_below_it_and_other_workers_find_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_GPUS", "7")
    monkeypatch.syspath_prepend(project)
    (project / "ranks.py").write_text(
        "import os, sys\nfrom entangle.place import place\nfrom entangle.process import process\nfrom entangle.scheduler import scheduler\n"
        "@place('far')\n@scheduler(gpus=1)\n@process\ndef device(): return sys.version_info[:2], os.environ['CUDA_VISIBLE_DEVICES']\n"
        "@place('here')\ndef pid(): return os.getpid()\n"
    )
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").symlink_to(far_pythons(same=False))
    # The path is relative to the file's directory, not to the working directory.
    define(project / "pyproject.toml", far={"kind": "interpreter", "python": ".venv/bin/python"}, here={"kind": "local", "cpus": 1})
    ranks = importlib.import_module("ranks")
    try:
        version, device = ranks.device()()
        assert (tuple(version) != sys.version_info[:2], device) == (True, "7")
        assert ranks.pid()() == os.getpid()
        assert process(ranks.device)().run(start="spawn") == (version, device)
        assert process(ranks.pid)().run(start="forkserver") != os.getpid()
    finally:
        del sys.modules["ranks"]


def test_paths_are_from_the_directory_of_the_file(project: Path) -> None:
    (project / "data").mkdir()
    (project / "data" / "figure").write_text("42")
    box = {"kind": "docker", "image": given.image(), "network": "none", "volumes": ["./data:/data:ro"]}
    define(project / "entangle.toml", box=box)

    @place("box")
    def read() -> str:
        with open("/data/figure") as file:
            return file.read()

    assert read()() == "42"


def test_the_nearest_file_counts_and_the_users_own_adds(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    define(project.parent / "entangle.toml", above={"kind": "local"})
    define(project / "entangle.toml", one={"kind": "local", "cpus": 1})
    (project / "pyproject.toml").write_text('[tool.entangle.places.two]\nkind = "local"\ncpus = 2\n')
    define(project.parent / "config" / "entangle" / "entangle.toml", one={"kind": "local", "cpus": 9}, mine={"kind": "local", "cpus": 3})
    assert [[pool.size for pool in place(name)(where).body.pools] for name in ("one", "two", "mine")] == [[1], [2], [3]]
    with pytest.raises(OptionError, match=r"no place 'above'.* There are: mine, one, two \(.*pyproject.toml, .*entangle.toml"):
        place("above")
    with pytest.raises(OptionError, match="did you mean 'mine'"):
        place("mein")
    # A program's places are defined beside its script, wherever it is started.
    script = project.parent / "elsewhere" / "src" / "program.py"
    define(script.parent.parent / "entangle.toml", above={"kind": "local", "cpus": 4})
    script.parent.mkdir()
    script.write_text("")
    # In a worker of pytest-xdist, the main module has no file.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    assert [pool.size for pool in place("above")(where).body.pools] == [4]


def test_a_module_can_be_imported_where_no_file_says_what_a_place_is(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = place("gpu-box")(process(add))
    monkeypatch.setattr(inline, "on", True)
    assert task(1, 2)() == 3  # as in a test on a machine that has no such place


def test_without_a_file_a_call_is_an_error_that_says_what_to_write(project: Path) -> None:
    task = place("gpu-box")(process(where))
    with pytest.raises(OptionError, match=r"no place 'gpu-box': .*\[tool.entangle.places.NAME\].*\[places.NAME\]"):
        task()()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[places.x]\nhost = "a"', r"\[places.x\]: it says no kind; it must be one of ssh, "),
        ('[places.x]\nkind = "shh"', "kind='shh'; did you mean 'ssh'"),
        ('[places.x]\nkind = "ssh"\nhost = "a"\nport = "22"', "@ssh: port='22'; it must be a whole number"),
        ('[places.x]\nkind = "ssh"\nhots = "a"', "@ssh has no option 'hots'; did you mean 'host'"),
        ('[places.x]\nkind = "ssh"\nhosts = []', "it must be a list of names"),
        ('[places.x]\nkind = "ssh"\nhost = "a"\nhosts = ["b"]', "it has host and hosts"),
        ('[places]\nx = "ssh"', "it must be a table"),
        ('[[places.x]]\nkind = "ssh"\nhost = "a"\n[[places.x]]\nkind = "local"', "kind='local' cannot be one of several"),
        ('[x]\nkind = "ssh"', r"nothing called 'x' .* \[places.x\]"),
        ('[tool.entangle.places.x]\nkind = "ssh"', r"\[places.NAME\]"),
        ("places = 3", "it must be tables"),
        ("[places.x", "cannot be read: Expected"),
    ],
)
def test_what_cannot_be_right_is_said_with_file_and_table_where_the_function_is_decorated(project: Path, text: str, told: str) -> None:
    (project / "entangle.toml").write_text(text)
    with pytest.raises(OptionError, match=f"(?s){project / 'entangle.toml'}.*{told}"):
        place("x")


@pytest.mark.parametrize("wrong", [None, "", 3, where])
def test_a_place_needs_a_name(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"@place needs .*: @place\('gpu-box'\)"):
        place(wrong)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give a file to another user")
def test_a_file_of_another_user_is_not_read(project: Path) -> None:
    define(project / "entangle.toml", x={"kind": "local"})
    os.chown(project / "entangle.toml", 12345, 12345)
    task = place("x")(where)
    with pytest.raises(OptionError, match=r"another user owns it: .*entangle.toml"):
        task()()


def test_another_place_does_not_look_for_files(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project)
    (project / "farther.py").write_text(
        "from entangle.place import place\n@place('far')\ndef outer(): return inner()()\n@place('second')\ndef inner(): return 3\n"
    )
    there = {"kind": "interpreter", "python": far_pythons(same=True)}
    define(project / "entangle.toml", far=there, second=there)
    farther = importlib.import_module("farther")
    try:
        assert farther.inner()() == 3
        with pytest.raises(OptionError, match="known to the program that has begun the run"):
            farther.outer()()
    finally:
        del sys.modules["farther"]


# --- several hosts --------------------------------------------------------------------------------


def test_hosts_are_tried_in_turn_and_the_one_that_is_reached_is_remembered(hosts: Hosts, project: Path, tmp_path: Path) -> None:
    away = hosts.options("alpha")
    away["hosts"] = [{"host": "127.0.0.1", "port": 1}, {"host": away.pop("host"), "port": away.pop("port", 22)}]
    python = str(broken_python(tmp_path))
    define(project / "entangle.toml", x={"kind": "ssh", **away}, y=[{"kind": "interpreter", "python": python}, {"kind": "interpreter"}])
    assert place("x")(where)()() == hosts["alpha"].address
    there = place("y")(os.getpid)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: there()(), range(8)))) == 1
    close_all()
    assert there()() != os.getpid()
    assert process(there)().run(start="spawn") != os.getpid()
    # Started once: all later calls went straight to the other host.
    assert (tmp_path / "starts").read_text() == "started\n"


def test_where_none_can_be_reached_each_is_named_with_its_reason(project: Path, tmp_path: Path) -> None:
    nothing = {"kind": "ssh", "host": "127.0.0.1", "port": 1, "user": "me"}
    define(project / "entangle.toml", x=[nothing, {"kind": "interpreter", "python": str(broken_python(tmp_path))}])
    with pytest.raises(UnreachableError, match=r"(?s)place 'x': none of its 2 hosts.*me@127.0.0.1:1: .*\n.*python: .*gone fishing"):
        place("x")(where)()()


def test_a_body_that_has_begun_is_never_run_in_the_next_host(project: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "bodies")
    one, two = far_pythons(same=True), sys.executable
    define(project / "entangle.toml", x=[{"kind": "interpreter", "python": one}, {"kind": "interpreter", "python": two}])

    @place("x")
    def body(kill: bool) -> None:
        note(log, "begun")
        if kill:
            os._exit(3)
        raise UnreachableError("what this body looks for")

    with pytest.raises(UnreachableError, match="what this body looks for"):
        body(False)()
    with pytest.raises(ConnectionError):
        body(True)()
    assert len(notes(log)) == 2


def test_an_unknown_host_key_is_not_passed_over(hosts: Hosts, project: Path, tmp_path: Path) -> None:
    (tmp_path / "none_known").write_text("")
    first = hosts.options("alpha", known_hosts=str(tmp_path / "none_known"))
    define(project / "entangle.toml", x=[{"kind": "ssh", **first}, {"kind": "ssh", **hosts.options("bravo")}])
    with pytest.raises(UnreachableError, match="known_hosts"):
        place("x")(where)()()


def test_a_scheduler_above_keeps_its_cookies_here(project: Path) -> None:
    define(project / "entangle.toml", x={"kind": "interpreter"})
    assert scheduler(cpus=1)(place("x")(where)).body.pools
    with pytest.raises(OptionError, match="put @scheduler"):
        scheduler(gpus=1)(place("x")(where))


# --- records --------------------------------------------------------------------------------------


class Queue(Layer):
    """Notes what a service would: the job of the body, and its time in the queue."""

    def run(self, inner: Any, args: Any, kwargs: Any) -> Any:
        worker = here.worker
        assert worker is not None
        assert worker.notes is not None
        worker.notes.elsewhere(worker.node(), "cluster", "job 7", 50_000)
        return inner(*args, **kwargs)


def test_records_say_where_each_node_ran(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(project / "records"))
    python = far_pythons(same=True)
    define(project / "entangle.toml", x={"kind": "interpreter", "python": python})
    far, near, queued = place("x")(process(add)), process(add), process(task(add, Queue()))
    assert near(far(far(1, 2), 3), queued(4, 5))() == 15
    run = records.run("last")
    nodes = {(node.name, node.place, node.ticket) for node in run.nodes}
    assert nodes == {("add", python, None), ("add", "cluster", "job 7"), ("add", None, None)}
    (job,) = [node for node in run.nodes if node.ticket]
    assert job.times.queued == 0.00005
    assert job.ended_ns is not None
    assert job.started_ns is not None
    assert job.seconds == job.times.running == (job.ended_ns - job.started_ns) / 1e9
    # What ran inside the nodes elsewhere counts as part of them.
    assert len(run.children) == 2
    shares = {share.name: share for share in run.places()}
    assert {(name, share.here, share.nodes, share.done) for name, share in shares.items()} == {
        (run.host, True, 1, 1),
        (python, False, 2, 2),
        ("cluster", False, 1, 1),
    }
    assert shares["cluster"].queued == 0.00005
    assert any("place('x')" in task.layers for task in run.tasks)
    assert main(["show", "last"]) == 0
    assert f"  on {python}" in (tree := capsys.readouterr().out)
    assert "  on cluster, job 7" in tree
    assert main(["show", "last", "--by", "place"]) == 0
    assert re.search(rf"\n{run.host} \(here\) +1 ", capsys.readouterr().out)
    assert main(["show", "last", "--by", "place", "--json"]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)} == {run.host, python, "cluster"}
    assert main(["show", "last", "--by", "worker"]) == 2
    for drawn in (run.to_trace(), run.to_prov(), json.dumps(run.to_dict())):
        assert "job 7" in drawn
        assert python in drawn


# --- entangle places ------------------------------------------------------------------------------


def test_places_are_listed_also_where_a_table_is_wrong(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["places"]) == 0
    assert "[tool.entangle.places.NAME]" in capsys.readouterr().out
    file = project / "entangle.toml"
    define(file, here={"kind": "local"}, box={"kind": "ssh", "hosts": ["one", "two"], "user": "me"}, bad={"kind": "ssh"})
    assert main(["places"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["bad", "box", "here"]
    assert re.search(rf"ssh +me@one, me@two +{file}", lines[2])
    assert main(["places", "--json"]) == 0
    bad, box, here = json.loads(capsys.readouterr().out)
    assert "@ssh needs a host" in bad["trouble"]
    assert (box["kinds"], box["hosts"], box["file"], box["table"]) == (["ssh", "ssh"], ["me@one", "me@two"], str(file), "places.box")
    assert (here["kinds"], here["trouble"]) == (["local"], "")


def test_a_place_is_checked(hosts: Hosts, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {"kind": "ssh", "host": "127.0.0.1", "port": 1, "user": "me"}
    define(project / "entangle.toml", x=[nothing, {"kind": "ssh", **hosts.options("alpha")}], gone=nothing, here={"kind": "local"})
    assert main(["places", "check", "x", "here"]) == 0
    told = capsys.readouterr()
    assert told.err.startswith("  me@127.0.0.1:1: no ssh server answers")
    assert re.search(
        rf"(?s)^x \(ssh; .*\n  \S*{hosts['alpha'].address}.*: Python {platform.python_version()} .*; connected in \d+ ms", told.out
    )
    assert re.search(r"(?s)here \(local; .*round trip [\d.]+ ms", told.out)
    assert main(["places", "check", "--json", "gone"]) == 5
    assert "no ssh server" in json.loads(capsys.readouterr().out)[0]["hosts"][0]["trouble"]
    assert main(["places", "check", "nowhere"]) == 3
    assert "There are: gone, here, x" in capsys.readouterr().err


def test_packages_are_looked_for(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "pyproject.toml").write_text(
        '[project]\ndependencies = ["pytest>=8", "nowhere-to-be-had==1", "tomli; python_version<\'3\'"]\n'
    )
    define(project / "entangle.toml", me={"kind": "interpreter"}, bad={"kind": "ssh"})
    assert main(["places", "check", "bad", "me"]) == 1
    told = capsys.readouterr()
    assert "@ssh needs a host" in told.err
    assert "packages: pytest" in told.out  # an error in one place hides nothing of another
    assert main(["places", "check", "me"]) == 1
    assert re.search(rf"packages: pytest {pytest.__version__}\n.*missing: the package nowhere-to-be-had\n", capsys.readouterr().out)
    assert main(["places", "check", "me", "--package", "nowhere-to-be-had"]) == 1
    assert main(["places", "check", "me", "--package", "pytest"]) == 0
    capsys.readouterr()
    assert main(["places", "check", "bad", "me", "--package", "pytest", "--json"]) == 1
    bad, me = json.loads(capsys.readouterr().out)
    assert ("@ssh needs a host" in bad["trouble"], bad["hosts"], me["hosts"][0]["trouble"]) == (True, [], "")
