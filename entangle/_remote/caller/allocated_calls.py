"""Allocations of Slurm as the place of calls that are away.

Each call needs a CPU of an allocation. While calls wait for one, a thread of their run asks for one
CPU after the other, and opens the agent there; so there are as many threads as places, and none
while no call waits.
"""

from __future__ import annotations

import contextlib
import functools
import threading

from entangle._remote.caller.allocations import Allocations, HeldCpu, allocations
from entangle._remote.caller.channel import Channel
from entangle._remote.caller.far_place import FarLine, FarPlace
from entangle._remote.caller.open_channels import channel_to
from entangle._remote.caller.stream_watcher import leave, watch
from entangle._remote.transport.slurm import SlurmTransport
from entangle._tasks.layer import Decorated
from entangle._worker.away import AwayCall
from entangle._worker.away_worker import AwayWorker
from entangle.flow import Body


class AllocatedPlace(FarPlace):
    """The allocations that were asked for with the same options, for the calls of one task."""

    transport: SlurmTransport

    def __init__(self, transport: SlurmTransport, rest: Decorated, again: Body | None, needed: float | None) -> None:
        super().__init__(transport, rest, again, None)
        #: Seconds that a call may take; None where it has no deadline.
        self.needed = needed

    def line_of(self, worker: AwayWorker) -> FarLine:
        """The calls of a run there."""
        return _AllocatedLine(self, worker, allocations(self.transport), self.needed)


class _Step:
    """A channel that has calls of a run. They are as many as there are CPUs, so none waits for
    room."""

    def wants_room(self) -> bool:
        """Never."""
        return False

    def ask(self) -> None:
        """Nothing to submit."""


class _AllocatedLine(FarLine):
    """The calls of one task and run that go to allocations."""

    def __init__(self, place: AllocatedPlace, worker: AwayWorker, held: Allocations, needed: float | None) -> None:
        super().__init__(place, worker)
        self._held, self._needed, self._name = held, needed, place.rest.__name__
        #: Set at the end of the run.
        self.stopped = threading.Event()
        self._guard = threading.Lock()
        #: CPUs that are to be sought, and whether a thread does so.
        self._wanted, self._seeking = 0, False
        #: CPUs that were found and are not taken yet.
        self._found: list[HeldCpu] = []
        self._cpus: dict[AwayCall, HeldCpu] = {}
        self._steps: dict[Channel, _Step] = {}

    def behind(self) -> int:
        """How many calls wait behind the one for which a CPU is sought. Says of them where and why,
        for those who look on."""
        ticket, why = self._held.waits_for()
        with contextlib.suppress(RuntimeError):  # one was taken meanwhile: the next look comes soon
            for call in self.waiting:
                call.ticket, call.waits = ticket, why
        return max(0, self._wanted - 1)

    # In the thread of the away worker -----------------------------------------------------------

    def submit(self) -> None:
        """Have a CPU sought for each call that waits."""
        with self._guard:
            self._wanted = max(0, len(self.waiting) - len(self._found))
            if not self._wanted or self._seeking:
                return
            self._seeking = True
        try:
            threading.Thread(target=self._seek, name="entangle-slurm", daemon=True).start()
        except RuntimeError as error:
            self._seeking = False
            self.fail_waiting(error)

    def cancel(self, call: AwayCall) -> bool:
        """Nobody wants this call any more."""
        stopped = super().cancel(call)
        with self._guard:
            self._wanted = min(self._wanted, len(self.waiting))
        return stopped

    def release(self, call: AwayCall) -> None:
        """Give back its CPU."""
        cpu = self._cpus.pop(call, None)
        if cpu is not None:
            self._held.give_back(cpu)

    def end(self) -> None:
        """The run is over."""
        with self._guard:
            self.stopped.set()
            found, self._found = self._found, []
        for cpu in found:
            self._held.give_back(cpu)
        self._held.look_again()
        for step in self._steps.values():
            leave(step)
        for call in list(self._cpus):
            self.release(call)
        super().end()

    def _take(self, cpu: HeldCpu, channel: Channel) -> None:
        """A CPU is there, with an agent on its node."""
        with self._guard:
            self._found.remove(cpu)
        if not self.waiting:
            self._held.give_back(cpu)
            return
        if channel not in self._steps:
            self._steps = {known: step for known, step in self._steps.items() if self._is_used(known, step)}
            watch(self._steps.setdefault(channel, _Step()), channel)
        call = self.waiting.popleft()
        self._cpus[call] = cpu
        call.runs()
        self.send(channel, call)

    @staticmethod
    def _is_used(channel: Channel, step: _Step) -> bool:
        if channel.lost is not None:
            leave(step)
        return channel.lost is None

    def _fail_one(self, error: BaseException) -> None:
        if self.waiting:
            self._lost(self.waiting.popleft(), error)

    # In the thread that asks for CPUs -----------------------------------------------------------

    def _seek(self) -> None:
        """Ask for CPUs until no call waits for one."""
        while True:
            with self._guard:
                if not self._wanted or self.stopped.is_set():
                    self._seeking = False
                    return
            try:
                cpu = self._held.take(self._needed, self._name, self)
            except BaseException as error:
                with self._guard:
                    self._seeking, self._wanted = False, 0
                self.worker.outcomes.put(functools.partial(self.fail_waiting, error))
                return
            with self._guard:
                self._wanted = max(0, self._wanted - 1)
            try:
                channel = channel_to(cpu.transport)
            except BaseException as error:
                self._held.give_back(cpu)
                self.worker.outcomes.put(functools.partial(self._fail_one, error))
                continue
            with self._guard:
                over = self.stopped.is_set()
                if not over:
                    self._found.append(cpu)
            if over:
                self._held.give_back(cpu)
            else:
                self.worker.outcomes.put(functools.partial(self._take, cpu, channel))
