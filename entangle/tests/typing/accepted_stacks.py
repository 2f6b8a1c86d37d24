"""Decorators on top of one another, in both orders: the arguments and the value stay known."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from entangle.containers import apptainer
from entangle.docker import docker
from entangle.http import request
from entangle.interpreter import interpreter
from entangle.limit import limit
from entangle.local import local
from entangle.place import place
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.ssh import ssh
from entangle.task import Call, task
from entangle.thread import thread
from entangle.workflow import workflow


@process
def one() -> int:
    return 1


@limit("db", at_once=5)
@process(timeout=3)
def limited_above(n: int, name: str = "") -> str:
    return name


@process(timeout=3)
@limit("api", per_second=10, burst=2)
def limited_below(n: int) -> str:
    return str(n)


@thread
@scheduler(cpus=2)
@local
@limit("both", at_once=2, per_second=0.5)
def four(n: int) -> str:
    return str(n)


@interpreter(python="python3")
@process
def elsewhere(n: int) -> str:
    return str(n)


@process
@interpreter
def elsewhere_below(n: int) -> str:
    return str(n)


@place("gpu-box")
@process
def named(n: int) -> str:
    return str(n)


@ssh(host="miko", user="me", port=22, known_hosts=False)
@process
def far(n: int) -> str:
    return str(n)


@docker(image="python:3.13-slim", packages=["numpy"], memory="2g", cpus=1.5, volumes={"a": "/b"})
@scheduler(cpus=2)
@process
def contained(n: int) -> str:
    return str(n)


@process
@apptainer(image="a.sif", env={"A": "b"})
def contained_below(n: int) -> str:
    return str(n)


@process(retry=2)
@request(url="http://localhost/data", method="GET", timeout=3, headers={"A": "b"})
def page(content: bytes) -> int:
    return len(content)


@process(shared_memory=True)
def with_memory(n: int, smm: Any, sm: Any) -> str:
    return str(n)


@task(attributes={"owner": "me"})
@workflow
def flow_above(n: int) -> Call[str]:
    return limited_above(n)


@workflow
@scheduler(cpus=1)
def flow_below(n: int) -> Call[str]:
    return limited_above(n)


@workflow()
@limit("flows", at_once=2)
def flow_with_options(n: int) -> Call[str]:
    return limited_above(n)


def check() -> None:
    assert_type(limited_above(1, "a")(), str)
    assert_type(limited_above(one(), name="a")(), str)
    assert_type(limited_below(one())(), str)
    assert_type(four(one())(), str)
    assert_type(elsewhere(one())(), str)
    assert_type(elsewhere_below(one())(), str)
    assert_type(named(1), Call[str])
    assert_type(far(one())(), str)
    assert_type(contained(one())(), str)
    assert_type(contained_below(one())(), str)
    length: int = page(user=3, query="a")()
    assert_type(with_memory(3)(), str)
    assert_type(with_memory(one())(), str)
    assert_type(flow_above(one())(), str)
    assert_type(flow_below(one())(), str)
    assert_type(flow_with_options(one())(), str)
    assert_type(four.map([one(), 2])(), list[str])
    print(length)
