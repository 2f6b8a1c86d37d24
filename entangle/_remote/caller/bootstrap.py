"""The first line of an agent's life: what the far Python is given on its command line and then on its stdin.

On the command line stands a line that any Python, even 2.7, can read. It says which version it is, so that one that is too old
is told from one that is absent, and then runs what it reads from stdin: the import hook, the sources of the agent, and what the caller
has to say of himself. The line has no single quote in it, so that it passes through any shell.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

from entangle._remote.caller import modules

#: The exit status of a Python that is too old.
TOO_OLD = 86
OLDEST = (3, 10)

COMMAND = (
    "import sys,os,zlib;"
    'os.write(1,("\\nentangle-agent 1 %d.%d.%d\\n"%sys.version_info[:3]).encode());'
    f"sys.version_info<{OLDEST} and os._exit({TOO_OLD});"
    "r=sys.stdin.buffer.read;exec(zlib.decompress(r(int(r(8)))))"
)
ARGUMENTS = ("-c", COMMAND)

#: What the line says: the version of the protocol of the bootstrap, and of Python. Anything may come before it.
GREETING = re.compile(rb"\nentangle-agent (\d{1,9}) (\d{1,9})\.(\d{1,9})\.(\d{1,9})\n")
#: It is not longer.
LONGEST_GREETING = 64

_STAGE = """\
import sys, types
known, config = {known!r}, {config!r}
m = sys.modules["entangle._remote.agent.imports"] = types.ModuleType("entangle._remote.agent.imports")
m.__file__ = known[m.__name__][1]
exec(compile(known[m.__name__][2], m.__file__, "exec"), m.__dict__)
m.begin(known)
m.importlib.import_module("entangle._remote.agent.agent").serve(config)
"""


def first_words(config: dict[str, Any]) -> bytes:
    """What is written to the far Python's stdin before any frame."""
    stage = zlib.compress(_STAGE.format(known=modules.first(), config=config).encode(), 6)
    return b"%8d" % len(stage) + stage
