"""Services that one test session shares. The first test that needs one starts it. It ends with the
process."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import subprocess
import tempfile
import urllib.parse
from pathlib import Path

from ..ways import missing
from . import hosts as _hosts

#: The image that `.ci/services` builds.
IMAGE = "entangle-tests:1"


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def ssh_programs() -> None:
    """Check that hosts with ssh servers are possible here. If programs are missing, skip the test,
    or fail in CI."""
    lacking = _hosts.what_is_missing()
    if lacking:
        missing(lacking)


@functools.lru_cache(maxsize=1)
def shared_hosts() -> _hosts.Hosts:
    """Three hosts with ssh servers, which stay. Ask in a fixture of session scope: if a test starts
    them, they count as left behind by it. If programs are missing, skip the test, or fail in CI."""
    ssh_programs()
    stack = contextlib.ExitStack()
    folder = Path(tempfile.mkdtemp(prefix="entangle-hosts-"))
    stack.callback(_remove, folder, os.getpid())
    atexit.register(stack.close)
    return stack.enter_context(_hosts.three_hosts(folder))


@functools.lru_cache(maxsize=1)
def _trouble_with_docker() -> str:
    if shutil.which("docker") is None:
        return "no docker here: make services"
    try:
        done = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "the docker daemon does not answer: make services"
    if done.returncode:
        return f"{done.stderr.strip()}: make services"
    return ""


def image() -> str:
    """The name of the image for tests. Without a docker daemon that has it, skip the test, or fail
    in CI."""
    trouble = _trouble_with_docker()
    if trouble:
        missing(trouble)
    return IMAGE


@functools.lru_cache(maxsize=1)
def _trouble_with_packages() -> str:
    """Why a container here cannot install packages; '' if it can. It tries the index or proxy that
    pip is configured to use."""
    from entangle._remote.transport.derived_images import settings_of_pip

    settings, _ = settings_of_pip()
    proxy = next((value for name, value in settings.items() if name.lower() in ("https_proxy", "pip_proxy") and value), "")
    asked = urllib.parse.urlsplit(proxy or settings.get("PIP_INDEX_URL") or "https://pypi.org/simple")
    host, port = asked.hostname or "pypi.org", asked.port or (443 if asked.scheme == "https" else 80)
    look = f"import socket; socket.create_connection(({host!r}, {port}), 20).close()"
    command = ["docker", "run", "--rm", "--entrypoint", "python3", IMAGE, "-c", look]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return f"containers do not reach {host}:{port} within a minute"
    said = done.stderr.strip().splitlines()
    return f"containers do not reach {host}:{port} ({said[-1] if said else done.returncode})" if done.returncode else ""


def packages() -> None:
    """Check that a container can install packages from an index. If containers have no network
    access, skip the test, or fail in CI, with that reason: then it is not the tested code that is
    broken."""
    image()
    trouble = _trouble_with_packages()
    if trouble:
        missing(f"{trouble}, and packages come from there: give docker a network that leads out, or pip an index that it reaches")


def containers() -> list[str]:
    """The ids of entangle's containers, running or not, without those of test processes that run
    beside this one."""
    command = ["docker", "ps", "--all", "--no-trunc", "--filter", "label=entangle", "--format", '{{.ID}} {{.Label "entangle.home"}}']
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [one for one, _, home in (line.partition(" ") for line in listed.splitlines()) if not _of_tests_beside(home)]


def _of_tests_beside(home: str) -> bool:
    """Whether a run directory belongs to other tests: to their process, or inside a directory that
    pytest made for them."""
    if home.startswith(os.environ["ENTANGLE_RUN_DIR"]):
        return False
    worker = re.search(r"/popen-(\w+)/", home)
    return "/entangle-tests-" in home or (worker is not None and worker[1] != os.environ.get("PYTEST_XDIST_WORKER"))
