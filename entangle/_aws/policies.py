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

ACTIONS: Mapping[str, Sequence[str]] = {
    "bucket": BUCKET,
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
}


def policy(name: str, bucket: str = "BUCKET") -> dict[str, Any]:
    """The policy of a decorator, or of the bucket."""
    if name == "bucket":
        objects = [action for action in BUCKET if action != "s3:ListBucket"]
        return _document(
            _statement(["s3:ListBucket"], f"arn:aws:s3:::{bucket}"),
            _statement(objects, f"arn:aws:s3:::{bucket}/entangle/*"),
        )
    return _document(_statement(list(ACTIONS[name]), "*"))


def _document(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _statement(actions: list[str], resource: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": resource}
