"""The Python of a base image. A container of it reports version and platform: by these, packages
for it are chosen here."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from entangle._remote.transport.docker_daemon import labels, remove
from entangle.errors import ImageError, UnfitPythonError

#: The names of processors: docker's, and Python's.
MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "386": "i686", "arm": "armv7l", "ppc64le": "ppc64le", "s390x": "s390x"}
OLDEST = (3, 10)
#: Seconds that a Python may take to report its version. An emulated one is slow.
_TELLS = 120
_MARK = "entangle-base "
_ASKS = """\
import json, os, platform, site, sys, sysconfig
about = sys.implementation.version
print("entangle-base " + json.dumps({
    "executable": sys.executable,
    "site": site.getsitepackages()[0],
    "glibc": platform.libc_ver()[1],
    "musl": "musl" in str(sysconfig.get_config_var("HOST_GNU_TYPE")) + str(sysconfig.get_config_var("SOABI")),
    "threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "version": list(sys.version_info[:3]),
    "markers": {
        "implementation_name": sys.implementation.name,
        "implementation_version": "%d.%d.%d" % (about.major, about.minor, about.micro),
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_release": "",
        "platform_system": platform.system(),
        "platform_version": "",
        "python_full_version": platform.python_version(),
        "python_version": "%d.%d" % sys.version_info[:2],
        "sys_platform": sys.platform,
    },
}))
"""
_OLD = "import sys; sys.version_info < (3, 10) and sys.exit('entangle-old %d.%d.%d' % sys.version_info[:3])\n"
#: The version of glibc that is assumed for an image that this machine cannot run: most wheels are
#: made for it.
_USUAL_GLIBC = "2.28"


@dataclass(frozen=True)
class BasePython:
    """A Python in an image."""

    version: tuple[int, int, int]
    executable: str
    #: The first directory of its site packages.
    site: str
    #: As docker names it: amd64, arm64 …
    arch: str
    glibc: str = ""
    musl: bool = False
    threaded: bool = False
    #: Whether this machine can run it.
    runs: bool = True
    markers: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def text(self) -> str:
        """The version, such as 3.13.1."""
        return ".".join(map(str, self.version))

    @property
    def abi(self) -> str:
        """The tag of compiled modules, such as cp313."""
        return f"cp{self.version[0]}{self.version[1]}{'t' if self.threaded else ''}"

    @property
    def platforms(self) -> list[str]:
        """The platform tags whose wheels it takes, the best first (PEP 600, PEP 656)."""
        machine = MACHINES.get(self.arch, self.arch)
        if self.musl:
            return [f"musllinux_1_{minor}_{machine}" for minor in (2, 1, 0)] + [f"linux_{machine}"]
        lowest = 5 if machine in ("x86_64", "i686") else 17
        known = re.match(r"2\.(\d+)", self.glibc)
        found = []
        for minor in range(int(known[1]) if known else 17, lowest - 1, -1):
            found.append(f"manylinux_2_{minor}_{machine}")
            older = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}.get(minor)
            found += [f"{older}_{machine}"] if older else []
        return [*found, f"linux_{machine}"]


def base_python(client: Any, base: dict[str, Any], image: str, executable: str) -> BasePython:
    """The Python of an image, as it reports itself in a container.

    Raises ImageError where there is none, UnfitPythonError where it is too old.
    """
    status, said = _run(client, base, image, executable)
    arch = str(base.get("Architecture") or "amd64")
    told = next((line[len(_MARK) :] for line in said.splitlines() if line.startswith(_MARK)), None)
    if told is not None:
        found = json.loads(told)
        markers = {**found.pop("markers"), "platform_machine": MACHINES.get(arch, arch)}
        return BasePython(**{**found, "version": tuple(found["version"])}, arch=arch, markers=markers)
    old = re.search(r"entangle-old ([\d.]+)", said)
    if old:
        raise UnfitPythonError(f"the image {image!r} has Python {old[1]}; entangle needs 3.10 or newer: name another one (--base)")
    if "exec format error" in said.lower():
        return _untried(base, image, arch)
    end = "\n".join(f"  {line}" for line in said.strip().splitlines()[-6:])
    raise ImageError(f"the Python {executable!r} of the image {image!r} does not run (exit status {status})\n{end}")


def _run(client: Any, base: dict[str, Any], image: str, executable: str) -> tuple[int, str]:
    from docker import errors
    from requests.exceptions import ConnectionError, Timeout

    identity = None
    try:
        identity = client.create_container(
            base["Id"],
            ["-c", _OLD + _ASKS],
            entrypoint=[executable],
            labels=labels(),
            host_config=client.create_host_config(network_mode="none"),
        )["Id"]
        client.start(identity)
        status = client.wait(identity, timeout=_TELLS)["StatusCode"]
        return status, client.logs(identity).decode(errors="replace")
    except (Timeout, ConnectionError):  # docker's library raises either when an answer takes too long
        client.ping()
        raise ImageError(
            f"the Python {executable!r} of the image {image!r} does not answer within {_TELLS} s; say which one does (--executable)"
        ) from None
    except errors.APIError as error:
        told = str(error.explanation or error)
        if "exec format error" in told.lower():
            return 1, told
        if "executable file not found" in told or "no such file" in told:
            raise ImageError(
                f"the image {image!r} has no Python at {executable!r}; name an image with one, or say where it is (--executable)"
            ) from None
        raise ImageError(f"the image {image!r} cannot be started: {told}") from None
    finally:
        if identity is not None:
            remove(client, identity)


def _untried(base: dict[str, Any], image: str, arch: str) -> BasePython:
    """The Python of an image for another processor. The official images state it in their
    environment."""
    environment = dict(one.partition("=")[::2] for one in (base.get("Config") or {}).get("Env") or ())
    with contextlib.suppress(KeyError, ValueError):
        major, minor, micro = (int(part) for part in re.split(r"[a-z]", environment["PYTHON_VERSION"])[0].split("."))
        markers = {
            "implementation_name": "cpython",
            "implementation_version": f"{major}.{minor}.{micro}",
            "os_name": "posix",
            "platform_machine": MACHINES.get(arch, arch),
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{major}.{minor}.{micro}",
            "python_version": f"{major}.{minor}",
            "sys_platform": "linux",
        }
        prefix = "/usr/local"
        return BasePython(
            (major, minor, micro),
            f"{prefix}/bin/python3",
            f"{prefix}/lib/python{major}.{minor}/site-packages",
            arch,
            _USUAL_GLIBC,
            runs=False,
            markers=markers,
        )
    raise ImageError(
        f"this machine cannot run the image {image!r}, which is for {arch}; build on such a machine, or install qemu for it (binfmt)"
    )
