"""A container by the command of Apptainer or of Singularity, which take the same words.

The image is a file or a URL. The container sees nothing of this machine but what `volumes` name: no
home, no `/tmp`, no environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from entangle._remote.transport import Transport
from entangle._remote.wire.byte_stream import ByteStream, ProcessStream
from entangle._shared.masks import masked
from entangle._worker import janitor
from entangle.errors import FarError, ImageError, UnfitPythonError, UnreachableError

#: Where packages are in the container.
_PACKAGES = "/opt/entangle-packages"
#: Seconds that pip may take.
_INSTALLING = 1800


@dataclass(frozen=True)
class ApptainerTransport(Transport):
    """The options of @apptainer and @singularity; `program` is which of the two."""

    image: str
    packages: tuple[str, ...] = ()
    gpus: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    volumes: tuple[str, ...] = ()
    memory: str | int | None = None
    cpus: float | None = None
    python: str = "python3"
    program: str = "apptainer"

    name: ClassVar[str] = "apptainer"
    ends_with_run: ClassVar[bool] = True

    @property
    def place(self) -> str:
        """The image, without its directory."""
        return os.path.basename(self.image)

    @property
    def timeout(self) -> float:
        """Longer for a URL, which is fetched and converted first."""
        return 1800.0 if "://" in self.image else 60.0

    def command(self, program: str, arguments: Sequence[str], packages: str | None = None, *, writable: bool = False) -> list[str]:
        """The command that runs the image's Python: options in, argv out."""
        words = [program, "exec", "--containall", "--no-home", "--cleanenv", "--pwd", "/tmp", "--writable-tmpfs"]
        if self.gpus:
            words.append("--nv")
        if self.memory is not None:
            words += ["--memory", str(self.memory)]
        if self.cpus is not None:
            words += ["--cpus", f"{self.cpus:g}"]
        for volume in self.volumes:
            words += ["--bind", volume]
        given = dict(self.environment)
        if packages is not None:
            words += ["--bind", f"{packages}:{_PACKAGES}{'' if writable else ':ro'}"]
            given["PYTHONPATH"] = os.pathsep.join(filter(None, [_PACKAGES, given.get("PYTHONPATH")]))
        for name, value in given.items():
            words += ["--env", f"{name}={value}"]
        return [*words, self.image, self.python, *arguments]

    def open(self, arguments: Sequence[str]) -> ByteStream:
        """Start the container with the agent in it."""
        program = self._program()
        if "://" not in self.image and not os.path.exists(self.image):
            raise ImageError(f"@{self.program}: there is no image {self.image!r} here; name a .sif file, a sandbox or a docker:// URL")
        packages = self._installed(program) if self.packages else None
        return ProcessStream(self.command(program, arguments, packages))

    def _program(self) -> str:
        """The path of `program`, else of the other one: both are the same under two names."""
        other = "singularity" if self.program == "apptainer" else "apptainer"
        found = shutil.which(self.program) or shutil.which(other)
        if found is None:
            raise UnreachableError(
                f"@{self.program}: neither {self.program} nor {other} is on PATH; see apptainer.org on how to install it"
            )
        return found

    def _installed(self, program: str) -> str:
        """The directory with the packages for this image.

        The image's own pip fills it, once; it is kept in the user's cache.
        """
        recipe = hashlib.sha256(repr((self.image, _age(self.image), self.packages, self.python)).encode()).hexdigest()[:24]
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        place = os.path.join(cache, "entangle", "packages", recipe)
        os.makedirs(place, mode=0o700, exist_ok=True)
        with _alone(f"{place}.lock"):
            done = os.path.join(place, ".complete")
            if not os.path.exists(done):
                pip = ["-m", "pip", "install", "--quiet", "--no-cache-dir", "--target", _PACKAGES, "--upgrade", "--", *self.packages]
                with janitor.off_duty():
                    ended = subprocess.run(
                        self.command(program, pip, place, writable=True),
                        stdin=subprocess.DEVNULL,
                        capture_output=True,
                        text=True,
                        errors="replace",
                        timeout=_INSTALLING,
                        check=False,
                    )
                if ended.returncode:
                    end = "\n".join(f"  {line}" for line in ended.stderr.strip().splitlines()[-8:])
                    raise ImageError(f"{masked(' '.join(self.packages))} cannot be installed for the image {self.image!r}\n{end}")
                with open(done, "w", encoding="utf-8"):
                    pass
        return place

    def diagnose(self, status: int | None, words: str) -> FarError:
        """The error for a container that ended, or kept silent."""
        if re.search(r"(?i)not found|no such file", words) or status in (126, 127):
            return UnfitPythonError(
                f"{self.place}: there is no Python at {self.python!r} in this image; say where: python='/path/to/python3'"
            )
        if re.search(r"FATAL|could not open image|failed to (get|fetch|pull)", words):
            return ImageError(f"@{self.program}(image={self.image!r}) cannot be started\n  {words.strip()[-600:]}")
        return super().diagnose(status, words)


def _age(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime_ns
    return 0


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    with open(path, "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
