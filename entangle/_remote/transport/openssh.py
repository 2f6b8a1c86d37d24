"""The OpenSSH client as the carrier of @ssh: one login a host, shared by everything that this process tree does there.

::

    ssh -M -S <home>/s-… host 'exec cat >/dev/null'     the line: logs in, and lives as long as anybody here uses it
    ssh    -S <home>/s-… host 'echo; exec python3 …'    an agent: no login of its own, a millisecond or two to open

The line's stdin is a pipe that only we hold: when we die, however that is, `cat` over there ends, and with it the line. Only
the process that owns the home of the tree keeps lines, since a worker may be killed at a deadline, and the line would go with
it for everybody else. Workers use the line if there is one, else log in by themselves. Whoever has a ControlPath in their own
configuration keeps it: their line may be the only way in.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import random
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence

from entangle._remote.transport.dialling import turn
from entangle._remote.transport.ssh import CONNECT, LEARN, LOGIN, SSH, no_answer, was_turned_away
from entangle._remote.wire.byte_stream import ByteStream, ProcessStream
from entangle._remote.wire.controls import escaped
from entangle._shared.home import home
from entangle._shared.readable import readable
from entangle._worker import janitor
from entangle.errors import FarError

#: The longest name that a socket may have, less what ssh adds to it while it makes one.
_LONGEST = 104 - 18 - 5
#: Seconds within which a command starts on a line that is alive.
_LIVELY = 10.0


def client() -> list[str] | None:
    """The ssh program, with the options that ENTANGLE_SSH_COMMAND gives it; None where there is none."""
    words = shlex.split(os.environ.get("ENTANGLE_SSH_COMMAND", "")) or ["ssh"]
    return words if shutil.which(words[0]) else None


def arguments(ssh: SSH, settings: dict[str, str]) -> list[str]:
    """What the options of @ssh are to the ssh client; `settings` is what its configuration says for the host already."""
    found = ["-T", "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes", "-o", "LogLevel=ERROR", "-o", "EscapeChar=none"]
    if settings.get("connecttimeout", "none") == "none":
        found += ["-o", f"ConnectTimeout={CONNECT}"]
    if settings.get("serveraliveinterval", "0") == "0":
        found += ["-o", "ServerAliveInterval=15"]
    if ssh.known_hosts is False:
        found += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "GlobalKnownHostsFile=/dev/null"]
    elif ssh.known_hosts == LEARN:
        found += ["-o", "StrictHostKeyChecking=accept-new"]
    elif isinstance(ssh.known_hosts, str):
        path = _quoted(os.path.abspath(os.path.expanduser(ssh.known_hosts)))
        found += ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={path}", "-o", "GlobalKnownHostsFile=/dev/null"]
    identity = ssh.identity
    if identity is not None:
        found += ["-i", identity, "-o", "IdentitiesOnly=yes"]
    if ssh.user is not None:
        found += ["-l", ssh.user]
    if ssh.port is not None:
        found += ["-p", str(ssh.port)]
    return found


def _quoted(path: str) -> str:
    """A path in an option of ssh, where % and blanks mean something."""
    return '"' + path.replace("%", "%%").replace('"', '\\"') + '"'


def open_stream(ssh: SSH, command: str) -> ByteStream:
    """Log in, if nobody of ours has, and start a command there."""
    program = client()
    assert program is not None
    settings = _settings(program, ssh)
    options = [*program, *arguments(ssh, settings)]
    if settings.get("controlpath", "none") != "none":
        return _log_in_for(ssh, [*options, "--", ssh.host, command])
    name = "s-" + hashlib.sha256(repr((program, ssh.login)).encode()).hexdigest()[:8]
    if home().pid != os.getpid():
        return _log_in_for(ssh, [*options, *_using(_line_of_the_tree(name)), "--", ssh.host, command])
    if len(os.path.join(home().path, name).encode()) > _LONGEST:
        return _log_in_for(ssh, [*options, *_using(None), "--", ssh.host, command])
    while True:
        line, fresh = _take_line(ssh, options, name)
        try:
            stream = SSHStream([*options, *_using(line.path), "--", ssh.host, command], line)
        except BaseException:
            _give_line(line)
            raise
        try:
            if _let_in(stream, _LIVELY) or fresh:
                return stream
        except BaseException:
            stream.close()
            raise
        # The line is there and nothing comes through: the network has gone away under it. Another one, then.
        line.doubtful = True
        stream.close()


def _using(path: str | None) -> list[str]:
    """The options that have an ssh client use a line, if it is there; none: that have it log in by itself."""
    return ["-o", "ControlMaster=no", "-S", "none" if path is None else path.replace("%", "%%")]


def _line_of_the_tree(name: str) -> str | None:
    """A line that the process which owns the home of our tree keeps."""
    found = glob.glob(os.path.join(glob.escape(home().path), f"{name}-????"))
    return max(found, default=None, key=lambda path: os.stat(path).st_mtime_ns if os.path.exists(path) else 0)


def _settings(program: list[str], ssh: SSH) -> dict[str, str]:
    """What the configuration of the ssh client says for this host; nothing where that client does not tell."""
    command = [*program, "-G", *(["-l", ssh.user] if ssh.user else []), *(["-p", str(ssh.port)] if ssh.port else []), "--", ssh.host]
    with janitor.off_duty():
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CONNECT, errors="replace")
        except subprocess.TimeoutExpired:
            return {}
    if done.returncode and "onfiguration" in done.stderr:
        raise ssh.diagnose(255, done.stderr)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


# --- a login -------------------------------------------------------------------------------------------------------------


def _log_in_for(ssh: SSH, command: Sequence[str]) -> ByteStream:
    """Start a program that logs in by itself, and wait until it is in."""
    end = time.monotonic() + LOGIN
    while True:
        with turn(ssh.host, LOGIN):
            stream = SSHStream(command, None)
            try:
                if _let_in(stream, end - time.monotonic()):
                    return stream
                trouble = _trouble(ssh, stream.process, end)
            except BaseException:
                stream.close()
                raise
            stream.close()
        if trouble is not None:
            raise trouble
        time.sleep(random.uniform(0.1, 0.6))


def _let_in(stream: SSHStream, seconds: float) -> bool:
    """Wait for the shell over there to say something."""
    if not readable([stream.reads], max(0.0, seconds)):
        return False
    import select

    poll = select.poll()
    poll.register(stream.reads, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


def _trouble(ssh: SSH, process: subprocess.Popen[bytes], end: float) -> FarError | None:
    """Why a login failed; None where it was turned away and may be tried again."""
    try:
        status = process.wait(max(0.0, min(2.0, end - time.monotonic())))
    except subprocess.TimeoutExpired:
        return no_answer(ssh, LOGIN, _words(process))
    words = _words(process)
    if status == 255 and was_turned_away(words) and time.monotonic() < end:
        return None
    return ssh.diagnose(status, words)


def _words(process: subprocess.Popen[bytes]) -> str:
    """What a program has written to stderr so far."""
    assert process.stderr is not None
    said = b""
    while len(said) < 1 << 16 and readable([process.stderr.fileno()], 0.0):
        more = os.read(process.stderr.fileno(), 1 << 14)
        if not more:
            break
        said += more
    return escaped(said.decode(errors="replace"))


# --- lines: logins that are shared ----------------------------------------------------------------------------------------


class Line:
    """A login that is kept, and how many streams use it. It ends with the last of them.

    Its socket has a name of its own: an ssh that ends removes its socket by name, and must not find that of its successor.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = os.path.join(home().path, f"{name}-{os.urandom(2).hex()}")
        self.users = 0
        self.doubtful = False
        self.process: subprocess.Popen[bytes] | None = None
        self.dialling = threading.Lock()

    def dial(self, ssh: SSH, options: Sequence[str]) -> None:
        """Log in. Raises what `SSH.open` does."""
        end = time.monotonic() + LOGIN
        command = [*options, "-M", "-o", "ControlPersist=no", "-S", self.path.replace("%", "%%"), "--", ssh.host, "exec cat >/dev/null"]
        while True:
            with turn(ssh.host, LOGIN):
                with janitor.off_duty():
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        bufsize=0,
                        start_new_session=True,
                    )
                self.process = process
                try:
                    # ssh makes the socket when it is in. It does not say so otherwise.
                    while not os.path.exists(self.path) and process.poll() is None and time.monotonic() < end:
                        assert process.stderr is not None
                        readable([process.stderr.fileno()], 0.002)
                        time.sleep(0.002)
                    if os.path.exists(self.path):
                        return
                    trouble = _trouble(ssh, process, end)
                except BaseException:
                    self.end()
                    raise
            self.end()
            if trouble is not None:
                raise trouble
            time.sleep(random.uniform(0.1, 0.6))

    def alive(self) -> bool:
        """Whether its program still runs and nobody has found it dead."""
        return self.process is not None and self.process.poll() is None and not self.doubtful and os.path.exists(self.path)

    def end(self) -> None:
        """Hang up."""
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stderr is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        # It has nothing to say goodbye for: what used it has ended, and a server notices that a client is gone.
        process.terminate()
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def abandon(self) -> None:
        """In a forked child: close its copies of the descriptors; the line is its parent's."""
        process, self.process = self.process, None
        if process is not None:
            for file in (process.stdin, process.stderr):
                if file is not None:
                    with contextlib.suppress(OSError):
                        file.close()
            process.returncode = 0


_lines: dict[str, Line] = {}
_guard = threading.Lock()


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()  # whoever held it did not come along
    for line in _lines.values():
        line.abandon()
    _lines.clear()


os.register_at_fork(after_in_child=_after_fork)


def _take_line(ssh: SSH, options: Sequence[str], name: str) -> tuple[Line, bool]:
    """The line to a host, and whether it has been dialled just now; one more uses it."""
    while True:
        with _guard:
            line = _lines.get(name)
            if line is None:
                line = _lines[name] = Line(name)
            line.users += 1
        fresh = False
        try:
            with line.dialling:
                if line.process is None and not line.doubtful:
                    line.dial(ssh, options)
                    fresh = True
        except BaseException:
            line.doubtful = True
            _give_line(line)
            raise
        if line.alive():
            return line, fresh
        line.doubtful = True
        _give_line(line)


def _give_line(line: Line) -> None:
    """One less uses a line; the last one ends it. One that is in doubt is not given to anybody any more."""
    with _guard:
        line.users -= 1
        last = not line.users
        if (line.doubtful or last) and _lines.get(line.name) is line:
            del _lines[line.name]
    if last:
        line.end()


class SSHStream(ProcessStream):
    """A program of the far side by an ssh client, and the line that it uses."""

    def __init__(self, command: Sequence[str], line: Line | None) -> None:
        super().__init__(command)
        self._line = line

    def close(self) -> None:
        """End it; a line through which not even that goes is in doubt."""
        line, self._line = self._line, None
        super().close()
        if line is not None:
            if self.process.returncode < 0:
                line.doubtful = True
            _give_line(line)

    def abandon(self) -> None:
        """The line is its parent's too."""
        self._line = None
        super().abandon()
