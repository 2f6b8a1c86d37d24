"""`entangle doctor`: what works on this machine, and how to get what does not. Whatever it starts,
it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from entangle._shared.unrecorded import unrecorded
from entangle.cli.exit_status import DONE, FAILED
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, size, text
from entangle.task import Start

#: OFF: not available, which matters only to users of it. BROKEN: entangle itself does not work.
WORKS, OFF, BROKEN = "works", "off", "broken"

#: Seconds that a program or a server gets to answer.
PATIENCE = 10


@dataclass(frozen=True)
class Finding:
    """The result of one check; `advice` says how to get what is missing."""

    what: str
    state: str
    detail: str
    advice: str = ""


def doctor(as_json: bool, looks: Sequence[Callable[[], Finding]] = ()) -> int:
    """Check everything, or these; gives 1 where something is broken."""
    findings = [_careful(look) for look in looks or LOOKS]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        _show(findings)
    return FAILED if any(finding.state == BROKEN for finding in findings) else DONE


def _careful(look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:  # one check that fails must not hide the others
        return Finding(look.__name__.strip("_").replace("_", " "), BROKEN, f"{type(error).__name__}: {error}"[:200])


def _show(findings: list[Finding]) -> None:
    out, colours = console(), {WORKS: "green", OFF: "yellow", BROKEN: "bold red"}
    wide = max(len(finding.what) for finding in findings)
    for finding in findings:
        # One line each, however narrow the terminal is: people copy and search these lines.
        line = text((f"{finding.state:6}", colours[finding.state]), f"  {finding.what:{wide}}  {finding.detail}")
        out.print(line, soft_wrap=True)
        if finding.advice:
            out.print(text(" " * (wide + 10) + finding.advice, style="dim"), soft_wrap=True)


def _python() -> Finding:
    from entangle import __version__

    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", WORKS, f"{version} on {sys.platform}, entangle {__version__}")


def _start(way: Start) -> Callable[[], Finding]:
    def look() -> Finding:
        from entangle.process import process

        began = time.monotonic()
        try:
            with unrecorded():
                value = process(_answer)(20)(start=way)
        except Exception as error:
            return Finding(f"start by {way}", BROKEN, f"{type(error).__name__}: {error}"[:200])
        taken = (time.monotonic() - began) * 1e3
        return Finding(f"start by {way}", WORKS if value == 42 else BROKEN, f"a task ran in a process of its own, {taken:.0f} ms in all")

    look.__name__ = f"start by {way}"
    return look


def _answer(n: int) -> int:
    return 2 * n + 2


def _auto() -> Finding:
    from entangle._run.forking import UNSAFE, why_not_fork

    why = why_not_fork()
    added = os.environ.get("ENTANGLE_FORK_UNSAFE")
    known = f"{', '.join(sorted(set(UNSAFE.values())))}{', ' + added if added else ''}"
    chosen = os.environ.get("ENTANGLE_START")
    if chosen not in (None, "", "auto"):
        return Finding("start by auto", WORKS, f"not used: ENTANGLE_START={chosen}")
    if why:
        return Finding("start by auto", WORKS, f"forkserver, since {why}", "a fork is quicker, and is taken where it is safe")
    return Finding(
        "start by auto",
        WORKS,
        f"fork; in a program with other threads, or that has loaded {known}: forkserver",
        "ENTANGLE_FORK_UNSAFE=name,name adds modules or libraries that do not survive a fork",
    )


def _cpus() -> Finding:
    from entangle.cookies import available_cpus, cpu_quota

    usable, there = len(available_cpus()), os.cpu_count() or 1
    detail = f"{usable} of {there} usable" if usable != there else f"{usable}"
    quota = cpu_quota()
    if quota is not None and quota < usable:
        return Finding("cpus", WORKS, f"{detail}, of which the control group allows {quota:g} at a time")
    return Finding("cpus", WORKS, detail)


def _run_directory() -> Finding:
    from entangle._shared.home import _parent

    parent = _parent()
    where = os.statvfs(parent)
    total, free = where.f_frsize * where.f_blocks, where.f_frsize * where.f_bavail
    detail = f"{parent}: {size(free)} of {size(total)} free"
    if not os.access(parent, os.W_OK | os.X_OK):
        return Finding("shared memory", BROKEN, f"{parent} cannot be written to", "set ENTANGLE_RUN_DIR to a writable directory")
    if parent == "/dev/shm" and total < 256 << 20:
        return Finding("shared memory", OFF, detail + "; large values go through files", "in docker: run with --shm-size=1g")
    if not parent.startswith("/dev/shm"):
        return Finding(
            "shared memory", OFF, detail + "; not in memory", "/dev/shm is missing or cannot be written to, or ENTANGLE_RUN_DIR is set"
        )
    return Finding("shared memory", WORKS, detail)


def _cookies() -> Finding:
    import tempfile

    from entangle.cookies import CookieQueue, available_cpus, jobserver_style

    with tempfile.TemporaryDirectory() as folder:
        queue = CookieQueue.create(os.path.join(folder, "queue"), b"+")
        try:
            taken, none = queue.take(), queue.take()
        finally:
            queue.close()
    if taken is None or none is not None:
        return Finding("cookies", BROKEN, "a named pipe does not keep what is written to it")
    return Finding("cookies", WORKS, f"{len(available_cpus())}, offered to make as {jobserver_style()}")


def _records() -> Finding:
    from entangle._records.directory import recording

    if not recording():
        return Finding("records", OFF, f"ENTANGLE_RECORD={os.environ['ENTANGLE_RECORD']}", "unset it, and runs are remembered")
    from entangle.cli.runs import database

    path = database()
    if not os.path.exists(path):
        return Finding("records", WORKS, f"none yet; they will lie in {path}")
    return Finding("records", WORKS, f"{path}, {size(os.path.getsize(path))}")


def _ssh() -> Finding:
    program = shutil.which("ssh")
    if program is None:
        return Finding("ssh", OFF, "no ssh client", "apt install openssh-client")
    version = _output([program, "-V"])
    agent = "an agent with keys" if os.environ.get("SSH_AUTH_SOCK") and _succeeds(["ssh-add", "-l"]) else "no agent"
    return Finding("ssh", WORKS, f"{version}, {agent}")


def _docker() -> Finding:
    program = shutil.which("docker")
    if program is None and not os.path.exists("/var/run/docker.sock"):
        return Finding("docker", OFF, "not installed", "https://docs.docker.com/engine/install")
    if program is None:
        return Finding("docker", OFF, "a socket, but no docker program", "apt install docker-cli")
    done = subprocess.run([program, "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        return Finding(
            "docker", OFF, (done.stderr.strip().splitlines() or ["no answer"])[-1][:160], "is the daemon running, and may this user use it?"
        )
    return Finding("docker", WORKS, f"server {done.stdout.strip()}")


def _apptainer() -> Finding:
    for name in ("apptainer", "singularity"):
        program = shutil.which(name)
        if program is not None:
            return Finding(name, WORKS, _output([program, "--version"]))
    return Finding("apptainer", OFF, "not installed", "https://apptainer.org/docs/admin/latest/installation.html")


def _gpu() -> Finding:
    from entangle._run.gpus import OURS, VARIABLES, find

    found = find()
    if not found.gpus:
        chosen = found.source.rpartition(" ")[2]
        advice = f"unset {chosen}, or name devices in it" if chosen in VARIABLES else f"{OURS}=0,1 says which there are"
        return Finding("gpu", OFF, f"none; looked for {found.looked}", f"for @scheduler(gpus=1): {advice}")
    each = [" ".join(filter(None, (gpu.name, gpu.model, f"({size(gpu.memory)})" if gpu.memory else ""))) for gpu in found.gpus]
    return Finding("gpu", WORKS, f"{len(each)} by {found.source}: {'; '.join(each)}")


def _gremlin() -> Finding:
    import socket
    from urllib.parse import urlsplit

    address = os.environ.get("ENTANGLE_GRAPH", "")
    if not address:
        return Finding("gremlin", OFF, "ENTANGLE_GRAPH is not set", "ENTANGLE_GRAPH=ws://localhost:8182/gremlin sends records there")
    parts = urlsplit(address)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        return Finding(
            "gremlin", BROKEN, "ENTANGLE_GRAPH is no address of a Gremlin server", "set it to one, as ws://localhost:8182/gremlin"
        )
    try:
        port = parts.port or (443 if parts.scheme == "wss" else 8182)
        socket.create_connection((parts.hostname, port), timeout=PATIENCE).close()
    except (OSError, ValueError) as error:
        return Finding(
            "gremlin", OFF, f"{parts.hostname} does not answer: {error}", "no record is lost: entangle graph send, when the server is up"
        )
    return Finding("gremlin", WORKS, f"{parts.hostname}:{port} answers")


#: What users may install, and the modules that it brings.
EXTRAS = {
    "http": ("httpx",),
    "cli": ("rich", "typer"),
    "web": ("starlette", "uvicorn"),
    "gpu": ("numba", "numpy"),
    "dataflow": ("watchfiles",),
    "depot": ("fsspec",),
    "dask": ("dask", "distributed"),
    "ray": ("ray",),
    "joblib": ("joblib",),
    "ssh": ("paramiko",),
    "docker": ("docker",),
    "graph": ("gremlin_python", "networkx"),
    "threads": ("threadpoolctl",),
    "aws": ("boto3",),
    "examples": ("fastapi", "ipykernel", "nbclient", "pandas", "PIL", "sklearn"),
}


def _extras() -> Finding:
    from importlib.util import find_spec

    missing = [extra for extra, modules in EXTRAS.items() if any(find_spec(module) is None for module in modules)]
    there = [extra for extra in EXTRAS if extra not in missing]
    advice = f"pip install 'py-entangle[{','.join(missing)}]'" if missing else ""
    return Finding("extras", OFF if missing else WORKS, f"installed: {', '.join(there) or 'none'}", advice)


def _output(command: list[str]) -> str:
    """The first line that a program prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    return ((done.stdout + done.stderr).strip().splitlines() or ["no answer"])[0][:120]


def _succeeds(command: list[str]) -> bool:
    try:
        return not subprocess.run(command, capture_output=True, timeout=PATIENCE, stdin=subprocess.DEVNULL).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


LOOKS: list[Callable[[], Any]] = [
    _python,
    _cpus,
    _start("fork"),
    _start("forkserver"),
    _start("spawn"),
    _auto,
    _run_directory,
    _cookies,
    _records,
    _ssh,
    _docker,
    _apptainer,
    _gpu,
    _gremlin,
    _extras,
]
