"""Serves modules to the workers of an agent, which have no stream to the caller."""

from __future__ import annotations

import marshal
import os
import socket
import struct
import sys
import threading
from typing import Any

from entangle._remote.agent import imports


class ModuleServer:
    """Answers on a socket that only processes of this user may use."""

    def __init__(self, ask: imports.Ask) -> None:
        self._ask = ask
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name = f"entangle-modules-{os.getpid()}-{os.urandom(8).hex()}"
        if sys.platform == "linux":
            self._socket.bind("\0" + name)  # no file: the kernel forgets the name with the socket
            self.address = "@" + name
        else:
            import tempfile

            self.address = os.path.join(tempfile.mkdtemp(prefix="entangle-"), "modules")
            self._socket.bind(self.address)
        self._socket.listen(64)
        threading.Thread(target=self._serve, name="entangle-modules", daemon=True).start()

    def _serve(self) -> None:
        while True:
            asker, _ = self._socket.accept()
            threading.Thread(target=self._answer, args=(asker,), name="entangle-modules", daemon=True).start()

    def _answer(self, asker: Any) -> None:
        with asker:
            try:
                if hasattr(socket, "SO_PEERCRED"):
                    _, user, _ = struct.unpack("3i", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                    if user != os.getuid():
                        return
                with asker.makefile("rb") as lines:
                    name = lines.readline(1024).decode().strip()
                asker.sendall(marshal.dumps(self.lookup(name), 2))
            except (OSError, ValueError):
                return  # the asker has gone

    def lookup(self, name: str) -> Any:
        """What is known here, else what the caller knows."""
        if name == imports.ALL:
            return dict(imports.finders[0].known)
        if name == imports.SOURCES or name.startswith((imports.SOURCE_OF, imports.MODULES_ALONE)):
            return self._ask(name)
        for finder in imports.finders:
            if name in finder.known:
                return {name: finder.known[name]}
            if name in finder.refused:
                return finder.refused[name]
        answer = self._ask(name)
        for finder in imports.finders:
            if finder.ours == (name.partition(".")[0] in imports.OURS):
                if isinstance(answer, dict):
                    finder.known.update(answer)
                else:
                    finder.refused[name] = answer or ""
        return answer

    def prelude(self) -> str:
        """Code that a worker runs first: it gets the agent's modules, and asks here for others."""
        where = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        return (
            f"import socket,marshal,sys,types;s=socket.socket(socket.AF_UNIX);s.connect({where!r});s.sendall(b'*\\n');"
            "k=marshal.loads(s.makefile('rb').read());s.close();m=types.ModuleType('entangle._remote.agent.imports');sys.modules[m.__name__]=m;"
            "_,m.__file__,t=k[m.__name__];exec(compile(t,m.__file__,'exec') if isinstance(t,str) else marshal.loads(t),m.__dict__);"
            f"m.join({self.address!r},k);del s,k,m,t,_;"
        )
