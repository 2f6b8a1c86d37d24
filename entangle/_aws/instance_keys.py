"""What this machine keeps of instances of EC2: a key of its own, and their host keys."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Iterator

from entangle._worker import janitor
from entangle.errors import OptionError, UnreachableError

#: What is known of an instance is removed when it has not been used for this long (seconds).
_FORGOTTEN = 30 * 86400.0
_BETWEEN = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
_KEY = re.compile(r"\b((?:ssh|ecdsa)-[a-z0-9-]+) (AAAA[A-Za-z0-9+/=]+)")


def folder() -> str:
    """The directory, for this user alone."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    path = os.path.join(state, "entangle", "ec2")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """A block that one process of this user at a time is in."""
    with open(os.path.join(folder(), f"{name}.lock"), "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def own_key() -> str:
    """The path of the private key where none is named; made when it is first wanted."""
    path = os.path.join(folder(), "key")
    with one_at_a_time("key"):
        if not os.path.exists(path):
            _keygen("-q", "-t", "ed25519", "-N", "", "-C", "entangle", "-f", path)
    return path


def public_key(path: str) -> str:
    """The public half of a private key: the file beside it, else ssh-keygen says it. Raises
    OptionError."""
    path = os.path.expanduser(path).removesuffix(".pub")
    with contextlib.suppress(OSError), open(f"{path}.pub", encoding="utf-8") as file:
        return " ".join(file.read().split()[:2])
    if not os.path.isfile(path):
        raise OptionError(f"@ec2: key={path!r}: there is no such file on {os.uname().nodename}; name a private key, or leave out key")
    try:
        return " ".join(_keygen("-y", "-P", "", "-f", path).split()[:2])
    except UnreachableError as error:
        raise OptionError(
            f"@ec2: key={path!r}: its public half is not beside it, and cannot be told: {error}. Write it there: "
            f"ssh-keygen -y -f {path} > {path}.pub"
        ) from None


def fingerprint(public: str) -> str:
    """The name of a key by its content."""
    return hashlib.sha256(public.encode()).hexdigest()[:16]


def _keygen(*words: str) -> str:
    try:
        with janitor.off_duty():
            done = subprocess.run(["ssh-keygen", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise UnreachableError("@ec2: there is no ssh-keygen here; install an OpenSSH client") from None
    if done.returncode:
        raise UnreachableError(f"ssh-keygen: {done.stderr.strip()[-300:]}")
    return done.stdout


def remember(name: str, instance: str) -> None:
    """Keep the id of the instance that was launched last for these options."""
    with open(os.path.join(folder(), f"{name}.last"), "w", encoding="utf-8") as file:
        file.write(instance)


def recall(name: str) -> str:
    """That id; "" where there is none."""
    with contextlib.suppress(OSError), open(os.path.join(folder(), f"{name}.last"), encoding="utf-8") as file:
        return file.read().strip()
    return ""


def host_keys(console: str) -> list[str]:
    """The host keys that an instance has printed on its console when it started last."""
    found = _BETWEEN.findall(console)
    return [f"{kind} {key}" for kind, key in _KEY.findall(found[-1])] if found else []


def known_hosts(instance: str) -> str:
    """The file of known hosts for an instance."""
    return os.path.join(folder(), f"{instance}.known_hosts")


def trust(instance: str, address: str, keys: list[str]) -> None:
    """Write the host keys of an instance. Whatever answers in its place must have one of them: a
    jump host in `~/.ssh/config` may give it another address."""
    path = known_hosts(instance)
    with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
        file.writelines(f"*,{address} {key}\n" for key in keys)
    os.replace(f"{path}.{os.getpid()}", path)
    for name in os.listdir(folder()):
        other = os.path.join(folder(), name)
        with contextlib.suppress(OSError):
            if name.endswith((".known_hosts", ".last")) and time.time() - os.stat(other).st_mtime > _FORGOTTEN:
                os.unlink(other)
