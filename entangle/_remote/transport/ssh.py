"""A host by ssh: which client carries the bytes.

`openssh.py` uses the OpenSSH client, so that everything in `~/.ssh/config` works. `paramiko.py` is
for machines without that program, or on request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from entangle._remote.transport import Transport, ssh_diagnosis
from entangle._remote.transport.ssh_options import SSHOptions
from entangle._remote.wire.byte_stream import ByteStream
from entangle.errors import FarError, UnreachableError


@dataclass(frozen=True)
class SSHTransport(SSHOptions, Transport):
    """A host by ssh, with the options of @ssh."""

    name: ClassVar[str] = "ssh"

    def open(self, arguments: Sequence[str]) -> ByteStream:
        """Log in and start the Python.

        Raises UnreachableError, HostKeyError, LoginRefusedError, OptionError.
        """
        if self._by_paramiko():
            from entangle._remote.transport import paramiko

            return paramiko.open_stream(self, self.command(arguments))
        from entangle._remote.transport import openssh

        return openssh.open_stream(self, self.command(arguments))

    def _by_paramiko(self) -> bool:
        import importlib.util

        from entangle._remote.transport import openssh

        client = openssh.client()
        if self.transport == "openssh" or (self.transport is None and client is not None):
            if client is None:
                raise UnreachableError("@ssh(transport='openssh'): there is no ssh program here; install an OpenSSH client")
            return False
        if importlib.util.find_spec("paramiko") is None:
            why = "is not installed" if self.transport else "is not installed, and there is no ssh program here either"
            raise UnreachableError(f"{self.place}: paramiko {why}: pip install 'py-entangle[ssh]'")
        return True

    def diagnose(self, status: int | None, words: str) -> FarError:
        """The error for what the ssh client, or the shell over there, has said."""
        return ssh_diagnosis.diagnose(self, status, words)
