"""`@slurm` without a cluster. The tests with a cluster are in `engines/`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from entangle._remote.transport.slurm_allocation import job_name
from entangle._remote.transport.slurm_queue import node_names, seconds_of
from entangle.errors import OptionError, UnreachableError
from entangle.process import process
from entangle.slurm import Slurm, slurm

from .bodies import one


def _layer(task: Any) -> Slurm:
    found = task.layers[0]
    assert isinstance(found, Slurm)
    return found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "time="),
        ({"time": 0}, "time=0"),
        ({"time": "soon"}, "time='soon'"),
        ({"time": True}, "time=True"),
        ({"time": 60, "cpus": 0}, "cpus=0"),
        ({"time": 60, "jobs": "2"}, "jobs='2'"),
        ({"time": 60, "nodes": 1.5}, "nodes=1.5"),
        ({"time": 60, "memory": "much"}, "memory='much'"),
        ({"time": 60, "partition": "--wrap=x"}, "partition="),
        ({"time": 60, "setup": "module load python"}, "setup="),
        ({"time": 60, "setup": ["a\nb"]}, "setup="),
        ({"time": 60, "options": {"--exclusive": True}}, "'--exclusive'"),
        ({"time": 60, "options": ["exclusive"]}, "options="),
        ({"time": 60, "partion": "main"}, "partion"),
        ({"time": 60, "detached": "no"}, "detached='no'"),
        ({"time": 60, "detached": True, "jobs": 2}, "jobs=2"),
        ({"time": 60, "mailbox": "/shared"}, "mailbox= is for detached=True"),
        ({"time": 60, "detached": True, "mailbox": ""}, "mailbox=''"),
    ],
)
def test_bad_options_are_refused_when_it_is_decorated(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        slurm(**options)(one)
    assert said in str(caught.value)


def test_it_needs_parentheses() -> None:
    with pytest.raises(OptionError, match="parentheses"):
        slurm(one)  # type: ignore[arg-type]


def test_the_walltime_comes_from_a_timeout_below() -> None:
    assert _layer(slurm()(process(timeout=90)(one))).transport.time == 150
    assert _layer(slurm(time="2:00:00")(process(timeout=90)(one))).transport.time == 7200
    assert _layer(slurm(time=timedelta(minutes=3))(one)).transport.time == 180
    with pytest.raises(OptionError, match="shorter than the timeout"):
        slurm(time=60)(process(timeout=90)(one))


def test_what_salloc_is_told() -> None:
    told = _layer(slurm(time=61, memory=1 << 30, options={"exclusive": True, "mail_type": "END", "comment": None})(one)).transport.salloc()
    assert told[0] == "salloc"
    assert {"--time=2", "--mem=1048576K", "--exclusive", "--mail-type=END"} <= set(told)
    assert not any("comment" in word or "partition" in word for word in told)


def test_jobs_have_the_names_of_their_tasks() -> None:
    assert job_name(["fit", "fit"]) == "entangle:fit"
    assert job_name(["load", "fit"]) == "entangle:fit,load"
    assert job_name("edcba") == "entangle:a,b,c,+2"
    assert job_name(["x\n" * 99]) == "entangle:" + "x?" * 40
    asked = _layer(slurm(time=60)(one)).transport
    assert "--job-name=entangle:fit" in asked.salloc("entangle:fit")
    named = _layer(slurm(time=60, options={"job_name": "mine"})(one)).transport
    assert [word for word in named.salloc("entangle:fit") if "job-name" in word] == ["--job-name=mine"]
    task: Any = slurm(time=60, options={"job_name": "mine"}, detached=True, mailbox="/shared")(one)
    # After our own: the last one applies.
    assert "--job-name=mine" in task.layers[0].place.service.stated


def test_what_sbatch_is_told() -> None:
    task: Any = slurm(partition="main", memory="1G", setup=["true"], options={"exclusive": True}, detached=True, mailbox="/shared")(
        process(timeout=90)(one)
    )
    jobs = task.layers[0].place.service
    assert {"--partition=main", "--time=3", "--mem=1G", "--exclusive"} <= set(jobs.stated)
    assert (jobs.time, jobs.folder, jobs.setup, jobs.place) == (150.0, "/shared/slurm", ("true",), "slurm:main")
    assert not jobs.leased


def test_times_of_slurm() -> None:
    assert [seconds_of(text) for text in ("5", "1:30", "2:00:00", "1-00:00:01", "UNLIMITED", "")] == [300, 90, 7200, 86401, None, None]
    assert node_names("n7") == ("n7",)


def test_without_slurm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnreachableError, match="slurm-client"):
        slurm(time=60)(one)()()
