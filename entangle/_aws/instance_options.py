"""The options of @ec2, and whether they can be meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from entangle._remote.transport.ssh_options import check_word
from entangle._shared.summaries import value_in_short
from entangle._tasks.option_values import check_whether, is_number
from entangle.errors import OptionError

#: The type where none is said.
TYPE = "t3.micro"


@dataclass(frozen=True)
class InstanceOptions:
    """What instance is wanted, and who logs in there."""

    type: str = TYPE
    ami: str | None = None
    key: str | None = None
    user: str | None = None
    subnet: str | None = None
    security_groups: Sequence[str] = ()
    spot: bool = False
    #: Seconds.
    idle: float = 300.0
    #: An instance of the user's, in place of all above but `key`, `user` and `idle`.
    instance: str | None = None

    def checked(self) -> InstanceOptions:
        """The same, if they are what they must be. Raises OptionError."""
        stated = {"ami": self.ami, "type": self.type, "key": self.key, "user": self.user, "subnet": self.subnet, "instance": self.instance}
        for name, value in stated.items():
            if value is not None:
                check_word(name, value, "ec2")
        for name, begins in (("ami", "ami-"), ("subnet", "subnet-"), ("instance", "i-")):
            if (value := stated[name]) is not None and not value.startswith(begins):
                raise OptionError(f"@ec2: {name}={value!r}; it must be an id, {begins}…")
        groups = self.security_groups
        if (
            isinstance(groups, str)
            or not isinstance(groups, Sequence)
            or not all(isinstance(group, str) and group.startswith("sg-") for group in groups)
        ):
            raise OptionError(f"@ec2: security_groups={value_in_short(groups)}; it must be a list of ids, ['sg-…']")
        if not is_number(self.idle) or self.idle <= 0:
            raise OptionError(f"@ec2: idle={value_in_short(self.idle)}; it must be a number of seconds above 0")
        check_whether("@ec2", spot=self.spot)
        if self.instance is not None and (self.ami or self.subnet or groups or self.spot or self.type != TYPE):
            raise OptionError("@ec2: instance= is there already; ami, type, subnet, security_groups and spot are for one that is launched")
        return InstanceOptions(
            *(self.type, self.ami, self.key, self.user, self.subnet, tuple(groups)), bool(self.spot), float(self.idle), self.instance
        )
