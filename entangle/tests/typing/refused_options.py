"""Options that a decorator does not have, and values that they cannot be."""

from __future__ import annotations

from entangle.containers import apptainer, singularity
from entangle.dataflow import dataflow
from entangle.docker import docker
from entangle.http import request
from entangle.interpreter import interpreter
from entangle.limit import limit
from entangle.local import local
from entangle.place import place
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.ssh import ssh
from entangle.task import task
from entangle.thread import thread
from entangle.workflow import workflow

process(timout=3)  # error
process(timeout="3")  # error
process(retry=1.5)  # error
process(retry="3")  # error
process(on="ValueError")  # error
process(3)  # error
process(cache="yes")  # error
thread(fresh=True)  # error
thread(timeout="1")  # error
thread(shared_memory="yes")  # error
scheduler(cpus="2")  # error
scheduler(cpu=2)  # error
scheduler(gpus="1")  # error
scheduler(gpus=1, shared=2)  # error
scheduler(share=2)  # error
scheduler(gpus=1, impl="package.Class")  # error
limit(at_once=5)  # error
limit("db")  # error
limit("db", at_onc=5)  # error
limit("db", at_once="5")  # error
limit("api", per_second="10")  # error
local(cpu=2)  # error
workflow(timeout=3)  # error
workflow(graph=8182)  # error
dataflow(executor="proces")  # error
dataflow(maxworkers="2")  # error
dataflow(callbak=print)  # error
task(attribute={})  # error
request(method="GET")  # error
request(url=3)  # error
request(url="http://localhost", header={})  # error
ssh(user="me")  # error
ssh(host="a", port="22")  # error
ssh(host="a", keys="id")  # error
docker(packages=["numpy"])  # error
docker(image="python", memry="2g")  # error
docker(image="python", cpus="2")  # error
apptainer(image=3)  # error
singularity(images="a.sif")  # error
interpreter(pyhton="python3")  # error
place()  # error
place(3)  # error
place("gpu-box", kind="ssh")  # error


@process(retry="3")  # error
def fetch(name: str) -> str:
    return name


@ssh  # error
def far(name: str) -> str:
    return name


@docker  # error
def contained(name: str) -> str:
    return name


@request  # error
def page(content: bytes) -> str:
    return content.decode()
