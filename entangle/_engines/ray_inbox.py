"""An actor of Ray in which workers lay what they tell a caller, until that takes it.

A second value of each task, which the caller would wait for, costs it more than Ray itself does.
And it comes when the task has ended, which is late for what a body prints.

All that travels from here travels by value, since it is defined in a function: a worker may have
another version of entangle, or none.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotYet
from typing import Any

#: The namespace of Ray in which inboxes have their names.
NAMESPACE = "entangle"
#: Seconds for which the inbox lets its caller wait before it answers that there is nothing.
_WAITED = 20.0
#: Seconds between two looks of the listener at whether it is wanted.
_LISTENS = 1.0
#: What a letter holds: the run, the worker, items.
Letter = tuple[str, str, list[tuple[Any, ...]]]


def _inbox_class() -> type:
    class Inbox:
        def __init__(self) -> None:
            import asyncio

            self.letters: list[Any] = []
            self.some = asyncio.Event()

        async def put(self, letter: Any) -> None:
            self.letters.append(letter)
            self.some.set()

        async def take(self, seconds: float) -> list[Any]:
            import asyncio

            if not self.letters:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.some.wait(), seconds)
            taken, self.letters = self.letters, []
            self.some.clear()
            return taken

    return Inbox


class RayInbox:
    """The inbox of a caller, and the thread that empties it.

    `hear` is called with each letter, `lost` with what keeps the thread from hearing more.
    """

    def __init__(self, ray: Any, hear: Callable[[Letter], None], lost: Callable[[BaseException], None]) -> None:
        self._ray, self._hear, self._lost = ray, hear, lost
        self.name = f"inbox-{os.urandom(8).hex()}"
        made = ray.remote(_inbox_class())
        self._actor = made.options(name=self.name, namespace=NAMESPACE, num_cpus=0, max_concurrency=1000).remote()
        self._over = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="entangle-ray-inbox", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        try:
            while not self._over.is_set():
                letters = self._actor.take.remote(_WAITED).future()
                while not self._over.is_set():
                    with contextlib.suppress(NotYet):
                        for letter in letters.result(_LISTENS):
                            self._hear(letter)
                        break
        except BaseException as error:
            if not self._over.is_set():
                self._lost(error)

    def close(self, patience: float) -> None:
        """End it. Waits so many seconds for the thread."""
        self._over.set()
        if self._ray.is_initialized():  # else Ray would start a cluster of its own
            with contextlib.suppress(Exception):
                self._ray.kill(self._actor)
        self._listener.join(patience)
