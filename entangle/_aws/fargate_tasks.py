"""Fargate as a service: a task of ECS a call."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from entangle._aws.account import Account, asking, told
from entangle._aws.container_jobs import START, about, end_of_log, ended, job_name
from entangle._aws.ecs_cluster import GROUP, where, why_no_log
from entangle._services import OVER, PENDING, RUNNING, Limits, Service, State, Submission
from entangle.errors import OptionError, UnreachableError

T = TypeVar("T")
R = TypeVar("R")

#: Tasks in one request of DescribeTasks, and characters of all overrides of a task, in JSON.
#: Source: the ECS API reference.
MANY, OVERRIDES = 100, 8192
#: Requests of RunTask under way at once, and in one `submit`: Fargate starts 100 at once and 20 a
#: second after that.
AT_ONCE, SUBMITTED = 8, 100
#: The name of the container in a task.
NAME = "body"
#: What ECS says when there is no room now, but may be later.
_LATER = re.compile(
    r"Capacity is unavailable|reached the limit on the number|RESOURCE:|Throttl|Rate exceeded|TooManyRequests|service is unavailable"
)
#: What ECS does in the states in which a task does not run yet.
_BEFORE = {
    "PROVISIONING": "PROVISIONING: Fargate looks for a machine and makes its network",
    "PENDING": "PENDING: the image is fetched and the container starts",
    "ACTIVATING": "ACTIVATING",
}


@dataclass(frozen=True)
class FargateTasks(Service):
    """Tasks of ECS on Fargate with these options."""

    account: Account
    image: str
    #: In 1,024th of a vCPU, and in MiB: a size that Fargate has.
    units: int
    memory: int
    cluster: str = "default"
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    spot: bool = False
    execution_role: str | None = None
    job_role: str | None = None
    architecture: str | None = None
    public_ip: bool = True
    interpreter: str = "python3"
    environment: tuple[tuple[str, str], ...] = ()
    #: How long a task may run where the call does not say (seconds).
    life: float | None = None
    #: What people are told once, before the first task.
    note: str = ""

    name: ClassVar[str] = "fargate"
    every: ClassVar[float] = 2.0
    grace: ClassVar[float] = 3.0

    @property
    def place(self) -> str:
        """The cluster."""
        return f"fargate:{self.cluster.rpartition('/')[2]}"

    @property
    def python(self) -> Sequence[str]:
        """The Python of the image."""
        return [self.interpreter]

    def limits(self) -> Limits:
        """How many are submitted at once; whether a command fits, ECS's own limit says."""
        return Limits(message=16 << 10, life=self.life, at_once=SUBMITTED)

    def about(self) -> dict[str, Any]:
        """The Python of the image, told by its tag where that says it, else by a task."""
        self._where()
        if self.note:
            _say_once(f"@fargate: {self.note}")
        return about(self, self.account, self.image)

    # What there is ------------------------------------------------------------------------------

    def _where(self) -> dict[str, Any]:
        return where(self.account, self.cluster, self.subnets, self.security_groups, self.spot, self.public_ip)

    def _definition(self) -> str:
        """The task definition for these options, made once: its name is the hash of its content."""
        container: dict[str, Any] = {
            "name": NAME,
            "image": self.image,
            "essential": True,
            "command": [*self.python, "-c", "pass"],
            "environment": [{"name": name, "value": value} for name, value in self.environment],
            "linuxParameters": {"initProcessEnabled": True},
        }
        if not self._no_log():
            region = self.account.client("logs").meta.region_name
            options = {"awslogs-group": GROUP, "awslogs-region": region, "awslogs-stream-prefix": "task"}
            container["logConfiguration"] = {"logDriver": "awslogs", "options": options}
        roles = {"executionRoleArn": self.execution_role, "taskRoleArn": self.job_role}
        wanted: dict[str, Any] = {
            "containerDefinitions": [container],
            "requiresCompatibilities": ["FARGATE"],
            "networkMode": "awsvpc",
            "cpu": str(self.units),
            "memory": str(self.memory),
            **{name: role for name, role in roles.items() if role},
        }
        if self.architecture:
            wanted["runtimePlatform"] = {"operatingSystemFamily": "LINUX", "cpuArchitecture": self.architecture}
        family = f"entangle-{hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:20]}"
        key = self.account, family
        if key not in _definitions:
            from botocore.exceptions import ClientError

            ecs = self.account.client("ecs")
            with asking(self.account, "ecs"):
                try:
                    made = ecs.describe_task_definition(taskDefinition=family)["taskDefinition"]
                except ClientError as error:
                    if error.response["Error"]["Code"] != "ClientException":
                        raise
                    made = ecs.register_task_definition(family=family, tags=_tags("definition"), **wanted)["taskDefinition"]
            _definitions[key] = made["taskDefinitionArn"]
        return _definitions[key]

    def _no_log(self) -> str:
        """Why tasks have no log; "" if they have one."""
        if not self.execution_role:
            return "a task has a log if it has a role that may write it: execution_role="
        return why_no_log(self.account)

    # The verbs ----------------------------------------------------------------------------------

    def submit(self, messages: Sequence[Submission]) -> Sequence[str]:
        """A task each. What ECS has no room for now comes again."""
        self._where(), self._definition()  # their errors are those of all
        tickets: list[str] = []
        for at in range(0, len(messages), AT_ONCE):
            some = messages[at : at + AT_ONCE]
            began = _each(self._begin, some)
            first = next((place for place, ticket in enumerate(began) if not isinstance(ticket, str)), len(some))
            tickets += [ticket for ticket in began[:first] if isinstance(ticket, str)]
            if first == len(some):
                continue
            # They come again, and have begun already: two tasks would cost twice as much.
            early = {message.command: ticket for message, ticket in zip(some, began, strict=True) if isinstance(ticket, str)}
            _early.update({command: ticket for command, ticket in early.items() if ticket not in tickets})
            trouble = began[first]
            if isinstance(trouble, Exception) and not tickets:
                self.cancel([_early.pop(message.command) for message in messages if message.command in _early])
                raise trouble
            return tickets
        return tickets

    def _begin(self, message: Submission) -> str | Exception | None:
        """Run one, but for one that has begun; gives its ticket, None if there is room later, or
        what is wrong."""
        return _early.pop(message.command, None) or self._run_task(message)

    def _run_task(self, message: Submission) -> str | Exception | None:
        from botocore.exceptions import BotoCoreError, ClientError

        overrides = {"containerOverrides": [{"name": NAME, "command": list(message.command)}]}
        if (size := len(json.dumps(overrides))) > OVERRIDES:
            return OptionError(
                f"{self.place}: ECS takes {OVERRIDES:,} characters of command, and that of task {message.name!r} has {size:,}: "
                "its addresses have the token of a session. Use credentials with a shorter one, such as an access key"
            )
        try:
            answer = self.account.client("ecs").run_task(
                **self._where(),
                taskDefinition=self._definition(),
                overrides=overrides,
                startedBy=job_name([message]),
                tags=_tags("call"),
            )
        except (ClientError, BotoCoreError) as error:
            return self._trouble(str(error), told(error, self.account, "ecs"))
        if not answer["tasks"]:
            why = "; ".join(": ".join(filter(None, (each.get("reason"), each.get("detail")))) for each in answer.get("failures", ()))
            return self._trouble(why, UnreachableError(f"{self.place}: ecs:RunTask gives no task: {why}"))
        ticket = str(answer["tasks"][0]["taskArn"]).rpartition("/")[2]
        if (life := message.seconds + START if message.seconds is not None else self.life) is not None:
            _lives[ticket] = life
        return ticket

    def _trouble(self, why: str, error: Exception) -> Exception | None:
        if not _LATER.search(why):
            return error
        _say_once(f"{self.place}: calls wait until there is room: {why}")
        return None

    def outcomes(self, tickets: Collection[str]) -> Mapping[str, State]:
        """A hundred tasks in a request. What runs for longer than it may is stopped: ECS has no
        limit of its own."""
        names, states, late = list(tickets), dict[str, State](), list[str]()
        for at in range(0, len(names), MANY):
            with asking(self.account, "ecs"):
                found = self.account.client("ecs").describe_tasks(cluster=self._where()["cluster"], tasks=names[at : at + MANY])["tasks"]
            states.update({task["taskArn"].rpartition("/")[2]: _state(task) for task in found})
        for ticket, state in states.items():
            if state.state == RUNNING and ticket in _lives:
                if time.monotonic() > _ends.setdefault(ticket, time.monotonic() + _lives[ticket]):
                    late.append(ticket)
            elif state.state == OVER:
                self.forget([ticket])
        with contextlib.suppress(UnreachableError):  # they are looked at again
            self._stop(late, "its time is over")
        return states

    def cancel(self, tickets: Collection[str]) -> None:
        """Stop these."""
        self._stop(tickets, "nobody waits for it any more")
        self.forget(tickets)

    def _stop(self, tickets: Collection[str], reason: str) -> None:
        ecs, cluster = self.account.client("ecs"), self._where()["cluster"]

        def stop(ticket: str) -> Exception | None:
            from botocore.exceptions import BotoCoreError, ClientError

            try:
                ecs.stop_task(cluster=cluster, task=ticket, reason=reason)
            except (ClientError, BotoCoreError) as error:
                return None if "not found" in str(error) else told(error, self.account, "ecs")
            return None

        for trouble in filter(None, _each(stop, list(tickets))):
            raise trouble

    def forget(self, tickets: Collection[str]) -> None:
        """Nothing is kept here of what is over."""
        for ticket in tickets:
            _lives.pop(ticket, None), _ends.pop(ticket, None)

    def logs(self, ticket: str) -> str:
        """The end of its log in CloudWatch, or why it has none."""
        return f"({why})" if (why := self._no_log()) else end_of_log(self.account, GROUP, f"task/{NAME}/{ticket}")

    def kept(self, ticket: str) -> str:
        """Where people find it."""
        log = "" if self._no_log() else f"; its log is task/{NAME}/{ticket} in the group {GROUP} of CloudWatch"
        return f"task {ticket} of cluster {self.cluster}{log}" if ticket else ""


#: Definitions that were found or made, by their names.
_definitions: dict[tuple[Account, str], str] = {}
#: How long tasks may run (seconds), and until when those may that run (of the monotonic clock).
_lives: dict[str, float] = {}
_ends: dict[str, float] = {}
#: Tasks that have begun, by the commands of messages that come again.
_early: dict[tuple[str, ...], str] = {}


def _each(do: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Do it to each, `AT_ONCE` at a time."""
    done: dict[int, R] = {}

    def one(place: int) -> None:
        done[place] = do(items[place])

    if len(items) > 1:
        with contextlib.suppress(RuntimeError), ThreadPoolExecutor(AT_ONCE, "entangle-fargate") as pool:
            list(pool.map(one, range(len(items))))
    for place in range(len(items)):  # also while the interpreter ends, which starts no threads
        if place not in done:
            one(place)
    return [done[place] for place in range(len(items))]


def _tags(what: str) -> list[dict[str, str]]:
    return [{"key": "entangle", "value": what}]


@functools.lru_cache(maxsize=256)
def _say_once(text: str) -> None:
    logging.getLogger("entangle").warning("%s", text)


def _state(task: Mapping[str, Any]) -> State:
    """What a task of ECS is to a call."""
    status, containers = task.get("lastStatus", ""), task.get("containers") or [{}]
    if status in _BEFORE:
        return State(PENDING, _BEFORE[status])
    if status not in ("DEPROVISIONING", "STOPPED", "DELETED"):  # DEACTIVATING, STOPPING: it may still say something
        return State(RUNNING)
    reasons = (task.get("stopCode", ""), task.get("stoppedReason", ""), *(each.get("reason", "") for each in containers))
    return ended("STOPPED", reasons, containers[0].get("exitCode"), "ram=")
