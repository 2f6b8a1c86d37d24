"""What each decorator does in an account: the actions that a user must be allowed.

`deploy/aws` has them as policies, and a test sees that they are these. Source of the names: the
Service Authorization Reference of AWS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Of all decorators: calls and values go through the bucket.
BUCKET = ("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:PutObjectTagging", "s3:DeleteObject", "s3:AbortMultipartUpload")
#: Where a job has a role of its own, the user passes it on.
PASS = ("iam:PassRole",)
#: What such a role needs where the addresses of a call would expire. S3 says that something is not
#: there only to who may list the bucket, and of this permission no part can be had alone.
JOB_ROLE: Mapping[str, Sequence[str]] = {
    "": ("s3:ListBucket",),
    "/entangle/*": ("s3:GetObject",),
    "/entangle/*/claims/*": ("s3:PutObject", "s3:PutObjectTagging", "s3:DeleteObject"),
    "/entangle/*/back/*": ("s3:PutObject", "s3:PutObjectTagging"),
}
#: How the roles begin that `deploy/aws` makes, and what they are passed to, at Batch too.
ROLES, PASSED_TO = "arn:aws:iam::*:role/entangle-*", "ecs-tasks.amazonaws.com"
#: Policies beside those of ACTIONS: of the role of a job, and of who gives roles to jobs.
OF_ROLES = ("job-role", "pass-roles")

#: What is allowed only of what has the tag `entangle`, and how a policy says that.
OWN, OWN_KEY = ("ec2:TerminateInstances",), "aws:ResourceTag/entangle"

#: What is no decorator: `sources.sqs`, and records in Neptune.
SERVICES = ("sqs", "neptune")

ACTIONS: Mapping[str, Sequence[str]] = {
    "bucket": BUCKET,
    "ec2": (
        "ec2:DescribeInstances",
        "ec2:RunInstances",
        "ec2:CreateTags",
        "ec2:ImportKeyPair",
        "ec2:GetConsoleOutput",
        "ec2:TerminateInstances",
        "ec2:DescribeImages",
        "ec2:DescribeSecurityGroups",
        "ssm:GetParameter",
        "ec2:DescribeInstanceAttribute",
        "ec2:StartInstances",
        "ec2:StopInstances",
    ),
    "batch": (
        "batch:DescribeJobQueues",
        "batch:DescribeComputeEnvironments",
        "batch:DescribeJobDefinitions",
        "batch:RegisterJobDefinition",
        "batch:TagResource",
        "batch:SubmitJob",
        "batch:DescribeJobs",
        "batch:ListJobs",
        "batch:TerminateJob",
        "logs:GetLogEvents",
    ),
    "fargate": (
        "ecs:DescribeClusters",
        "ecs:ListClusters",
        "ecs:DescribeTaskDefinition",
        "ecs:RegisterTaskDefinition",
        "ecs:TagResource",
        "ecs:RunTask",
        "ecs:DescribeTasks",
        "ecs:StopTask",
        "ec2:DescribeSubnets",
        "logs:DescribeLogGroups",
        "logs:CreateLogGroup",
        "logs:PutRetentionPolicy",
        "logs:GetLogEvents",
    ),
    # Of a function that stands in Lambda, the first alone.
    "lmbda": (
        "lambda:InvokeFunction",
        "lambda:GetFunction",
        "lambda:GetFunctionConfiguration",
        "lambda:CreateFunction",
        "lambda:TagResource",
        "lambda:PutFunctionEventInvokeConfig",
        "lambda:ListFunctions",
        "lambda:DeleteFunction",
        *PASS,
        "logs:GetLogEvents",
        "logs:FilterLogEvents",
        "logs:DeleteLogGroup",
    ),
    "sqs": (
        "sqs:GetQueueUrl",
        "sqs:GetQueueAttributes",
        "sqs:ReceiveMessage",
        "sqs:DeleteMessage",
        "sqs:ChangeMessageVisibility",
    ),
    # Of a database: arn:aws:neptune-db:REGION:ACCOUNT:CLUSTER/*.
    "neptune": (
        "neptune-db:connect",
        "neptune-db:ReadDataViaQuery",
        "neptune-db:WriteDataViaQuery",
        "neptune-db:DeleteDataViaQuery",
    ),
}


def policy(name: str, bucket: str = "BUCKET") -> dict[str, Any]:
    """The policy of a decorator, of the bucket, or of OF_ROLES."""
    if name == "job-role":
        return _document(*(_statement(list(actions), f"arn:aws:s3:::{bucket}{where}") for where, actions in JOB_ROLE.items()))
    if name == "pass-roles":
        condition = {"StringEquals": {"iam:PassedToService": PASSED_TO}}
        return _document({**_statement([*PASS], ROLES), "Condition": condition})
    if name == "bucket":
        objects = [action for action in BUCKET if action != "s3:ListBucket"]
        return _document(
            _statement(["s3:ListBucket"], f"arn:aws:s3:::{bucket}"),
            _statement(objects, f"arn:aws:s3:::{bucket}/entangle/*"),
        )
    own = [action for action in ACTIONS[name] if action in OWN]
    allowed = _statement([action for action in ACTIONS[name] if action not in own], "*")
    return _document(allowed, {**_statement(own, "*"), "Condition": {"Null": {OWN_KEY: "false"}}}) if own else _document(allowed)


def _document(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _statement(actions: list[str], resource: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": resource}
