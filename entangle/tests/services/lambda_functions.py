"""The calls of AWS Lambda: the Invoke API for clients, and the Runtime API for `awslambdaric`,
AWS's own program that runs Python handlers.

Each function has sandboxes: processes that run one call at a time and stay for later ones. A call
is given an idle sandbox or starts one, or is refused. moto deploys functions.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from .emulators import CREDENTIALS, REGION

#: Largest payload in either direction (bytes): of a synchronous call, and of an asynchronous one.
MOST_WAITED_FOR, MOST_ASYNCHRONOUS = 6 << 20, 1 << 20
_TAIL = 4096
#: The options of an image's container: no shared memory, one writable directory, no root.
SANDBOX = ["--ipc=none", "--read-only", "--tmpfs=/tmp", "--user=993:990", "--network=host", "--label=entangle-lambda"]


class _Handler(BaseHTTPRequestHandler):
    """Headers and body in one write: otherwise each response would wait 40 ms for a delayed ACK."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))


class _Server:
    """A server on loopback, with a thread for each connection. `close` ends all of them."""

    def __init__(self, handler: type[_Handler]) -> None:
        class Listening(ThreadingHTTPServer):
            daemon_threads = False  # `close` waits for them
            # With the default of 5, some of many simultaneous clients get a reset.
            request_queue_size = 1024

        self._connections: set[Any] = set()
        connections = self._connections

        class Connection(handler):  # type: ignore[misc, valid-type]
            def setup(self) -> None:
                connections.add(self.request)
                super().setup()

            def finish(self) -> None:
                with contextlib.suppress(OSError):
                    super().finish()
                connections.discard(self.request)

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle()

        self._server = Listening(("127.0.0.1", 0), Connection)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name=f"lambda-{self.port}")
        self._thread.start()

    def close(self) -> None:
        """Close it, with all connections and threads."""
        self._server.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(2)
        self._server.server_close()


@dataclass(frozen=True)
class Answer:
    """The result of a call: the payload, the kind of error ("Unhandled") or "", and the output."""

    payload: bytes
    error: str = ""
    log: bytes = b""


@dataclass
class Function:
    """A function: its code's directory, and its handler as "module.name"."""

    name: str
    folder: Path
    handler: str
    #: An image in place of directory and handler.
    image: str = ""
    #: The timeout of a call (seconds).
    timeout: float = 30.0
    #: The memory that its body is told (MB). It is not enforced here.
    memory: int = 128
    environment: dict[str, str] = field(default_factory=dict)
    #: The maximum of simultaneous calls; more are refused.
    most: int = 10
    #: How often a failed asynchronous call is retried, as on AWS.
    retries: int = 2

    @property
    def arn(self) -> str:
        """Its full name."""
        return f"arn:aws:lambda:{REGION}:123456789012:function:{self.name}"


class _Sandbox:
    """A process of `awslambdaric`, and the Runtime API from which it gets its calls."""

    def __init__(self, function: Function, log: Path) -> None:
        self.function = function
        self._log = log
        self._next: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        #: For the current call: the last part of each URL that was posted to, and the body.
        self._said: queue.Queue[tuple[str, bytes]] = queue.Queue()
        sandbox = self

        class Runtime(_Handler):
            def do_GET(self) -> None:
                call = sandbox._next.get()
                if call is None:
                    self.close_connection = True
                    return
                identity, event = call
                self.answer(
                    200,
                    event,
                    Content_Type="application/json",
                    Lambda_Runtime_Aws_Request_Id=identity,
                    Lambda_Runtime_Deadline_Ms=str(int(1000 * (time.time() + function.timeout))),
                    Lambda_Runtime_Invoked_Function_Arn=function.arn,
                )

            def do_POST(self) -> None:
                said = self.body()
                self.answer(202)
                sandbox._said.put((self.path.rpartition("/")[2], said))

        self._server = _Server(Runtime)
        settings = {
            **CREDENTIALS,
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.port}",
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory),
            "AWS_REGION": REGION,
            **function.environment,
        }
        self._container = ""
        if function.image:
            self._container = f"entangle-lambda-{uuid.uuid4().hex}"
            given = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
            command = ["docker", "run", "--rm", "--name", self._container, *SANDBOX, *given, function.image]
            settings = dict(os.environ)
        else:
            command = [sys.executable, "-m", "awslambdaric", function.handler]
            settings["LAMBDA_TASK_ROOT"] = str(function.folder)
            settings["AWS_EXECUTION_ENV"] = f"AWS_Lambda_python3.{sys.version_info[1]}"
            settings["PATH"] = os.environ["PATH"]
        with open(log, "ab") as out:
            self.process = subprocess.Popen(command, cwd=function.folder, env=settings, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def call(self, event: bytes) -> Answer:
        """Run it once. A sandbox that reports an error of its own has ended."""
        identity, before = str(uuid.uuid4()), self._log.stat().st_size
        self._next.put((identity, event))
        end = time.monotonic() + self.function.timeout
        told: tuple[str, bytes] | None = None
        while told is None:
            try:
                told = self._said.get(timeout=0.02)
            except queue.Empty:
                if self.process.poll() is not None and self._said.empty():
                    told = "exit", _own_error(identity, "Runtime.ExitError", f"Runtime exited with error: {_how(self.process.returncode)}")
                elif time.monotonic() > end:
                    self.end()
                    told = "late", _own_error(identity, "Sandbox.Timedout", f"Task timed out after {self.function.timeout:.2f} seconds")
        kind, payload = told
        with open(self._log, "rb") as file:
            file.seek(before)
            log = file.read()
        if kind == "response" and len(payload) > MOST_WAITED_FOR:
            size = f"Response payload size exceeded maximum allowed payload size ({MOST_WAITED_FOR} bytes)."
            payload, kind = json.dumps({"errorMessage": size, "errorType": "Function.ResponseSizeTooLarge"}).encode(), "error"
        return Answer(payload, "" if kind == "response" else "Unhandled", log)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> None:
        """Kill all of its processes."""
        if self._container:
            subprocess.run(["docker", "rm", "--force", self._container], capture_output=True, timeout=60, check=False)
        with contextlib.suppress(psutil.NoSuchProcess):
            me = psutil.Process(self.process.pid)
            for one in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        self.process.wait()
        self._next.put(None)
        self._server.close()


def _own_error(identity: str, kind: str, what: str) -> bytes:
    return json.dumps({"errorType": kind, "errorMessage": f"RequestId: {identity} Error: {what}"}).encode()


def _how(status: int) -> str:
    return "signal: killed" if status == -9 else f"signal: {-status}" if status < 0 else f"exit status {status}"


class LambdaFunctions:
    """All functions, at `endpoint`. boto3 finds it in AWS_ENDPOINT_URL_LAMBDA."""

    def __init__(self, folder: Path, moto: str = "") -> None:
        self._folder, self._moto = folder, moto
        self._lock = threading.Lock()
        self.functions: dict[str, Function] = {}
        self._idle: dict[str, list[_Sandbox]] = {}
        self._sandboxes: list[_Sandbox] = []
        self._busy: dict[str, int] = {}
        self._later: list[threading.Thread] = []
        self._ending = threading.Event()
        #: Additional environment variables of deployed functions.
        self.environment: dict[str, str] = {}
        functions = self

        class Invoke(_Handler):
            def do_POST(self) -> None:
                functions._asked(self)

        for verb in ("GET", "PUT", "DELETE"):
            setattr(Invoke, f"do_{verb}", Invoke.do_POST)
        self._server = _Server(Invoke)
        self.endpoint = f"http://127.0.0.1:{self._server.port}"

    def add(self, name: str, code: str, **options: Any) -> Function:
        """Add a function with this code, whose handler is named `handle`. Options: fields of
        `Function`."""
        folder = self._folder / name
        folder.mkdir()
        (folder / "app.py").write_text(code)
        self.functions[name] = Function(name, folder, "app.handle", **options)
        return self.functions[name]

    def processes(self, name: str) -> list[int]:
        """The pids of a function's live sandboxes."""
        return [one.process.pid for one in self._sandboxes if one.function.name == name and not one.ended]

    def idle(self, name: str) -> bool:
        """Whether no call of a function is running. A call's value may arrive shortly before."""
        with self._lock:
            return not self._busy.get(name)

    def _asked(self, request: _Handler) -> None:
        parts = urllib.parse.urlsplit(request.path).path.split("/")
        body = request.body()
        if len(parts) != 5 or parts[4] != "invocations":
            return self._pass_on(request, body)
        name = urllib.parse.unquote(parts[3]).rpartition("function:")[2].partition(":")[0]
        function = self.functions.get(name)
        if function is None:
            arn = f"arn:aws:lambda:{REGION}:123456789012:function:{name}"
            return _refuse(request, 404, "ResourceNotFoundException", f"Function not found: {arn}")
        kind = request.headers.get("X-Amz-Invocation-Type", "RequestResponse")
        most = MOST_ASYNCHRONOUS if kind == "Event" else MOST_WAITED_FOR
        if len(body) > most:
            what = f"Request must be smaller than {most} bytes for the InvokeFunction operation"
            return _refuse(request, 413, "RequestEntityTooLargeException", what)
        if kind == "DryRun":
            return request.answer(204)
        if kind == "Event":
            thread = threading.Thread(target=self._run_later, args=(function, body), name=f"lambda-{name}")
            self._later.append(thread)
            thread.start()
            return request.answer(202)
        answer = self.call(function, body)
        if answer is None:
            return _refuse(request, 429, "TooManyRequestsException", "Rate Exceeded.")
        headers = {"X_Amz_Executed_Version": "$LATEST"}
        if answer.error:
            headers["X_Amz_Function_Error"] = answer.error
        if request.headers.get("X-Amz-Log-Type") == "Tail":
            headers["X_Amz_Log_Result"] = base64.b64encode(answer.log[-_TAIL:]).decode()
        request.answer(200, answer.payload, Content_Type="application/json", **headers)

    def _pass_on(self, request: _Handler, body: bytes) -> None:
        """Forward the request to moto, and note functions that it creates. Pull their images
        first."""
        path = urllib.parse.urlsplit(request.path).path.rstrip("/")
        makes = request.command == "POST" and path.endswith("/functions")
        if makes and (image := json.loads(body)["Code"].get("ImageUri")):
            pulled = subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, text=True, timeout=120, check=False)
            if pulled.returncode:
                what = f"Source image {image} does not exist. Provide a valid source image."
                return _refuse(request, 400, "InvalidParameterValueException", what)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection", "content-length")}
        asked = urllib.request.Request(self._moto + request.path, body or None, headers, method=request.command)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                status, said, kind = answer.status, answer.read(), ""
        except urllib.error.HTTPError as error:
            with error:
                status, said, kind = error.code, error.read(), error.headers.get("x-amzn-errortype") or ""
        if makes and status < 300:
            self._deploy(json.loads(body))
        elif request.command == "DELETE" and status < 300 and path.count("/") == 3:
            self.functions.pop(urllib.parse.unquote(path.rpartition("/")[2]), None)
        elif request.command == "PUT" and path.endswith("/event-invoke-config") and status < 300:
            self.functions[path.split("/")[3]].retries = json.loads(body)["MaximumRetryAttempts"]
        request.answer(status, said, Content_Type="application/json", **({"X_Amzn_ErrorType": kind} if kind else {}))

    def _deploy(self, wanted: dict[str, Any]) -> None:
        name = wanted["FunctionName"]
        folder = self._folder / f"{name}-{uuid.uuid4().hex}"
        folder.mkdir()
        image = wanted["Code"].get("ImageUri", "")
        if not image:
            zipfile.ZipFile(io.BytesIO(base64.b64decode(wanted["Code"]["ZipFile"]))).extractall(folder)
        given = wanted.get("Environment", {}).get("Variables", {})
        options = {
            "timeout": wanted.get("Timeout", 3),
            "memory": wanted.get("MemorySize", 128),
            "environment": {**self.environment, **given},
        }
        self.functions[name] = Function(name, folder, wanted.get("Handler", ""), image, **options)

    def call(self, function: Function, event: bytes) -> Answer | None:
        """Run a function once. Return None if it already has its maximum of calls."""
        name = function.name
        with self._lock:
            if self._busy.get(name, 0) >= function.most:
                return None
            self._busy[name] = self._busy.get(name, 0) + 1
            idle = self._idle.setdefault(name, [])
            while idle and idle[-1].ended:
                idle.pop()
            sandbox = idle.pop() if idle else None
        try:
            if sandbox is None:
                sandbox = _Sandbox(function, self._folder / f"{name}.{uuid.uuid4().hex}.log")
                with self._lock:
                    self._sandboxes.append(sandbox)
            answer = sandbox.call(event or b"{}")
        finally:
            with self._lock:
                self._busy[name] -= 1
                if sandbox is not None and not sandbox.ended:
                    self._idle[name].append(sandbox)
        return answer

    def _run_later(self, function: Function, event: bytes) -> None:
        for _ in range(1 + function.retries):
            # A call without a free sandbox stays in the queue; on AWS, for up to six hours.
            while (answer := self.call(function, event)) is None and not self._ending.wait(0.05):
                pass
            if (answer is not None and not answer.error) or self._ending.is_set():
                return

    def close(self) -> None:
        """Stop all of them."""
        self._ending.set()
        for function in self.functions.values():
            function.retries = function.most = 0
        for sandbox in self._sandboxes:
            sandbox.end()
        for thread in self._later:
            thread.join()
        self._server.close()


def _refuse(request: _Handler, status: int, kind: str, what: str) -> None:
    body = json.dumps({"Type": "User", "Message": what, "message": what}).encode()
    request.answer(status, body, Content_Type="application/json", X_Amzn_ErrorType=kind)
