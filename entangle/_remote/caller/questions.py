"""What one agent asks for: modules, within limits."""

from __future__ import annotations

import time
from collections import Counter

from entangle._remote.agent.imports import MODULES_ALONE
from entangle._remote.caller import modules
from entangle.errors import ProtocolError

#: Questions at once, questions a second after that, and questions for the same module.
QUESTIONS, QUESTIONS_A_SECOND, SAME_QUESTIONS = 4_000, 100, 100


class Questions:
    """The questions of one agent. `sent` notes which modules of the project it has."""

    def __init__(self, sent: modules.Sent) -> None:
        self._sent = sent
        self._allowance = _Allowance()

    def answer(self, said: bytes, magic: str) -> bytes:
        """The body of the MODULE message that answers. ProtocolError for what no program asks."""
        if len(said) > modules.LONGEST:
            raise ProtocolError(f"the agent asks a question of {len(said):,} bytes; the most is {modules.LONGEST:,}")
        name = said.decode("utf-8", "replace")
        self._allowance.take(name)
        body = modules.answer(name, magic)
        self._sent.note(name)
        return body


class _Allowance:
    """How many questions an agent may ask: many at once, as a starting program does, then fewer."""

    def __init__(self) -> None:
        self._left = float(QUESTIONS)
        self._at = time.monotonic()
        self._asked: Counter[str] = Counter()

    def take(self, name: str) -> None:
        """One more. Raises ProtocolError if there were too many."""
        now = time.monotonic()
        self._left = min(QUESTIONS, self._left + (now - self._at) * QUESTIONS_A_SECOND) - 1
        self._at = now
        if not name.startswith(MODULES_ALONE):  # asked whenever a body looks for files
            self._asked[name] += 1
        if self._left < 0 or self._asked[name] > SAME_QUESTIONS:
            raise ProtocolError("the agent asks for more modules than any program has")
        if len(self._asked) > 10 * QUESTIONS:
            self._asked.clear()
