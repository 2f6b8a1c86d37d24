"""A call under way at a service."""

from __future__ import annotations

from dataclasses import replace

from entangle._remote.wire.parts import Given
from entangle._services import PENDING, RUNNING, State, Submission
from entangle._worker.away import AwayCall
from entangle.errors import EntangleError


class Ticket:
    """A call under way, as the watcher sees it."""

    def __init__(self, call: AwayCall, number: int) -> None:
        self.call, self.number = call, number
        #: The attempts of the engine, and those of ours after jobs that have died.
        self.attempt = call.attempt
        self.name = f"{number}-{self.attempt}"
        self.errors: list[EntangleError] = []
        #: Its message is not submitted before this time (of the monotonic clock).
        self.rests = 0.0
        self.message: Submission | None = None
        self.given: Given = None
        #: The names of the code that it needs there.
        self.codes: tuple[str, ...] = ()
        #: Where the records of what ran there go; "" if there are to be none.
        self.records = ""
        #: What the service calls it; "" until it has taken it.
        self.ticket = ""
        self.state = State(PENDING)
        self.begun = False
        self.cancelled = False
        self.submitted = 0.0
        #: When its ticket was over and it had no outcome (of the monotonic clock), and its sign of
        #: life then.
        self.over: float | None = None
        self.sign: object = None

    def path(self) -> str:
        """The call path, for what it prints."""
        return self.call.path()

    def see(self, state: State) -> None:
        """The platform says this of it. Why it waits is shown as a phrase: "pending because …"."""
        if state.state == PENDING and state.reason and not state.reason.startswith(PENDING):
            state = replace(state, reason=f"{PENDING} because {state.reason}")
        self.state = state
        if state.state == RUNNING:
            self.begin()
        elif state.state == PENDING and not self.begun:
            self.call.waits = state.reason or PENDING

    def begin(self) -> None:
        """The platform runs it, or its program has said something."""
        self.begun = True
        self.call.runs()

    def at(self, place: str) -> None:
        """Say where it is: at this place, under its ticket there."""
        self.call.where, self.call.ticket = place, self.ticket

    def next_attempt(self, rests: float) -> str:
        """Make it another attempt, which has no ticket yet and rests until then; gives the name
        that it had."""
        before = self.name
        self.attempt += 1
        self.name = f"{self.number}-{self.attempt}"
        self.begun, self.over, self.ticket, self.rests = False, None, "", rests
        self.see(State(PENDING))
        self.at(self.call.where)
        return before

    def say(self, command: tuple[str, ...]) -> None:
        """Have its message be this command, as this attempt."""
        assert self.message is not None
        self.message = replace(self.message, id=self.name, command=command, attempt=self.attempt)
