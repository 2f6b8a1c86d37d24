"""The process of an emulator: `python emulator_process.py {moto,ministack} PORT IMAGE FOLDER`.

It imports nothing of entangle, because ministack runs in an environment without it. The emulator's
containers get a label, a memory limit, and the host's network, so that they can connect to the
emulator on loopback. When this process is terminated, it removes them and its directory.

Some behaviour is documented by AWS and needed by entangle, but missing in an emulator. It is added
here: `_as_batch_does`, `_as_ecs_does`, `_as_lambda_does`, `_as_s3_does`. Details, and what is still
missing: docs/architecture/clouds_in_tests.md.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib
import os
import shutil
import signal
import sys
import threading
import time
import urllib.parse
from typing import Any

LABEL = "entangle.emulator"

#: The program of a Lambda function's container, if its image names none. moto passes the handler
#: and the event, and takes the last line of output as the result.
_LAMBDA = """
import importlib, json, os, sys, time
sys.path.insert(0, "/var/task"); os.chdir("/var/task")
module, _, name = sys.argv[1].rpartition(".")
end = time.monotonic() + float(os.environ["AWS_LAMBDA_FUNCTION_TIMEOUT"])
class Context:
    function_name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
    function_version = os.environ["AWS_LAMBDA_FUNCTION_VERSION"]
    memory_limit_in_mb = os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]
    aws_request_id = os.environ["ENTANGLE_EMULATOR_REQUEST"]
    def get_remaining_time_in_millis(self):
        return max(0, int(1000 * (end - time.monotonic())))
try:
    answer = getattr(importlib.import_module(module.replace("/", ".")), name)(json.loads(sys.argv[2]), Context())
    answer = json.dumps(answer)
except BaseException as error:
    import traceback
    sys.stdout.flush()
    trace = traceback.format_tb(error.__traceback__)[1:]
    print(json.dumps({"errorMessage": str(error), "errorType": type(error).__name__, "stackTrace": trace}))
    sys.exit(1)
sys.stdout.flush()
print(answer)
"""


class Containers:
    """The containers and volumes that an emulator makes in the docker daemon."""

    def __init__(self, port: str, image: str) -> None:
        self.port, self.image = port, image
        self._ended = False
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Change the options of each container and volume that is made from now on."""
        from docker.models.containers import ContainerCollection
        from docker.models.volumes import VolumeCollection

        of_containers: Any = ContainerCollection
        of_volumes: Any = VolumeCollection
        create, create_volume = of_containers.create, of_volumes.create

        @functools.wraps(create)
        def made(collection: Any, image: Any, command: Any = None, **options: Any) -> Any:
            with self._lock:
                if self._ended:
                    raise RuntimeError("this emulator has ended")
                container = create(collection, self._image(image), command, **self._options(options))
            _of_this_job(container)
            return container

        @functools.wraps(create_volume)
        def made_volume(collection: Any, name: Any = None, **options: Any) -> Any:
            # moto names volumes after the code. Two servers would share one, and each would remove
            # it.
            labels = {**(options.pop("labels", None) or {}), LABEL: self.port}
            return create_volume(collection, f"{name}-{self.port}" if name else name, labels=labels, **options)

        of_containers.create, of_volumes.create = made, made_volume

    def _image(self, image: Any) -> Any:
        """moto fills volumes by a container of busybox, an image that is not here."""
        return self.image if image == "busybox" else image

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        labels = options.get("labels") or {}
        options["labels"] = {**labels, LABEL: self.port}
        options["network_mode"] = "host"
        for name in ("network", "ports", "links", "extra_hosts"):
            options.pop(name, None)
        environment = options.get("environment") or {}
        if isinstance(environment, dict):
            environment = {name: str(value).replace("host.docker.internal", "127.0.0.1") for name, value in environment.items()}
            if "AWS_LAMBDA_FUNCTION_NAME" in environment and not options.get("entrypoint"):
                environment["ENTANGLE_EMULATOR_REQUEST"] = os.urandom(8).hex()
                options["entrypoint"] = ["python3", "-c", _LAMBDA]
            options["environment"] = environment
        _add_what_batch_adds(options)
        return options

    def end(self) -> None:
        """Remove all of them, and let no more be made."""
        import docker

        with self._lock:
            self._ended = True
        client = docker.from_env()
        mine: Any = {"label": f"{LABEL}={self.port}"}
        for container in client.containers.list(all=True, filters=mine, ignore_removed=True):
            with contextlib.suppress(docker.errors.APIError):
                container.remove(force=True, v=True)
        for volume in client.volumes.list(filters=mine):
            with contextlib.suppress(docker.errors.APIError):
                volume.remove(force=True)


# --- Batch ----------------------------------------------------------------------------------------


def _batch_job() -> Any:
    """The job of moto's Batch that this thread runs, else None."""
    thread = threading.current_thread()
    return thread if type(thread).__module__ == "moto.batch.models" else None


def _of_this_job(container: Any) -> None:
    if (job := _batch_job()) is not None:
        job.entangle_container = container


def _add_what_batch_adds(options: dict[str, Any]) -> None:
    """The variables of Batch, and the limits that the definition or an override requests."""
    job = _batch_job()
    if job is None:
        return
    _, _, index = job.job_id.partition(":")
    added = {
        # The children of an array share a list, which held the last child's id.
        "AWS_BATCH_JOB_ID": job.job_id,
        "AWS_BATCH_JQ_NAME": job.job_queue.name,
        "AWS_BATCH_CE_NAME": job.job_queue.environments[0].name,
        "AWS_BATCH_JOB_ATTEMPT": "1",
    }
    if index:
        added["AWS_BATCH_JOB_ARRAY_INDEX"] = index
    options["environment"].update(added)
    wanted: dict[str, str] = {}
    for source in (job.job_definition.container_properties or {}, job.container_overrides):
        wanted |= {one["type"]: one["value"] for one in source.get("resourceRequirements", [])}
    if "MEMORY" in wanted:
        options["mem_limit"] = options["memswap_limit"] = f"{wanted['MEMORY']}m"


def _as_batch_does() -> None:
    """Exit codes and reasons in the descriptions of jobs, as on AWS."""
    from moto.batch.models import Job

    mark_stopped, describe = Job._mark_stopped, Job.describe

    def marked(job: Any, success: bool = True) -> None:
        if not job.job_stopped:
            job.entangle_told = _why_it_stopped(job, sys.exc_info()[1])
            if job.job_stopped_reason is None:
                job.job_stopped_reason = job.entangle_told.pop("statusReason")
            else:
                job.entangle_told.pop("statusReason")
            if job.latest_attempt is not None:
                job.latest_attempt["container"].update(job.entangle_told)
                job.latest_attempt["statusReason"] = job.job_stopped_reason
        mark_stopped(job, success)

    def described(job: Any) -> Any:
        told = describe(job)
        if job.job_stopped and "container" in told:
            told["container"].update(getattr(job, "entangle_told", {}))
        _, _, index = job.job_id.partition(":")
        if index:
            told["arrayProperties"] = {"index": int(index)}
        children = told.get("arrayProperties", {}).get("statusSummary")
        if children and children["FAILED"] and children["FAILED"] + children["SUCCEEDED"] == sum(children.values()):
            job.status = told["status"] = "FAILED"
            told["statusReason"] = job.job_stopped_reason = "Array Child Job failed"
        return told

    Job._mark_stopped, Job.describe = marked, described


def _why_it_stopped(job: Any, error: BaseException | None) -> dict[str, Any]:
    # A test simulates a reclaimed instance.
    if (job.job_stopped_reason or "").startswith("Host EC2"):
        return {"statusReason": job.job_stopped_reason}
    container = getattr(job, "entangle_container", None)
    if container is None:
        if job.stop or job.latest_attempt is None:  # it ended before it began
            return {"statusReason": "Dependent Job failed"}
        return {"statusReason": "Task failed to start", "reason": f"CannotPullContainerError: {error}"}
    if error is not None and "attemptDurationSeconds" in str(error):
        return {"statusReason": "Job attempt duration exceeded timeout", "exitCode": 137}
    told: dict[str, Any] = {"statusReason": "Essential container in task exited"}
    if job.exit_code is not None:
        told["exitCode"] = job.exit_code
    if job.exit_code == 137 and not job.stop and _had_no_memory(container):
        told["reason"] = _NO_MEMORY
    return told


#: The reason that Batch and ECS give.
_NO_MEMORY = "OutOfMemoryError: Container killed due to memory usage"


def _had_no_memory(container: Any) -> bool:
    """Whether the OOM killer killed a container. The daemon may learn that after the container's
    end."""
    for _ in range(20):
        container.reload()
        if container.attrs["State"]["OOMKilled"]:
            return True
        time.sleep(0.05)
    return False


# --- ECS ------------------------------------------------------------------------------------------


def _as_ecs_does() -> None:
    """The memory of a task or a container is a limit, and exceeding it is the reason of its end.
    `initProcessEnabled` is respected. A task that ended by itself has the same reason as on AWS."""
    ecs: Any = importlib.import_module("ministack.services.ecs")
    build, mark = ecs._build_run_kwargs, ecs._mark_task_stopped

    def built(definition: Any, task_definition: Any, *more: Any) -> Any:
        options = build(definition, task_definition, *more)
        if memory := definition.get("memory") or task_definition.get("memory"):
            options["mem_limit"] = options["memswap_limit"] = f"{memory}m"
        if (definition.get("linuxParameters") or {}).get("initProcessEnabled"):
            options["init"] = True
        return options

    def marked(arn: str, task: Any, reason: str, code: str, exit_code: int | None = None) -> Any:
        if reason == "Essential container exited":
            reason = "Essential container in task exited"
            for told, identity in zip(task.get("containers", []), list(task.get("_docker_ids") or []), strict=False):
                if told.get("exitCode") == 137 and _had_no_memory(ecs._get_docker().containers.get(identity)):
                    told["reason"] = _NO_MEMORY
        elif reason == "Your Spot Task was interrupted.":  # a test simulates Fargate
            code = "SpotInterruption"
        elif "/images/create" in reason:  # the daemon failed to pull the image
            reason = "CannotPullContainerError: " + reason.partition("start container: ")[2]
        return mark(arn, task, reason, code, exit_code)

    ecs._build_run_kwargs, ecs._mark_task_stopped = built, marked


def _ecs_prints_elsewhere(endpoint: str) -> None:
    """Send the output of tasks to the logs of another emulator. A container is kept until all of
    its output has been sent."""
    ecs: Any = importlib.import_module("ministack.services.ecs")
    session: Any = importlib.import_module("botocore.session").get_session()
    logs = session.create_client("logs", endpoint_url=endpoint)
    start, remove = ecs._start_awslogs_forwarder, ecs._remove_docker_container
    forwarding: dict[str, threading.Thread] = {}

    def ensure(config: Any) -> bool:
        names = {"logGroupName": config["group"], "logStreamName": config["stream"]}
        if config["create_group"]:
            with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
                logs.create_log_group(logGroupName=config["group"])
        try:
            logs.create_log_stream(**names)
        except logs.exceptions.ResourceAlreadyExistsException:
            pass
        except logs.exceptions.ResourceNotFoundException:
            return False
        return True

    def emit(config: Any, message: str) -> None:
        event = {"timestamp": int(time.time() * 1000), "message": message}
        logs.put_log_events(logGroupName=config["group"], logStreamName=config["stream"], logEvents=[event])

    def started(container: Any, definition: Any, task: str) -> None:
        before = set(threading.enumerate())
        start(container, definition, task)
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("ministack-ecs-awslogs-"):
                forwarding[container.id] = thread

    def removed(docker_client: Any, container: Any) -> None:
        identity = container if isinstance(container, str) else getattr(container, "id", "")
        thread = forwarding.pop(identity, None)
        if thread is not None:
            with contextlib.suppress(Exception):  # it may be gone already
                docker_client.containers.get(identity).stop(timeout=5)
            thread.join(10)
        remove(docker_client, container)

    ecs._ensure_awslogs_stream, ecs._emit_awslogs_event = ensure, emit
    ecs._start_awslogs_forwarder, ecs._remove_docker_container = started, removed


# --- Lambda ---------------------------------------------------------------------------------------


def _as_lambda_does() -> None:
    """Asynchronous calls return at once, and the errors of a body have a type."""
    from moto.awslambda.models import LambdaFunction
    from moto.utilities.docker_utilities import DockerModel

    invoke, ensure = LambdaFunction.invoke, DockerModel.ensure_image_exists

    def invoked(function: Any, body: Any, request_headers: Any, response_headers: Any) -> Any:
        kind = request_headers.get("x-amz-invocation-type", "RequestResponse")
        if kind == "DryRun":
            return ""
        if kind == "Event":
            threading.Thread(target=invoke, args=(function, body, request_headers, {}), daemon=True).start()
            return ""
        answer = invoke(function, body, request_headers, response_headers)
        if "x-amz-function-error" in response_headers:
            # "Handled" was used by old runtimes only.
            response_headers["x-amz-function-error"] = "Unhandled"
        return answer

    def ensured(model: Any, name: str) -> None:
        if name != "busybox":  # `Containers` replaces it by another image
            ensure(model, name)

    LambdaFunction.invoke, DockerModel.ensure_image_exists = invoked, ensured
    vars_of: Any = DockerModel
    # A version is a copy of a function, and the client cannot be copied.
    vars_of._DockerModel__docker_client = None


# --- S3 -------------------------------------------------------------------------------------------

_EXPIRED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"""


def _as_s3_does() -> None:
    """Refuse expired presigned URLs."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication

    dispatch: Any = DomainDispatcherApplication.__call__

    def dispatched(application: Any, environ: Any, start_response: Any) -> Any:
        if _is_over(urllib.parse.parse_qs(environ.get("QUERY_STRING", ""))):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(_EXPIRED)))])
            return [_EXPIRED]
        return dispatch(application, environ, start_response)

    DomainDispatcherApplication.__call__ = dispatched


def _is_over(query: dict[str, list[str]]) -> bool:
    if "X-Amz-Expires" in query:  # signature version 4
        signed = datetime.datetime.strptime(query["X-Amz-Date"][0] + "+0000", "%Y%m%dT%H%M%SZ%z")
        return time.time() > signed.timestamp() + int(query["X-Amz-Expires"][0])
    return "Signature" in query and time.time() > int(query["Expires"][0])


# --- the process ----------------------------------------------------------------------------------


def _moto(port: str) -> None:
    from moto.server import main

    _as_batch_does()
    _as_lambda_does()
    _as_s3_does()
    main(["--host", "127.0.0.1", "--port", port])


def _ministack(port: str) -> None:
    from ministack.app import main

    _as_ecs_does()
    _ecs_prints_elsewhere(os.environ["ENTANGLE_LOGS"])
    sys.argv = ["ministack"]
    main()


def run(which: str, port: str, image: str, folder: str) -> None:
    """Run an emulator until this process is terminated."""
    containers = Containers(port, image)
    containers.watch()
    # Until the emulator installs its own handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    trouble: Any = None
    try:
        {"moto": _moto, "ministack": _ministack}[which](port)
    except SystemExit as end:
        trouble = end.code
    except BaseException as error:
        trouble = error
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        containers.end()
        sys.stderr.flush()
        if not trouble:  # keep the directory after an error: it has the log
            shutil.rmtree(folder, ignore_errors=True)
        # A normal exit would wait for the threads of jobs and requests.
        os._exit(0)


if __name__ == "__main__":
    run(*sys.argv[1:])
