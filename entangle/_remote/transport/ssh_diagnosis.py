"""Why no Python answered over ssh: errors from the messages of the client or the shell there."""

from __future__ import annotations

import os
import re
import shlex

from entangle._remote.transport import did_not_start, virtual_environment
from entangle._remote.transport.ssh_options import LEARN, SSHOptions, client_words
from entangle.errors import FarError, HostKeyError, LoginRefusedError, UnfitPythonError, UnreachableError


def diagnose(ssh: SSHOptions, status: int | None, words: str) -> FarError:
    """The error for what the ssh client, or the shell over there, has said."""
    found = _login_trouble(ssh, words) if status in (255, None) else None
    if found is not None:
        return found
    made = virtual_environment.trouble(ssh.place, ssh.env, status, words)
    if made is not None:
        return made
    if status in (126, 127) or re.search(r"(?i)not found|no such file", words):
        return UnfitPythonError(
            f"{ssh.place}: there is no Python at {ssh.python!r} there; say where it is, @ssh(python='/path/to/python3')\n{_end_of(words)}"
        )
    return did_not_start(ssh.place, status, words)


#: What an ssh client's messages mean: a pattern, the error, the advice. The first match counts.
_TROUBLE: list[tuple[str, type[UnreachableError], str]] = [
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key .{0,300} (has changed|does not match)",
        HostKeyError,
        "its host key is not the one in known_hosts: the host was reinstalled, or another machine poses as it. Ask its "
        "administrator; if the new key is right, remove the old one: ssh-keygen {file}-R {entry}",
    ),
    (
        # OpenSSH: its configuration says which host a name means, and where keys are kept.
        r"Host key verification failed|host key is known for",
        HostKeyError,
        "its host key is not known here. Log in once, and compare the fingerprint that is shown with the one that its administrator "
        "names: {login} , or accept keys of new hosts: @ssh(known_hosts='accept-new')",
    ),
    (
        r"not found in known_hosts",  # paramiko, which reads no configuration
        HostKeyError,
        "its host key is not known here. Compare it with the one that its administrator names, and add it: "
        "ssh-keyscan {port}{host} >> {known_hosts} , or accept keys of new hosts: @ssh(known_hosts='accept-new')",
    ),
    (r"UNPROTECTED PRIVATE KEY FILE|bad permissions", LoginRefusedError, "others can read the key file {key}: chmod 600 {key}"),
    (
        r"Load key .*(invalid format|error in libcrypto)|not a valid \w+ private key",
        LoginRefusedError,
        "{key} is not a private key, or needs a passphrase, which an ssh-agent must know: ssh-add {key}",
    ),
    (
        r"Permission denied|Too many authentication failures|Authentication failed|No authentication methods",
        LoginRefusedError,
        "it does not let {user} in with {key}. Is the public key in ~/.ssh/authorized_keys there? A key with a passphrase needs an "
        "ssh-agent; entangle never asks for passwords",
    ),
    (r"Could not resolve hostname|Name or service not known|getaddrinfo", UnreachableError, "no host has this name{hint}"),
    (r"Connection refused", UnreachableError, "no ssh server answers at this port; does it run, and is the port right? @ssh(port=…)"),
    (
        r"(?i)timed out|No route to host|Network is unreachable|Host is down",
        UnreachableError,
        "the host does not answer; is it up, and is there a way to it?",
    ),
    (
        r"Connection (closed|reset)|kex_exchange_identification|banner exchange|reading SSH protocol banner",
        UnreachableError,
        "the host closed the connection before the login: too many logins at once (MaxStartups of its sshd), or a firewall",
    ),
    (
        r"Bad configuration option|terminating, \d+ bad",
        UnreachableError,
        "ssh cannot read its configuration; correct the line that it names",
    ),
]


def _login_trouble(ssh: SSHOptions, words: str) -> UnreachableError | None:
    for pattern, kind, advice in _TROUBLE:
        if re.search(pattern, words):
            known = ssh.known_hosts if isinstance(ssh.known_hosts, str) and ssh.known_hosts != LEARN else None
            entry, file = _offending(words)
            entry = entry or (f"[{ssh.host}]:{ssh.port}" if ssh.port not in (None, 22) else ssh.host)
            file = file or known
            told = advice.format(
                host=ssh.host,
                entry=shlex.quote(entry),
                login=_login_command(ssh, known),
                port=f"-p {ssh.port} " if ssh.port not in (None, 22) else "",
                user=ssh.user or "this user",
                key=ssh.key_file or "the keys that it was offered",
                file=f"-f {file} " if file else "",
                known_hosts=known or "~/.ssh/known_hosts",
                hint=_port_inside(ssh.host),
            )
            return kind(f"{ssh.place}: {told}\n{_end_of(words)}")
    return None


def _login_command(ssh: SSHOptions, known_hosts: str | None) -> str:
    """A login by hand, with the client and what it needs to find the host and its key."""
    words = client_words()
    if known_hosts is not None:
        words += ["-o", f"UserKnownHostsFile={os.path.abspath(os.path.expanduser(known_hosts))}"]
    if ssh.port is not None:
        words += ["-p", str(ssh.port)]
    return shlex.join([*words, f"{ssh.user}@{ssh.host}" if ssh.user else ssh.host])


def _offending(words: str) -> tuple[str | None, str | None]:
    """The entry of known_hosts that does not match, and its file, where OpenSSH names them: of an
    alias, the entry has the name of the host."""
    entry = re.search(r"Host key for (\S+) has changed", words)
    file = re.search(r"Offending \S+ key in (.+):\d+", words)
    return entry and entry[1], file and shlex.quote(file[1])


def _port_inside(host: str) -> str:
    """How to write a host that has its port, or the brackets of an address, in its name."""
    found = re.fullmatch(r"\[([^]]*)\](?::(\d+))?|([^:]+):(\d+)", host)
    if found is None:
        return ""
    port = found[2] or found[4]
    return f"; write it as @ssh(host={found[1] or found[3]!r}{f', port={port}' if port else ''})"


def no_answer(ssh: SSHOptions, seconds: float, words: str) -> UnreachableError:
    """The error for a login that takes too long."""
    return _login_trouble(ssh, words) or UnreachableError(f"{ssh.place}: no login within {seconds:g} s\n{_end_of(words)}".rstrip())


def was_turned_away(words: str) -> bool:
    """Whether the server hung up before it looked at anything: too many logins are under way."""
    return (
        re.search(
            r"kex_exchange_identification|banner exchange|Connection (closed|reset) by .{0,300} port|reading SSH protocol banner", words
        )
        is not None
    )


def _end_of(words: str) -> str:
    lines = [line.rstrip() for line in words.splitlines() if line.strip() and not set(line.strip()) <= {"@"}]
    return "\n".join(f"  {line}" for line in lines[-6:])
