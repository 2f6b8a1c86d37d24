"""How a far Python becomes an agent: what it gets on its command line, and then on its stdin.

The command line has code that any Python from 2.7 on can read. It prints its version, so that a
Python that is too old is told from one that is missing. Then it runs what comes on stdin: the
import hook, the sources of the agent, and the caller's settings. The code has no single quote, so
that it passes through any shell.
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

#: The line that it prints: versions of this exchange and of Python. Anything may precede it.
GREETING = re.compile(rb"\nentangle-agent (\d{1,9}) (\d{1,9})\.(\d{1,9})\.(\d{1,9})\n")
#: Its length at most (bytes).
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
