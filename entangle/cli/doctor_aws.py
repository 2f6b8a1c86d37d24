"""`entangle doctor --aws`: who you are there, and what each decorator would be missing. It starts
nothing there, and leaves nothing in the bucket."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from entangle._aws.account import Account, asking
from entangle._aws.bucket import PREFIX, TAG
from entangle._aws.policies import ACTIONS, OWN_KEY, PASS, PASSED_TO, SERVICES
from entangle.cli.doctor import BROKEN, OFF, WORKS, Finding
from entangle.errors import EntangleError

#: What reads one thing: the action that it needs, the service, the method, its parameters.
Probe = tuple[str, str, str, dict[str, Any]]

#: Asked where the account does not let us ask what is allowed.
PROBES: dict[str, tuple[Probe, ...]] = {
    "ec2": (
        ("ec2:DescribeInstances", "ec2", "describe_instances", {"MaxResults": 5}),
        ("ec2:DescribeSecurityGroups", "ec2", "describe_security_groups", {"MaxResults": 5}),
    ),
    "batch": (
        ("batch:DescribeJobQueues", "batch", "describe_job_queues", {}),
        ("batch:DescribeComputeEnvironments", "batch", "describe_compute_environments", {}),
        ("batch:DescribeJobDefinitions", "batch", "describe_job_definitions", {"status": "ACTIVE", "maxResults": 1}),
    ),
    "fargate": (
        ("ecs:ListClusters", "ecs", "list_clusters", {}),
        ("ecs:DescribeClusters", "ecs", "describe_clusters", {}),
        ("ec2:DescribeSubnets", "ec2", "describe_subnets", {}),
        ("logs:DescribeLogGroups", "logs", "describe_log_groups", {}),
    ),
}


def looks(account: Account, job_role: str) -> list[Callable[[], Finding]]:
    """What to look at, in an account, and of this role for jobs."""
    return [
        functools.partial(_identity, account),
        functools.partial(_bucket, account),
        *(functools.partial(_decorator, account, name) for name in ACTIONS if name != "bucket"),
        functools.partial(_job_role, account, job_role.rpartition("/")[2]),
    ]


def _identity(account: Account) -> Finding:
    try:
        with asking(account, "sts"):
            sts = account.client("sts")
            found = sts.get_caller_identity()
    except EntangleError as error:
        return Finding("aws", BROKEN, str(error))
    return Finding("aws", WORKS, f"you are {found['Arn']}, in {sts.meta.region_name}")


def _bucket(account: Account) -> Finding:
    """Puts an object twice and removes it, as a call would."""
    try:
        name = account.bucket_name()
    except EntangleError as error:
        return Finding("@aws bucket", OFF, str(error))
    key = f"{PREFIX}doctor-{os.urandom(6).hex()}"
    try:
        with asking(account, "s3"):
            s3 = account.client("s3")
            s3.list_objects_v2(Bucket=name, Prefix=key)
            s3.put_object(Bucket=name, Key=key, Body=b"-", Tagging=TAG, IfNoneMatch="*")
            once = _is_refused(lambda: s3.put_object(Bucket=name, Key=key, Body=b"-", Tagging=TAG, IfNoneMatch="*"))
            s3.get_object(Bucket=name, Key=key)["Body"].read()
            s3.delete_object(Bucket=name, Key=key)
    except EntangleError as error:
        advice = "deploy/aws/bucket.json is the policy that is needed" if "you may not" in str(error) else ""
        return Finding("@aws bucket", BROKEN, str(error), advice)
    if not once:
        return Finding("@aws bucket", BROKEN, f"{name} puts an object over another in spite of If-None-Match; a call could run twice")
    return Finding("@aws bucket", WORKS, f"{name}: objects are put once, and removed")


def _is_refused(put: Callable[[], Any]) -> bool:
    from botocore.exceptions import ClientError

    try:
        put()
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("PreconditionFailed", "412"):
            raise
        return True
    return False


def _decorator(account: Account, name: str) -> Finding:
    what, policy = name if name in SERVICES else f"@{name}", f"deploy/aws/{name}.json is the policy that is needed"
    try:
        missing = _denied(account, list(ACTIONS[name]))
        detail = f"all of its {len(ACTIONS[name])} actions are allowed"
        if missing is None:
            missing = [action for action, service, method, given in PROBES.get(name, ()) if _is_denied(account, service, method, given)]
            detail = "what only reads is allowed; of the rest nothing is known (iam:SimulatePrincipalPolicy is not allowed)"
        if missing:
            return Finding(what, OFF, f"you may not {', '.join(missing)}", policy)
        lacks = LACKS[name](account) if name in LACKS else ""
    except EntangleError as error:
        return Finding(what, BROKEN, str(error))
    return Finding(what, OFF, lacks, "deploy/aws/README.md tells how to make it") if lacks else Finding(what, WORKS, detail)


def _job_role(account: Account, name: str) -> Finding:
    """Whether there is a role that can be given to jobs, and whether the user may do that."""
    what, make = "job_role", "deploy/aws makes one; job-role.json there is the policy that it needs"
    iam = account.client("iam")
    try:
        with asking(account, "iam"):
            role = iam.get_role(RoleName=name)["Role"]
    except EntangleError as error:
        if "NoSuchEntity" in str(error):
            return Finding(what, OFF, f"there is no role {name}: calls that outlive your credentials need one, job_role=", make)
        return Finding(what, OFF, f"nothing is known of the role {name}: {error}", make)
    if PASSED_TO not in json.dumps(role["AssumeRolePolicyDocument"]):
        return Finding(what, OFF, f"the trust policy of the role {name} does not name {PASSED_TO}: no job can have it", make)
    try:
        passing = _denied(account, [*PASS], [role["Arn"]])
    except EntangleError as error:
        return Finding(what, BROKEN, str(error))
    if passing:
        return Finding(what, OFF, f"you may not iam:PassRole {role['Arn']}", "deploy/aws/pass-roles.json is the policy that is needed")
    return Finding(what, WORKS, f"{role['Arn']}{'' if passing is not None else '; whether you may pass it is not known'}")


def _denied(account: Account, actions: list[str], resources: Sequence[str] = ("*",)) -> list[str] | None:
    """Of these, what the user may not do; None where that cannot be asked."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    with asking(account, "sts"):
        arn = account.client("sts").get_caller_identity()["Arn"]
    if ":assumed-role/" in arn:
        head, _, role = arn.replace(":sts:", ":iam:").partition(":assumed-role/")
        arn = f"{head}:role/{role.partition('/')[0]}"
    try:
        context = [
            {"ContextKeyName": name, "ContextKeyValues": [value], "ContextKeyType": "string"}
            for name, value in ((OWN_KEY, "-"), ("iam:PassedToService", PASSED_TO))
        ]
        found = account.client("iam").simulate_principal_policy(
            PolicySourceArn=arn, ActionNames=actions, ResourceArns=[*resources], ContextEntries=context
        )["EvaluationResults"]
    except (ClientError, BotoCoreError, ResponseParserError):
        return None
    return [each["EvalActionName"] for each in found if each["EvalDecision"] != "allowed"]


def _is_denied(account: Account, service: str, method: str, given: dict[str, Any]) -> bool:
    try:
        with asking(account, service):
            getattr(account.client(service), method)(**given)
    except EntangleError as error:
        if "you may not" in str(error):
            return True
        raise
    return False


def _lacks_a_queue(account: Account) -> str:
    with asking(account, "batch"):
        found = account.client("batch").describe_job_queues()["jobQueues"]
    return "" if found else "there is no job queue in this region"


def _lacks_a_cluster(account: Account) -> str:
    with asking(account, "ecs"):
        found = account.client("ecs").list_clusters()["clusterArns"]
    return "" if found else "there is no cluster of ECS in this region"


LACKS: dict[str, Callable[[Account], str]] = {"batch": _lacks_a_queue, "fargate": _lacks_a_cluster}
