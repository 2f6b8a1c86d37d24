"""What one agent asks for: modules, as many as a program may need and no more."""

from __future__ import annotations

import time
from collections import Counter

from entangle._remote.agent.imports import MODULES_ALONE
from entangle._remote.caller import modules
from entangle.errors import ProtocolError

#: Questions for modules: so many in a row, so many more each second, and so many of the same.
QUESTIONS, QUESTIONS_A_SECOND, SAME_QUESTIONS = 4_000, 100, 100


class Questions:
    """The questions of one agent. `sent` notes which modules of the project it has been sent."""

    def __init__(self, sent: modules.Sent) -> None:
        self._sent = sent
        self._allowance = _Allowance()

    def answer(self, said: bytes, magic: str) -> bytes:
        """The body of the MODULE message that answers a question. Raises ProtocolError for one that no program asks."""
        if len(said) > modules.LONGEST:
            raise ProtocolError(f"a question of {len(said):,} bytes; the most is {modules.LONGEST:,}")
        name = said.decode("utf-8", "replace")
        self._allowance.take(name)
        body = modules.answer(name, magic)
        self._sent.note(name)
        return body


class _Allowance:
    """How many questions an agent may ask: many at once, as a program does that begins, and some a second. It keeps what it was told."""

    def __init__(self) -> None:
        self._left = float(QUESTIONS)
        self._at = time.monotonic()
        self._asked: Counter[str] = Counter()

    def take(self, name: str) -> None:
        """One more. Raises ProtocolError where there were too many."""
        now = time.monotonic()
        self._left = min(QUESTIONS, self._left + (now - self._at) * QUESTIONS_A_SECOND) - 1
        self._at = now
        if not name.startswith(MODULES_ALONE):  # which is asked whenever a body looks for files
            self._asked[name] += 1
        if self._left < 0 or self._asked[name] > SAME_QUESTIONS:
            raise ProtocolError("it asks for more modules than any program has")
        if len(self._asked) > 10 * QUESTIONS:
            self._asked.clear()
