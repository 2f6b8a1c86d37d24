"""@aws, and what runs a function in such an account: @batch, @ec2, @fargate, @lmbda.

More: docs/aws.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast, overload

from entangle._aws.account_options import account_from
from entangle._aws.at_instance import EC2, EC2Transport
from entangle._aws.batch_jobs import BatchJobs
from entangle._aws.fargate_tasks import FargateTasks
from entangle._aws.instance_options import InstanceOptions
from entangle._aws.lambda_door import lmbda
from entangle._aws.layers import at_aws, decorator_of, with_account
from entangle._aws.machine_options import container_options, fargate_size, mebibytes, strings
from entangle._remote.transport.ssh_options import check_word
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._tasks.option_values import check_strings, check_whether, is_number
from entangle.errors import OptionError
from entangle.task import Decorator, Task, refuse_unknown

__all__ = ["aws", "batch", "ec2", "fargate", "lmbda"]

P = ParamSpec("P")
R = TypeVar("R")

_ACCOUNT = ("profile", "region", "keys", "role", "endpoint", "bucket")
_BATCH = (
    *("queue", "image", "vcpus", "memory", "gpus", "job_role", "execution_role", "architecture"),
    *("python", "env", "time"),
)
_EC2 = ("ami", "type", "key", "user", "subnet", "security_groups", "spot", "idle", "instance", "python", "env")
_FARGATE = (
    *("ram", "cpu", "image", "cluster", "subnets", "security_groups", "spot", "execution_role", "job_role"),
    *("architecture", "public_ip", "python", "env", "time"),
)


@edge
def aws(
    function: None = None,
    /,
    *,
    profile: str | None = None,
    region: str | None = None,
    keys: Sequence[str] = (),
    role: str | None = None,
    endpoint: str | None = None,
    bucket: str | None = None,
    **unknown: Any,
) -> Decorator:
    """Say which AWS account a decorator above or below uses: @batch, @fargate, @lmbda, @ec2.

    - `profile`: a profile of the files of the AWS command line.
    - `region`: by default that of the profile, or AWS_DEFAULT_REGION.
    - `keys`: an access key: its id and its secret, and perhaps the token of a session. They stay on
      this machine. `keys=[]` counts as left out: boto3 searches for credentials.
    - `role`: the ARN of a role to assume.
    - `endpoint`: the address of a server that stands in for AWS; by default AWS_ENDPOINT_URL, if
      set.
    - `bucket`: the bucket of S3 through which calls and values go; by default ENTANGLE_BUCKET.

    It runs nothing by itself. Credentials are not sent to where the function runs, and not
    recorded. Needs the extra `aws`.

    Raises OptionError.

        @aws(profile="lab", bucket="lab-calls")
        @batch(queue="short", image="python:3.13-slim")
        def simulate(seed): ...
    """
    refuse_unknown("aws", _ACCOUNT, unknown)
    if function is not None:
        raise OptionError("@aws needs parentheses: @aws()")
    stated = {"profile": profile, "region": region, "role": role, "endpoint": endpoint, "bucket": bucket}
    account = account_from("@aws", keys, stated)

    @edge
    def wrap(inner: Any) -> Any:
        return with_account(inner, account)

    decorator: Any = wrap
    return cast(Decorator, decorator)


@edge
def batch(
    function: None = None,
    /,
    *,
    queue: str | None = None,
    image: str | None = None,
    vcpus: float = 1,
    memory: str | int = "2GB",
    gpus: int = 0,
    job_role: str | None = None,
    execution_role: str | None = None,
    architecture: str | None = None,
    python: str = "python3",
    env: Mapping[str, str] | None = None,
    time: float | None = None,
    **unknown: Any,
) -> Decorator:
    """Run the function as a job of AWS Batch, with the layers below; its value comes back.

    - `queue`: the job queue; may be left out where there is only one.
    - `image`: a container image with a Python 3.10 or newer at `python`, and nothing else; by
      default `python:3.X-slim`, the caller's version.
    - `vcpus`, `memory` (MiB, or a string such as "2GB"), `gpus`: what a job has.
    - `job_role`: the ARN of a role for what runs there. Entangle uses the bucket as that role where
      signed addresses would expire before the call ends; deploy/aws has the policy for that.
    - `execution_role`: the ARN of the role that fetches the image and writes the log (Fargate).
    - `architecture`: "x86_64" or "arm64".
    - `env`: environment variables.
    - `time`: how long a job may run (seconds), where no layer below has a `timeout`. Batch itself
      ends the job, at most two minutes later.

    A job definition is made for these options and used again. Calls that are ready at the same time
    go as one array of up to 10,000 jobs, and no thread here waits. Batch never runs a job again by
    itself; `retry` of a layer below submits one that died once more. Calls and values go through
    the bucket of @aws, by addresses that are signed for single objects.

    A cold call takes as long as Batch needs to start a container (seconds, or minutes where it
    starts a machine first) and about a second; there are no warm ones. If the caller dies, what
    runs there ends within a minute, and what has not begun never does.

    Raises OptionError here for bad options. Running a call raises OptionError where no bucket or
    queue is known, UnreachableError where AWS refuses something or cannot be reached, ImageError,
    UnfitPythonError, ProcessTimeoutException, and ProcessTerminatedException where a job dies, with
    Batch's reason and the end of the log.

        @aws(bucket="lab-calls")
        @batch(queue="short", vcpus=4, memory="8GB")
        def simulate(seed): ...
    """
    refuse_unknown("batch", _BATCH, unknown)
    if function is not None:
        raise OptionError("@batch needs parentheses: @batch(queue='…')")
    check_strings("@batch", queue=queue)
    if not is_number(vcpus) or vcpus <= 0:
        raise OptionError(f"@batch: vcpus={value_in_short(vcpus)}; it must be a number above 0")
    if isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 0:
        raise OptionError(f"@batch: gpus={value_in_short(gpus)}; it must be a whole number")
    container = container_options("batch", image, python, architecture, job_role, execution_role, env, time)
    jobs = functools.partial(BatchJobs, queue=queue, vcpus=vcpus, memory=mebibytes("batch", memory), gpus=gpus, **container)
    return decorator_of("batch", jobs)


@edge
def fargate(
    function: None = None,
    /,
    *,
    ram: str | int | None = None,
    cpu: float | str | None = None,
    image: str | None = None,
    cluster: str = "default",
    subnets: Sequence[str] = (),
    security_groups: Sequence[str] = (),
    spot: bool = False,
    execution_role: str | None = None,
    job_role: str | None = None,
    architecture: str | None = None,
    public_ip: bool = True,
    python: str = "python3",
    env: Mapping[str, str] | None = None,
    time: float | None = None,
    **unknown: Any,
) -> Decorator:
    """Run the function as a task of ECS on Fargate, with the layers below; its value comes back.

    - `ram` (MiB, or a string such as "2GB"), `cpu` (vCPUs): what a task has. The smallest of
      Fargate's sizes that has both is taken; where it is larger, a message says so once. By default
      1 vCPU, 2 GB.
    - `image`: a container image with a Python 3.10 or newer at `python`, and nothing else; by
      default `python:3.X-slim`, the caller's version.
    - `cluster`: the cluster of ECS.
    - `subnets`, `security_groups`: by default those of the default network (VPC). The bucket and
      the image must be reachable from there: by a public address (`public_ip`), or by a gateway.
    - `spot`: cheaper capacity, which AWS may take back; `retry=1` of a layer below then submits the
      call again.
    - `execution_role`: the ARN of the role that fetches a private image and writes the log, which
      is in the group /entangle/fargate of CloudWatch. Without this role there is no log.
    - `job_role`: the ARN of a role for what runs there. Entangle uses the bucket as that role where
      signed addresses would expire before the call ends; deploy/aws has the policy for that.
    - `architecture`: "x86_64" or "arm64".
    - `env`: environment variables.
    - `time`: how long a task may run (seconds), where no layer below has a `timeout`.

    A task definition is made for these options and used again. Each call is a task of its own, and
    no thread here waits; one for which there is no room yet is submitted again. Calls and values go
    through the bucket of @aws, by addresses that are signed for single objects.

    A cold call takes as long as Fargate needs to start a task (half a minute, or more for a large
    image) and about a second; there are no warm ones. ECS ends no task by itself: this process
    stops one that runs for too long. If this process dies, what runs there ends within a minute,
    and what has not begun never does: it costs no more after that.

    Raises OptionError here for bad options. Running a call raises OptionError where no bucket,
    cluster or network is known, UnreachableError where AWS refuses something or cannot be reached,
    ImageError, UnfitPythonError, ProcessTimeoutException, and ProcessTerminatedException where a
    task dies, with ECS's reason and the end of the log.

        @aws(bucket="lab-calls")
        @fargate(cpu=1, ram="2GB", spot=True)
        def simulate(seed): ...
    """
    refuse_unknown("fargate", _FARGATE, unknown)
    if function is not None:
        raise OptionError("@fargate needs parentheses: @fargate(cpu=1, ram='2GB')")
    check_strings("@fargate", cluster=cluster)
    check_whether("@fargate", spot=spot, public_ip=public_ip)
    units, memory, note = fargate_size(cpu, ram)
    tasks = functools.partial(
        FargateTasks,
        units=units,
        memory=memory,
        note=note,
        cluster=cluster,
        subnets=strings("fargate", "subnets", subnets),
        security_groups=strings("fargate", "security_groups", security_groups),
        spot=bool(spot),
        public_ip=bool(public_ip),
        **container_options("fargate", image, python, architecture, job_role, execution_role, env, time),
    )
    return decorator_of("fargate", tasks)


@overload
def ec2(
    *,
    ami: str | None = None,
    type: str = "t3.micro",
    key: str | None = None,
    user: str | None = None,
    subnet: str | None = None,
    security_groups: Sequence[str] = (),
    spot: bool = False,
    idle: float = 300,
    instance: str | None = None,
    python: str = "python3",
    env: str | None = None,
) -> Decorator: ...
@overload
def ec2(function: Callable[P, R], /) -> Task[P, R]: ...
@edge
def ec2(
    function: Any = None,
    /,
    *,
    ami: str | None = None,
    type: str = "t3.micro",
    key: str | None = None,
    user: str | None = None,
    subnet: str | None = None,
    security_groups: Sequence[str] = (),
    spot: bool = False,
    idle: float = 300,
    instance: str | None = None,
    python: str = "python3",
    env: str | None = None,
    **unknown: Any,
) -> Any:
    """Run the function on an instance of EC2, by ssh, with the layers below; its value comes back.

    The instance is launched by the first call, shared by all, and used again by later runs of this
    user with the same options. It terminates itself `idle` seconds after its last call, even if the
    caller has died; and if nobody has ever logged in, after `idle` or 5 minutes, whichever is more
    (15 minutes for types older than Nitro, such as "t2.micro", whose console comes late).

    - `ami`: an image with cloud-init and a Python 3.10 or newer; by default the newest Debian.
    - `type`: the type of the machine.
    - `key`: a private key; by default one that is made for this, under `~/.local/state/entangle`.
    - `user`: who logs in; for images of Debian, Ubuntu, Amazon, Red Hat and Fedora it is known.
    - `subnet`, `security_groups`: their ids; by default those of the default network. A group must
      let you in at port 22.
    - `spot`: as a spot instance. When AWS takes it back, calls there end with LinkLostError, and
      `retry` of a layer below sends them to another one.
    - `instance`: an instance of yours, in place of a launched one. It is started if it is stopped,
      and then stops itself when it is idle; it is never terminated.
    - `python`, `env`: as @ssh has them.

    A cold call takes as long as AWS needs to start a machine, one to three minutes; one to an
    instance that runs a second, and a warm one as long as by @ssh. The instance is known by the
    host keys that it prints on its console. Needs the extra `aws` and an ssh client.

    Raises OptionError here for bad options. Running a call raises UnreachableError where AWS
    refuses something, has no such machine free or the quota is used up, or where port 22 cannot be
    reached; ImageError, HostKeyError, LoginRefusedError, UnfitPythonError, and LinkLostError where
    the instance ends during the call.

        @aws(profile="lab")
        @ec2(type="c7i.large", security_groups=["sg-0123456789abcdef0"])
        def simulate(seed): ...
    """
    refuse_unknown("ec2", _EC2, unknown)
    for name, value in (("python", python), ("env", env)):
        if value is not None:
            check_word(name, value, "ec2")
    wanted = InstanceOptions(type, ami, key, user, subnet, security_groups, spot, idle, instance).checked()
    layer = EC2(EC2Transport(wanted, python, env))

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return at_aws("ec2", inner, layer)

    return wrap if function is None else wrap(function)


named_as_its_decorator(__name__)
