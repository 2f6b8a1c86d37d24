"""The hosts on which the examples with @ssh run.

Name three hosts of your own that accept your key and have Python 3.10 or newer:

    ENTANGLE_HOSTS="me@miko me@radiant me@phoenix" python -m entangle.examples.sshschedulerexample

Otherwise three ssh servers run on this machine, on ports of the loopback interface, as long as the
example does. That needs an OpenSSH server (apt install openssh-server), and no root rights. Run as
a program, this prints the hosts and their Pythons.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entangle.ssh import ssh

Options = dict[str, Any]


@contextlib.contextmanager
def three_hosts() -> Iterator[list[Options]]:
    """The options of @ssh for three hosts."""
    named = os.environ.get("ENTANGLE_HOSTS", "").replace(",", " ").split()
    if named:
        yield [{"host": host, "python": os.environ.get("ENTANGLE_HOSTS_PYTHON", "python3")} for host in (named * 3)[:3]]
        return
    with tempfile.TemporaryDirectory(prefix="entangle-hosts-") as folder, contextlib.ExitStack() as stack:
        yield [stack.enter_context(server(Path(folder), name)) for name in ("miko", "radiant", "phoenix")]


@contextlib.contextmanager
def server(folder: Path, name: str) -> Iterator[Options]:
    """An ssh server for this user alone; gives the options of @ssh that reach it."""
    sshd = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if sshd is None:
        sys.exit("There is no sshd here. Install one (apt install openssh-server), or name hosts: ENTANGLE_HOSTS='me@one me@two me@three'")
    key, host_key, settings = folder / "key", folder / f"{name}.key", folder / f"{name}.conf"
    for path in (key, host_key):
        if not path.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with open(folder / "known_hosts", "a") as known:
        known.write(f"[127.0.0.1]:{port} {Path(f'{host_key}.pub').read_text()}")
    settings.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {host_key}\nAuthorizedKeysFile {key}.pub\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    with open(folder / f"{name}.log", "wb") as log:
        running = subprocess.Popen([sshd, "-D", "-e", "-f", str(settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until and running.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
                if connection.recv(4) == b"SSH-":
                    break
            time.sleep(0.02)
        yield {
            "user": getpass.getuser(),
            "host": "127.0.0.1",
            "port": port,
            "key": str(key),
            "known_hosts": str(folder / "known_hosts"),
            "python": sys.executable,
        }
    finally:
        running.terminate()
        running.wait()


def there() -> str:
    """Where this runs: the host, the port of its ssh server, and the Python."""
    import os
    import platform

    return f"{platform.node()}, port {os.environ['SSH_CONNECTION'].split()[3]}: Python {platform.python_version()}"


def main() -> None:
    with three_hosts() as hosts:
        for options in hosts:
            print(ssh(**options)(there)()())


if __name__ == "__main__":
    main()
