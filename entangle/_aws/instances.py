"""Instances of EC2: found by their tags, launched, and what is known of each."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import re
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from entangle._aws import instance_keys
from entangle._aws.account import Account, asking, told
from entangle._aws.instance_options import InstanceOptions
from entangle._aws.instance_script import user_data
from entangle.errors import EntangleError, ImageError, OptionError, UnreachableError

#: Tags of our instances: what their options are, whose they are, for which program.
OPTIONS, OWNER, PROGRAM = "entangle", "entangle-owner", "entangle-for"
#: Seconds between two looks at an instance that starts.
LOOK = 2.0
#: Debian's parameters of the newest image of a release. Debian 12 has Python 3.11, 13 has 3.13.
_DEBIAN = "/aws/service/debian/release/{release}/latest/{architecture}"
#: Who logs in at images whose names begin so.
_USERS = (("debian", "admin"), ("ubuntu", "ubuntu"), ("amzn", "ec2-user"), ("al20", "ec2-user"), ("rhel", "ec2-user"), ("fedora", "fedora"))
_CAPACITY = frozenset(("InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity", "SpotMaxPriceTooLow"))
_QUOTA = frozenset(("VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded"))
#: What types of before Nitro say when they are asked for the latest of their console.
_OLD_TYPE = frozenset(("UnsupportedOperation", "InvalidParameterCombination"))
_NO_NETWORK = frozenset(("VPCIdNotSpecified", "MissingInput", "DefaultVpcDoesNotExist", "NoDefaultVpc"))


@dataclass
class Instance:
    """An instance as it was last seen."""

    id: str
    state: str
    address: str
    image: str
    groups: tuple[str, ...]
    reason: str
    spot: bool
    type: str
    tags: dict[str, str]
    #: When it was started last (seconds since 1970).
    since: float
    #: Whether this process has launched it, or started it again, just now.
    fresh: bool = False


def owner() -> str:
    """Whose instances are used again: this user's, of this machine, which has the key."""
    return f"{getpass.getuser()}@{os.uname().nodename}"


class Instances:
    """The instances of an account."""

    def __init__(self, account: Account, wanted: InstanceOptions) -> None:
        self.account, self.wanted = account, wanted
        self.place = f"ec2 {wanted.instance or wanted.type}"

    @property
    def _ec2(self) -> Any:
        return self.account.client("ec2")

    def key(self) -> str:
        """The private key."""
        return self.wanted.key or instance_keys.own_key()

    # Which one --------------------------------------------------------------------------------

    def take(self, avoided: Collection[str]) -> Instance:
        """One to use: it runs, or is about to. Raises what AWS refuses, as an error of ours."""
        if self.wanted.instance is not None:
            return self._of_the_user(self.wanted.instance)
        public = instance_keys.public_key(self.key())
        name = self._name(public)
        with instance_keys.one_at_a_time(f"launch-{os.uname().nodename}"):
            for found in self._ours(name):
                if found.id not in avoided:
                    return found
            # AWS finds a new one by its tags a while later than by its id.
            last = instance_keys.recall(name)
            seen = self.look(last) if last and last not in avoided else None
            if seen is not None and seen.state in ("pending", "running"):
                return seen
            launched = self._launch(name, public)
            instance_keys.remember(name, launched.id)
            return launched

    def _name(self, public: str) -> str:
        said = repr((self.wanted, public, user_data(self.wanted.idle, self.wanted.spot, self.wanted.type)))
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def _ours(self, name: str) -> list[Instance]:
        filters = {f"tag:{OPTIONS}": [name], f"tag:{OWNER}": [owner()], "instance-state-name": ["pending", "running"]}
        return described(self.account, Filters=[{"Name": key, "Values": values} for key, values in filters.items()])

    def look(self, instance: str) -> Instance | None:
        """How an instance is; None where AWS does not know it, or not yet."""
        from botocore.exceptions import ClientError

        try:
            found = described(self.account, InstanceIds=[instance], plain=True)
        except ClientError as error:
            if "InvalidInstanceID" in error.response.get("Error", {}).get("Code", ""):
                return None
            raise told(error, self.account, "ec2") from None
        return found[0] if found else None

    def _of_the_user(self, instance: str) -> Instance:
        """An instance that is named, started if it is stopped."""
        found = self.look(instance)
        while found is not None and found.state == "stopping":
            time.sleep(LOOK)
            found = self.look(instance)
        if found is None or found.state in ("shutting-down", "terminated"):
            state = f"it is {found.state}" if found else "there is none"
            raise OptionError(f"@ec2: instance={instance!r}: {state} in {self.account.place}; name one that runs or is stopped")
        if found.state == "stopped":
            with asking(self.account, "ec2"):
                behaviour = self._ec2.describe_instance_attribute(InstanceId=instance, Attribute="instanceInitiatedShutdownBehavior")
                if behaviour["InstanceInitiatedShutdownBehavior"]["Value"] != "stop":
                    raise OptionError(
                        f"@ec2: instance={instance!r} is stopped, and would be terminated when it shuts down after {self.wanted.idle:g} s "
                        "without a call: its shutdown behavior must be 'stop'. Or start it yourself"
                    )
                self._ec2.start_instances(InstanceIds=[instance])
            found.fresh, found.state = True, "pending"
        return found

    # Launching --------------------------------------------------------------------------------

    def _launch(self, name: str, public: str) -> Instance:
        from botocore.exceptions import BotoCoreError, ClientError

        wanted = self.wanted
        image = wanted.ami or self._newest_image()
        tags = {OPTIONS: name, OWNER: owner(), PROGRAM: os.path.basename(sys.argv[0])[:200] or "python", "Name": "entangle"}
        words = [{"Key": key, "Value": value} for key, value in tags.items()]
        asked: dict[str, Any] = {
            "ImageId": image,
            "InstanceType": wanted.type,
            "MinCount": 1,
            "MaxCount": 1,
            "UserData": user_data(wanted.idle, wanted.spot, wanted.type),
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required"},
            "TagSpecifications": [{"ResourceType": kind, "Tags": words} for kind in ("instance", "volume")],
        }
        if wanted.subnet:
            asked["SubnetId"] = wanted.subnet
        if wanted.security_groups:
            asked["SecurityGroupIds"] = list(wanted.security_groups)
        if wanted.spot:
            asked["InstanceMarketOptions"] = {"MarketType": "spot"}
        try:
            asked["KeyName"] = self._key_pair(public)
            made = self._ec2.run_instances(**asked)["Instances"][0]
        except (ClientError, BotoCoreError) as error:
            raise self._refused(error, image) from None
        launched = _instance(made)
        launched.fresh = True
        return launched

    def _key_pair(self, public: str) -> str:
        from botocore.exceptions import ClientError

        name = f"entangle-{instance_keys.fingerprint(public)}"
        try:
            self._ec2.import_key_pair(KeyName=name, PublicKeyMaterial=public.encode())
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "InvalidKeyPair.Duplicate":
                raise
        return name

    def _newest_image(self) -> str:
        from botocore.exceptions import BotoCoreError, ClientError

        family = re.match(r"[a-z]+\d+([a-z]*)", self.wanted.type)
        arm = self.wanted.type.startswith("a1.") or (family is not None and "g" in family[1])
        architecture = "arm64" if arm else "amd64"
        releases = ("12", "13") if sys.version_info[:2] <= (3, 11) else ("13", "12")
        name = _DEBIAN.format(release=releases[0], architecture=architecture)
        other = _DEBIAN.format(release=releases[1], architecture=architecture)
        ssm = self.account.client("ssm")
        try:
            try:
                return str(ssm.get_parameter(Name=name)["Parameter"]["Value"])
            except ssm.exceptions.ParameterNotFound:
                return str(ssm.get_parameter(Name=other)["Parameter"]["Value"])
        except (ClientError, BotoCoreError) as error:
            raise type(said := told(error, self.account, "ssm"))(
                f"{self.place}: the newest image of Debian is not known (parameter {name}); name one: @ec2(ami='ami-…', user='…'). {said}"
            ) from None

    def _refused(self, error: Exception, image: str) -> EntangleError:
        """The error for what AWS says of a launch."""
        answer = getattr(error, "response", {}).get("Error", {})
        code, said = answer.get("Code", ""), answer.get("Message", "")
        if code.startswith("InvalidAMIID"):
            return ImageError(f"{self.place}: there is no image {image!r} in this region: {said}; each region has images of its own")
        if code in _CAPACITY:
            other = "another type= or subnet= (a subnet is in one zone)" + (", or spot=False" if self.wanted.spot else "")
            return UnreachableError(f"{self.place}: AWS has no such machine free now ({code}: {said}); try later, {other}")
        if code in _QUOTA:
            return UnreachableError(
                f"{self.place}: the account may have no more of these at once ({code}: {said}); end others (entangle aws ls), "
                "or ask for more: Service Quotas, Amazon EC2"
            )
        if code in _NO_NETWORK:
            return UnreachableError(
                f"{self.place}: the account has no default network here ({code}: {said}); name a subnet: @ec2(subnet='subnet-…', "
                "security_groups=['sg-…']), or make one: aws ec2 create-default-vpc"
            )
        return told(error, self.account, "ec2")

    # What is known of one ---------------------------------------------------------------------

    def login(self, instance: Instance) -> str:
        """Who logs in: what was said, else by the image's name. Raises OptionError."""
        if self.wanted.user:
            return self.wanted.user
        if not self.wanted.ami and not self.wanted.instance:
            return "admin"
        with asking(self.account, "ec2"):
            images = self._ec2.describe_images(ImageIds=[instance.image])["Images"]
        name = images[0].get("Name", "") if images else ""
        for beginning, user in _USERS:
            if name.lower().startswith(beginning):
                return user
        raise OptionError(f"@ec2: nothing says who logs in at the image {instance.image} ({name or 'without a name'}); say user='…'")

    def host_keys(self, instance: str) -> list[str]:
        """The host keys on the console of an instance; none, as long as it has printed none."""
        try:
            with asking(self.account, "ec2"):
                return instance_keys.host_keys(self._console(instance))
        except UnreachableError as refused:
            raise UnreachableError(f"{refused}; the console has the host keys, by which the instance is known") from None

    def _console(self, instance: str) -> str:
        from botocore.exceptions import ClientError

        try:
            return str(self._ec2.get_console_output(InstanceId=instance, Latest=True).get("Output", ""))
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in _OLD_TYPE:
                raise
        return str(self._ec2.get_console_output(InstanceId=instance).get("Output", ""))

    def last_words(self, instance: str) -> str:
        """What our script has said on the console of an instance that has ended; "" for nothing."""
        from botocore.exceptions import BotoCoreError, ClientError

        with contextlib.suppress(ClientError, BotoCoreError):
            said = [line.strip() for line in self._console(instance).splitlines() if line.startswith("entangle: ")]
            return said[-1].removeprefix("entangle: ") if said else ""
        return ""

    def why_ended(self, instance: str) -> str:
        """Why an instance ends or has ended, as AWS says it; "" where it runs."""
        with contextlib.suppress(EntangleError):
            found = self.look(instance)
            if found is not None and found.state not in ("pending", "running"):
                return f"{found.state}: {found.reason}".rstrip(": ")
        return ""

    def terminate(self, instance: str) -> None:
        """End an instance that this process has launched; of the user's, stop it."""
        with contextlib.suppress(EntangleError), asking(self.account, "ec2"):
            end = self._ec2.stop_instances if self.wanted.instance else self._ec2.terminate_instances
            end(InstanceIds=[instance])

    def who_is_let_in(self, instance: Instance) -> str:
        """What to open, where an instance does not answer."""
        groups = ", ".join(instance.groups) or "its security group"
        advice = (
            f"does {groups} let you in at port 22? Open it to your address: aws ec2 authorize-security-group-ingress --group-id "
            f"{instance.groups[0] if instance.groups else 'sg-…'} --protocol tcp --port 22 --cidr YOUR.ADDRESS/32, or name another: "
            "@ec2(security_groups=['sg-…'])"
        )
        with contextlib.suppress(EntangleError), asking(self.account, "ec2"):
            found = self._ec2.describe_security_groups(GroupIds=list(instance.groups))["SecurityGroups"]
            if not any(_lets_in(rule) for group in found for rule in group.get("IpPermissions", ())):
                advice = f"{groups} lets nobody in at port 22. {advice.partition('? ')[2]}"
        private = ""
        if _is_private(instance.address):
            private = f" {instance.address} is a private address: choose a subnet that gives public ones, or a jump host in ~/.ssh/config."
        return f"{advice}.{private}"


def _lets_in(rule: dict[str, Any]) -> bool:
    ports = rule.get("IpProtocol") == "-1" or (rule.get("IpProtocol") == "tcp" and rule.get("FromPort", 0) <= 22 <= rule.get("ToPort", 0))
    return ports and any(rule.get(kind) for kind in ("IpRanges", "Ipv6Ranges", "PrefixListIds", "UserIdGroupPairs"))


def _is_private(address: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(address).is_private
    except ValueError:
        return False


def described(account: Account, *, plain: bool = False, **which: Any) -> list[Instance]:
    """Instances, the oldest first. With `plain`, errors are boto3's."""
    found: list[dict[str, Any]] = []
    with contextlib.nullcontext() if plain else asking(account, "ec2"):
        for page in account.client("ec2").get_paginator("describe_instances").paginate(**which):
            found += [instance for reservation in page["Reservations"] for instance in reservation["Instances"]]
    return [_instance(one) for one in sorted(found, key=lambda one: str(one.get("LaunchTime", "")))]


def _instance(said: dict[str, Any]) -> Instance:
    address = said.get("PublicIpAddress") or said.get("PrivateIpAddress") or ""
    groups = tuple(group["GroupId"] for group in said.get("SecurityGroups", ()))
    reason = said.get("StateReason", {}).get("Message") or said.get("StateTransitionReason", "")
    tags = {tag["Key"]: tag["Value"] for tag in said.get("Tags", ())}
    spot, since = said.get("InstanceLifecycle") == "spot", said["LaunchTime"].timestamp() if "LaunchTime" in said else 0.0
    state = said["State"]["Name"]
    return Instance(said["InstanceId"], state, address, said["ImageId"], groups, reason, spot, said["InstanceType"], tags, since)


def ours(account: Account) -> list[Instance]:
    """Instances that @ec2 has launched in an account, of all users, and that are still there."""
    states = ["pending", "running", "stopping", "stopped", "shutting-down"]
    return described(account, Filters=[{"Name": "tag-key", "Values": [OPTIONS]}, {"Name": "instance-state-name", "Values": states}])
