"""An agent on an instance of EC2, by ssh; and the layer of @ec2."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from entangle._aws import instance_keys
from entangle._aws.account import Account
from entangle._aws.instance_options import InstanceOptions
from entangle._aws.instance_script import ENDING, UNWATCHED, leased, user_data, watched_first
from entangle._aws.instances import LOOK, Instance, Instances
from entangle._aws.layers import InAccount
from entangle._remote.caller.far import Far, FarFunction
from entangle._remote.transport import Transport, did_not_start
from entangle._remote.transport.ssh import SSHTransport
from entangle._remote.wire.byte_stream import ByteStream
from entangle._shared.polling import new_poll
from entangle._tasks.layer import Decorated
from entangle.errors import FarError, HostKeyError, LinkLostError, LoginRefusedError, UnreachableError
from entangle.flow import THREAD

#: Seconds until an instance runs and has printed its host keys; then until it lets us in.
_BOOT, _LOGIN = 420.0, 90.0
#: Seconds until its shell says a word.
_WORD = 30.0
#: Seconds for AWS to say why an instance has ended.
_ASKED = 8.0
#: An agent without a call ends after this time, in a run that goes on (seconds).
_IDLE = 60.0


class _Gone(Exception):
    """The instance ends: another one is needed."""


@dataclass(frozen=True)
class InstanceSSH(SSHTransport):
    """A login at an instance."""

    #: Whether the instance must be watched; the script that begins it, where nobody else has.
    strict: bool = True
    script: str = ""

    def command(self, arguments: Sequence[str]) -> str:
        """The agent, with a lease there."""
        found = leased(self.program(arguments), self.strict)
        return watched_first(found, self.script) if self.script else found


#: The instance of each transport in this process, and how it is logged in at.
_reached: dict[EC2Transport, tuple[Instance, InstanceSSH]] = {}
os.register_at_fork(after_in_child=_reached.clear)


@dataclass(frozen=True)
class EC2Transport(Transport):
    """The options of @ec2, and whose account it is."""

    wanted: InstanceOptions
    python: str = "python3"
    env: str | None = None
    account: Account = field(default_factory=Account)

    name: ClassVar[str] = "ec2"
    ends_with_run: ClassVar[bool] = True
    idle: ClassVar[float | None] = _IDLE

    @property
    def place(self) -> str:
        """What was asked for."""
        return f"ec2 {self.wanted.instance or self.wanted.type}"

    @property
    def ticket(self) -> str:
        """The instance."""
        known = _reached.get(self)
        return known[0].id if known else ""

    @property
    def timeout(self) -> float:
        """A small one is slow; and there may be an environment to make."""
        return 300.0 if self.env else 60.0

    # Opening ----------------------------------------------------------------------------------

    def open(self, arguments: Sequence[str]) -> ByteStream:
        """Log in at an instance, which is launched where there is none, and start the Python."""
        instances = Instances(self.account, self.wanted)
        avoided: set[str] = set()
        while True:
            instance = instances.take(avoided)
            try:
                return self._log_in(instances, instance, arguments)
            except _Gone:
                avoided.add(instance.id)
                if instance.fresh or len(avoided) > 3 or self.wanted.instance:
                    why = instances.last_words(instance.id) or instances.why_ended(instance.id) or "it says so itself"
                    raise UnreachableError(f"{self.place}: {instance.id} has ended before it was used: {why}") from None
            except BaseException:
                if instance.fresh:  # nobody uses it, and nobody knows of it
                    instances.terminate(instance.id)
                raise

    def _log_in(self, instances: Instances, instance: Instance, arguments: Sequence[str]) -> ByteStream:
        self._wait_for(instances, instance)
        script = user_data(self.wanted.idle, False, self.wanted.type) if self.wanted.instance and instance.fresh else ""
        ssh = InstanceSSH(
            instance.address,
            instances.login(instance),
            instances.key(),
            self.python,
            None,
            self.env,
            self._known_hosts(instances, instance),
            strict=bool(script) or not self.wanted.instance,
            script=script,
        )
        until = time.monotonic() + _LOGIN
        while True:
            try:
                stream = ssh.open(arguments)
                break
            except (HostKeyError, LoginRefusedError) as error:
                raise type(error)(f"{self.place}: {instance.id}: {error}") from None
            except UnreachableError as error:
                if instances.why_ended(instance.id):
                    raise _Gone from None
                if time.monotonic() > until:
                    raise UnreachableError(
                        f"{self.place}: {instance.id} does not let us in by ssh: {instances.who_is_let_in(instance)}\n{error}"
                    ) from None
                time.sleep(LOOK)
        _reached[self] = instance, ssh
        try:
            self._hear(stream)
        except BaseException:
            stream.close()
            raise
        return stream

    def _wait_for(self, instances: Instances, instance: Instance) -> None:
        """Until it runs and has an address."""
        until = time.monotonic() + _BOOT
        while instance.state != "running" or not instance.address:
            if instance.state not in ("pending", "running"):
                raise _Gone
            if time.monotonic() > until:
                raise UnreachableError(
                    f"{self.place}: {instance.id} does not start: it is {instance.state} after {_BOOT:g} s. Look at it in the EC2 "
                    "console, or name another type="
                )
            time.sleep(LOOK / 4)
            seen = instances.look(instance.id)
            if seen is not None:  # AWS tells of a new one a moment late
                seen.fresh, state = instance.fresh, seen.state
                if not (self.wanted.instance and instance.fresh and state == "stopped"):
                    vars(instance).update(vars(seen))

    def _known_hosts(self, instances: Instances, instance: Instance) -> str | None:
        """The file with its host keys, as it has printed them on its console; None where one of the
        user's has printed none, and what the user knows of it counts."""
        path = instance_keys.known_hosts(instance.id)
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # it is in use
            return path
        until = time.monotonic() + _BOOT
        while not (keys := instances.host_keys(instance.id)):
            if self.wanted.instance and not instance.fresh:
                return None
            if instances.why_ended(instance.id):
                raise _Gone
            if time.monotonic() > until:
                raise HostKeyError(
                    f"{self.place}: {instance.id} has not printed its host keys on its console within {_BOOT:g} s, so it cannot be told "
                    "from another machine. Is cloud-init in its image? (aws ec2 get-console-output --latest --instance-id …)"
                )
            time.sleep(LOOK)
        instance_keys.trust(instance.id, instance.address, keys)
        return path

    def _hear(self, stream: ByteStream) -> None:
        """Wait for the empty line of a shell that has a lease. Raises _Gone, or why not."""
        poll = new_poll()
        poll.register(stream.reads, select.POLLIN)
        if any(event & select.POLLIN for _, event in poll.poll(1000 * _WORD)):
            return
        until = time.monotonic() + 2.0
        while (status := stream.status()) is None and time.monotonic() < until:
            time.sleep(0.01)
        if status == ENDING:
            raise _Gone
        said = b""
        if stream.errors >= 0:
            os.set_blocking(stream.errors, False)
            try:
                said = os.read(stream.errors, 4096)
            except BlockingIOError:
                pass
        raise self.diagnose(status, said.decode(errors="replace"))

    # Errors -----------------------------------------------------------------------------------

    def diagnose(self, status: int | None, words: str) -> FarError:
        """The error for a shell there that started no Python."""
        known = _reached.get(self)
        if known is None:
            return did_not_start(self.place, status, words)
        if status == UNWATCHED:
            why = (
                "sudo without a password is needed there, to stop it again; or start it yourself"
                if self.wanted.instance
                else "its image has not run our script, which ends it when it is idle: cloud-init must be in it"
            )
            return UnreachableError(f"{self.place}: nobody watches over {known[0].id}: {why}\n  {words.strip()[-600:]}".rstrip())
        return known[1].diagnose(status, words)

    def ended(self, status: int | None, words: str) -> FarError | None:
        """The error for an agent that has ended, where the instance or AWS says why."""
        known = _reached.get(self)
        if known is None:
            return None
        instance = known[0]
        if "entangle: AWS takes this spot instance back" in words:
            why = "AWS has taken the spot instance back"
        else:
            why = self._asked_why(instance)
            if not why:
                return None
            why = f"AWS has taken the spot instance back ({why})" if "pot" in why and instance.spot else f"the instance has ended ({why})"
        return LinkLostError(f"{self.place}: {why} during the call ({instance.id}); retry=1 in a layer below sends it to another one")

    def _asked_why(self, instance: Instance) -> str:
        """Why AWS says that it has ended; "" where it has not, or AWS is not reached soon: whoever
        asks may be the thread that reads all streams."""
        said: list[str] = []
        asking = threading.Thread(
            target=lambda: said.append(Instances(self.account, self.wanted).why_ended(instance.id)), name="entangle-ec2", daemon=True
        )
        with contextlib.suppress(RuntimeError):
            asking.start()
            asking.join(_ASKED)
        return said[0] if said else ""


class EC2(InAccount, Far):
    """The layer of @ec2; its account is said by @aws, above or below it."""

    door = "ec2"
    transport: EC2Transport
    #: An instance takes minutes to start, and the calling thread must look after the run meanwhile.
    carrier = THREAD

    def __init__(self, transport: EC2Transport, account: Account | None = None) -> None:
        self.account = account
        Far.__init__(self, replace(transport, account=account or Account()))

    def of(self, account: Account) -> EC2:
        """The same in that account."""
        return EC2(self.transport, account)

    def ship(self, rest: Decorated) -> FarFunction:
        """What runs here."""
        shipped = super().ship(rest)
        if self.transport.env is not None:
            from entangle._remote.caller.requirements import furnished

            shipped.furnishing = furnished(rest.function)
        return shipped
