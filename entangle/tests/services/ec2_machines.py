"""EC2 with instances that start: moto keeps the state, and each instance is a machine here.

A machine is a PID namespace and a mount namespace, with its own `/run`, console and host keys. It
runs a real ssh server on a port of loopback, and the instance's user data as root, as cloud-init
does. `shutdown` in it ends it, according to its shutdown behaviour. `Cloud` stands between the
program and moto. It starts and ends machines, and answers what moto does not: the console's output,
Debian's images, an instance's metadata.

A machine has no address of its own. The ssh client's configuration maps the address that moto
invents to loopback and the port of the machine's server.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .emulators import Emulator
from .hosts import _PATH, _free_port, make_key, program, this_python
from .hosts import what_is_missing as what_ssh_is_missing

#: The first process of a machine. $1: its directory; $2: its ssh server; $3: "data" at the first
#: start.
_BOOT = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
mount --bind "$1/console" /dev/console
mount --bind "$1/ssh" /etc/ssh
mount --bind "$1/passwd" /etc/passwd
"$2" -D -e -f "$1/sshd_config" </dev/null >"$1/sshd.log" 2>&1 &
[ "$3" != data ] || sh "$1/user-data" </dev/null >"$1/user-data.log" 2>&1
cat "$1/more" >>/dev/console
while [ ! -e "$1/down" ]; do sleep 0.05; done
"""


def what_is_missing() -> str:
    """Why there can be no machines here; an empty string if nothing is missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "no root here, on Linux: machines are namespaces"
    lacking = [name for name in ("unshare", "flock", "setpriv") if program(name) is None]
    return what_ssh_is_missing() or (f"no {', '.join(lacking)} here" if lacking else "")


class Machine:
    """The machine behind an instance."""

    def __init__(self, cloud: Cloud, instance: str, folder: Path, asked: dict[str, str]) -> None:
        self.cloud, self.instance, self.folder = cloud, instance, folder
        self.port = _free_port()
        self.console, self.down = folder / "console", folder / "down"
        #: The time at which the spot instance will end, as in its metadata.
        self.taken_back = ""
        self._stops = asked.get("InstanceInitiatedShutdownBehavior") != "terminate"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "ssh").mkdir(parents=True)
        make_key(folder / "ssh" / "ssh_host_ed25519_key")
        (folder / "user-data").write_bytes(base64.b64decode(asked.get("UserData", "")) or b"true\n")
        (folder / "more").write_text("")
        (folder / "passwd").write_text(Path("/etc/passwd").read_text() + "admin:x:0:0::/root:/bin/sh\n")
        (folder / "authorized_keys").write_text(cloud.keys.get(asked.get("KeyName", ""), "") + "\n")
        (folder / "sshd_config").write_text(
            f"""ListenAddress 127.0.0.1
Port {self.port}
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv PATH={folder}/bin:{_PATH}
"""
        )
        programs = folder / "bin"
        programs.mkdir()
        for name, text in {"shutdown": f"touch {self.down}", "poweroff": f"touch {self.down}", "systemd-run": "exit 1"}.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        (programs / "python3").symlink_to(this_python())

    @property
    def runs(self) -> bool:
        """Whether it is running."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, first: bool) -> None:
        """Start it."""
        self.down.unlink(missing_ok=True)
        self.console.write_text("")
        started = threading.Event()
        threading.Thread(target=self._run, args=(first, started), name="machine", daemon=True).start()
        started.wait(20)

    def _run(self, first: bool, started: threading.Event) -> None:
        """Start its processes and wait for them, in one thread: they die with the thread that
        started them. If the machine has shut itself down, tell EC2, according to its shutdown
        behaviour."""
        names = {"PATH": f"{self.folder}/bin:{_PATH}", "LANG": "C.UTF-8"}
        names["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = f"{self.cloud.endpoint}/of/{self.instance}"
        inside = ["sh", "-c", _BOOT, "boot", str(self.folder), str(program("sshd")), "data" if first else ""]
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with open(self.folder / "boot.log", "ab") as log:
            self._process = process = subprocess.Popen(
                [str(program("setpriv")), "--pdeathsig", "KILL", *apart, *inside],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=names,
                start_new_session=True,
            )
        started.set()
        process.wait()
        if self.down.exists():
            ec2 = self.cloud.ec2
            (ec2.stop_instances if self._stops else ec2.terminate_instances)(InstanceIds=[self.instance])

    def kill(self) -> None:
        """Kill it without notice, as by a power failure."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def prints_keys(self) -> None:
        """Print its host keys on the console, as cloud-init does."""
        key = (self.folder / "ssh" / "ssh_host_ed25519_key.pub").read_text()
        text = f"\n-----BEGIN SSH HOST KEY KEYS-----\n{key}-----END SSH HOST KEY KEYS-----\n"
        (self.folder / "more").write_text(text)
        with self.console.open("a") as console:
            console.write(text)

    def log(self) -> str:
        """The content of its log files."""
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')}" for path in sorted(self.folder.glob("*.log")))


class Cloud:
    """EC2 at `endpoint`: moto's answers, and machines. `asked` has the names of the actions
    requested."""

    def __init__(self, moto: Emulator, folder: Path) -> None:
        self.moto, self.folder = moto, folder
        self.machines: dict[str, Machine] = {}
        self.keys: dict[str, str] = {}
        self.asked: list[str] = []
        #: Errors for the next request of an action, by its name: the error's code and message.
        self.refusals: dict[str, tuple[str, str]] = {}
        self.tokens = 0
        self._guard = threading.Lock()
        self.ec2 = moto.client("ec2")
        self.image: str = self.ec2.describe_images()["Images"][0]["ImageId"]
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cloud": self}))
        self._server.daemon_threads = False
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="cloud")
        self._thread.start()
        self.ssh_configuration = folder / "ssh_config"
        self.ssh_configuration.write_text("")

    def only(self) -> Machine:
        """The only machine."""
        (machine,) = self.machines.values()
        return machine

    def state(self, instance: str) -> str:
        """The instance's state in moto."""
        return str(self.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]["State"]["Name"])

    def launched(self, instance: str, asked: dict[str, str]) -> Machine:
        """Start an instance for the first time."""
        machine = Machine(self, instance, self.folder / instance, asked)
        self.machines[instance] = machine
        machine.start(first=True)
        self.write_addresses()
        return machine

    def write_addresses(self) -> None:
        """Write the machines' addresses into the ssh client's configuration."""
        lines = []
        for instance, machine in self.machines.items():
            said = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
            names = " ".join(filter(None, (said.get("PublicIpAddress"), said.get("PrivateIpAddress"))))
            if names:
                lines.append(f"Host {names}\n  HostName 127.0.0.1\n  Port {machine.port}\n")
        draft = self.folder / "ssh_config.draft"
        draft.write_text("".join(lines))
        os.replace(draft, self.ssh_configuration)

    def end(self) -> None:
        """Kill the machines, and terminate their instances in moto."""
        for machine in self.machines.values():
            machine.kill()
        for thread in threading.enumerate():
            if thread.name == "machine":
                thread.join(20)
        found = [one["InstanceId"] for page in self.ec2.describe_instances()["Reservations"] for one in page["Instances"]]
        if found:
            self.ec2.terminate_instances(InstanceIds=found)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(20)
        self.ec2.close()

    # Requests --------------------------------------------------------------------------------

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, str]:
        """Answer a request: its status, its content and the content type."""
        if path.startswith("/of/"):
            _, _, instance, rest = path.split("/", 3)
            return self._metadata(method, instance, rest, headers)
        service = headers.get("X-Amz-Target", "")
        asked = dict(urllib.parse.parse_qsl(body.decode())) if not service and body else {}
        action = service.partition(".")[2] or asked.get("Action", "")
        with self._guard:
            self.asked.append(action)
            refusal = self.refusals.pop(action, None)
        if refusal is not None and service:
            code, words = refusal
            return 400, json.dumps({"__type": code, "message": words}).encode(), "application/x-amz-json-1.1"
        if refusal is not None:
            code, words = refusal
            told = f"<Errors><Error><Code>{code}</Code><Message>{words}</Message></Error></Errors><RequestID>0</RequestID>"
            return 400, f"<Response>{told}</Response>".encode(), "text/xml"
        if action == "GetParameter" and (name := json.loads(body)["Name"]).startswith("/aws/service/debian/"):
            found = {"Name": name, "Type": "String", "Value": self.image, "Version": 1, "DataType": "aws:ec2:image"}
            return 200, json.dumps({"Parameter": found}).encode(), "application/x-amz-json-1.1"
        if action == "GetConsoleOutput":
            return 200, self._console(asked["InstanceId"]).encode(), "text/xml"
        if action == "ImportKeyPair":
            self.keys[asked["KeyName"]] = base64.b64decode(asked["PublicKeyMaterial"]).decode()
        status, content, kind = self._of_moto(method, path, headers, body)
        if status == 200 and action == "RunInstances":
            for instance in re.findall(r"<instanceId>(i-[0-9a-f]+)</instanceId>", content.decode()):
                self.launched(instance, asked)
        if status == 200 and action in ("TerminateInstances", "StopInstances", "StartInstances"):
            for key, instance in asked.items():
                if key.startswith("InstanceId.") and instance in self.machines:
                    if action == "StartInstances":
                        self.machines[instance].start(first=False)
                        self.write_addresses()
                    else:
                        self.machines[instance].kill()
        return status, content, kind

    def _of_moto(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, str]:
        passed = {name: value for name, value in headers.items() if name.lower() not in ("host", "content-length", "connection")}
        request = urllib.request.Request(self.moto.endpoint + path, data=body or None, headers=passed, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read(), answer.headers.get("Content-Type", "")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers.get("Content-Type", "")

    def _console(self, instance: str) -> str:
        """The console's output, in the format of AWS."""
        output = base64.b64encode(self.machines[instance].console.read_bytes()).decode()
        return (
            '<GetConsoleOutputResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>0</requestId>'
            f"<instanceId>{instance}</instanceId><timestamp>2026-01-01T00:00:00.000Z</timestamp><output>{output}</output>"
            "</GetConsoleOutputResponse>"
        )

    def _metadata(self, method: str, instance: str, path: str, headers: dict[str, str]) -> tuple[int, bytes, str]:
        """The metadata service of an instance (169.254.169.254), which requires a token."""
        if method == "PUT" and path == "latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds".lower() in map(str.lower, headers):
            self.tokens += 1
            return 200, b"a-token", "text/plain"
        if {name.lower(): value for name, value in headers.items()}.get("x-aws-ec2-metadata-token") != "a-token":
            return 401, b"", "text/plain"
        taken = self.machines[instance].taken_back
        if path == "latest/meta-data/spot/instance-action" and taken:
            return 200, json.dumps({"action": "terminate", "time": taken}).encode(), "application/json"
        return 404, b"", "text/plain"


class _Handler(BaseHTTPRequestHandler):
    cloud: Cloud
    protocol_version = "HTTP/1.1"

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, content, kind = self.cloud.answer(self.command, self.path, dict(self.headers.items()), body)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def __getattr__(self, name: str) -> Any:
        """Handles all methods: `do_GET`, `do_POST` and the rest."""
        if name.startswith("do_"):
            return self._do
        raise AttributeError(name)

    def log_message(self, *words: Any) -> None:
        """Log nothing."""


@contextlib.contextmanager
def cloud_over(moto: Emulator, folder: Path) -> Iterator[Cloud]:
    """A cloud for the time of the block."""
    cloud = Cloud(moto, folder)
    try:
        yield cloud
    finally:
        cloud.end()
