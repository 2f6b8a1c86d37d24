"""Where tasks of ECS run on Fargate, and where they print: a cluster, a network, a group of logs.

Each is looked up once in a process.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

from entangle._aws.account import Account, asking
from entangle.errors import EntangleError, OptionError

#: Subnets of a task. Source: the ECS API reference.
SUBNETS = 16
#: Where tasks print, in CloudWatch, and for how long it is kept (days).
GROUP, KEPT = "/entangle/fargate", 30


@functools.lru_cache(maxsize=64)
def where(
    account: Account, cluster: str, subnets: tuple[str, ...], security_groups: tuple[str, ...], spot: bool, public_ip: bool
) -> dict[str, Any]:
    """What RunTask is told of all tasks: cluster, network, capacity. Raises OptionError."""
    found = _cluster(account, cluster)
    if spot and "FARGATE_SPOT" not in found.get("capacityProviders", ()):
        raise OptionError(
            f"@fargate: spot=True, and cluster {cluster!r} has no capacity provider FARGATE_SPOT; add it: "
            f"aws ecs put-cluster-capacity-providers --cluster {cluster} --capacity-providers FARGATE FARGATE_SPOT "
            "--default-capacity-provider-strategy capacityProvider=FARGATE"
        )
    network: dict[str, Any] = {
        "subnets": list(subnets or _default_subnets(account))[:SUBNETS],
        "assignPublicIp": "ENABLED" if public_ip else "DISABLED",
    }
    if security_groups:  # else ECS takes the default one of the network
        network["securityGroups"] = list(security_groups)
    strategy = [{"capacityProvider": "FARGATE_SPOT", "weight": 1}]
    return {
        "cluster": found["clusterArn"],
        "networkConfiguration": {"awsvpcConfiguration": network},
        **({"capacityProviderStrategy": strategy} if spot else {"launchType": "FARGATE"}),
    }


def _cluster(account: Account, name: str) -> dict[str, Any]:
    """What ECS says of a cluster. Raises OptionError where there is none of this name."""
    ecs = account.client("ecs")
    with asking(account, "ecs"):
        for each in ecs.describe_clusters(clusters=[name])["clusters"]:
            if each["status"] == "ACTIVE":
                return dict(each)
        names = sorted(arn.rpartition("/")[2] for arn in ecs.list_clusters()["clusterArns"])
    there = f"there are {', '.join(names)}" if names else "there is none"
    raise OptionError(
        f"@fargate: there is no cluster {name!r} in this region; {there}. Name one, cluster='…', or make it: "
        f"aws ecs create-cluster --cluster-name {name} --capacity-providers FARGATE FARGATE_SPOT"
    )


def _default_subnets(account: Account) -> Sequence[str]:
    """Those of the default network. Raises OptionError where there is none."""
    wanted = [{"Name": "default-for-az", "Values": ["true"]}]
    with asking(account, "ec2"):
        found = account.client("ec2").describe_subnets(Filters=wanted)["Subnets"]
    if not found:
        raise OptionError(
            "@fargate: this region has no default network (VPC); name subnets=[…] from which the bucket and the image can be reached, "
            "or make one: aws ec2 create-default-vpc"
        )
    return sorted(subnet["SubnetId"] for subnet in found)


@functools.lru_cache(maxsize=64)
def why_no_log(account: Account) -> str:
    """Why tasks can have no log; "" if they can. Its group is made, where that is allowed."""
    from botocore.exceptions import ClientError

    logs = account.client("logs")
    try:
        with asking(account, "logs"):
            found = logs.describe_log_groups(logGroupNamePrefix=GROUP)["logGroups"]
            if not any(group["logGroupName"] == GROUP for group in found):
                logs.create_log_group(logGroupName=GROUP)
                with contextlib.suppress(ClientError):  # if that is refused, the log is kept for good
                    logs.put_retention_policy(logGroupName=GROUP, retentionInDays=KEPT)
    except EntangleError as error:
        return f"the task has no log: {error}"
    return ""
