"""Wrong arguments of functions under several decorators."""

from __future__ import annotations

from entangle.docker import docker
from entangle.limit import limit
from entangle.local import local
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import Call, task
from entangle.thread import thread
from entangle.workflow import workflow


@limit("db", at_once=5)
@process(timeout=3)
def above(n: int, name: str = "") -> str:
    return name


@thread
@scheduler(cpus=2)
@local
@limit("api", per_second=10)
def four(n: int) -> str:
    return str(n)


@docker(image="python:3.13-slim")
@process
def contained(n: int) -> str:
    return str(n)


@task(attributes={"owner": "me"})
@workflow
def flow(n: int) -> Call[str]:
    return above(n)


def check() -> None:
    above("a")  # error
    above(1, nam="a")  # error
    above(four(1))  # error
    four()  # error
    four(n="a")  # error
    four.map(["a"])  # error
    contained(1, 2)  # error
    flow("a")  # error
    wrong: int = flow(1)()  # error
    above(flow(1))  # error
    print(wrong)
