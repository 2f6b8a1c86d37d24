"""Make what @batch, @fargate and @lmbda need in an account of AWS, once. What is there stays.

    python deploy/aws/make.py --bucket lab-calls --queue short

It makes

- a bucket that removes what killed callers have left in it;
- a role that starts containers and writes their logs;
- a role for what runs in containers: it may use the bucket, since signed addresses may expire;
- a compute environment of Fargate in the default VPC (no machine of your own, and no cost while
  nothing runs), and a queue for it;
- a cluster of ECS, which is free, with Fargate and its spot capacity;
- a role for functions of Lambda.

It prints what to write in a program. Run it as a user who may make all that; programs need only the
policies beside this file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

#: After this many days a call's addresses have expired, so what it left in the bucket can go.
DAYS = 8
#: Roles: their names, and the services that may assume them.
CONTAINERS, FUNCTIONS = ("entangle-containers", "ecs-tasks.amazonaws.com"), ("entangle-functions", "lambda.amazonaws.com")
JOBS = "entangle-jobs", "ecs-tasks.amazonaws.com"
#: To fetch images from the account's own registry, and to write logs.
ACTIONS = [
    *("ecr:GetAuthorizationToken", "ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"),
    *("logs:CreateLogStream", "logs:PutLogEvents"),
]
#: A function needs nothing but its log.
LOGS = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"]


def make_bucket(session: boto3.Session, bucket: str) -> None:
    """Make a private bucket with a rule that removes what is left behind."""
    s3 = session.client("s3")
    where = {} if session.region_name == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": session.region_name}}
    try:
        s3.create_bucket(Bucket=bucket, **where)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou",):
            raise
    blocked = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=blocked)
    left = {
        "ID": "entangle-left-behind",
        "Status": "Enabled",
        "Filter": {"And": {"Prefix": "entangle/", "Tags": [{"Key": "entangle", "Value": "call"}]}},
        "Expiration": {"Days": DAYS},
    }
    parts = {
        "ID": "entangle-parts",
        "Status": "Enabled",
        "Filter": {"Prefix": "entangle/"},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    }
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [left, parts]})


def allowed(actions: list[str]) -> str:
    """A policy that allows these actions on all resources."""
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]})


def make_role(session: boto3.Session, name: str, service: str, policy: str, document: str) -> str:
    """Make a role for what a service starts, with a policy of this name; gives its ARN."""
    iam = session.client("iam")
    trusted = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    try:
        arn = str(iam.get_role(RoleName=name)["Role"]["Arn"])
    except iam.exceptions.NoSuchEntityException:
        trust = json.dumps({"Version": "2012-10-17", "Statement": [trusted]})
        arn = str(iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"])
    iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=document)
    return arn


def make_queue(session: boto3.Session, name: str, vcpus: int, spot: bool, role: str | None) -> None:
    """Make a compute environment of Fargate in the default VPC, and a queue for it."""
    batch, ec2 = session.client("batch"), session.client("ec2")
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise SystemExit("there is no default VPC in this region: aws ec2 create-default-vpc")
    own = [{"Name": "vpc-id", "Values": [vpcs[0]["VpcId"]]}]
    resources: dict[str, Any] = {
        "type": "FARGATE_SPOT" if spot else "FARGATE",
        "maxvCpus": vcpus,
        "subnets": [found["SubnetId"] for found in ec2.describe_subnets(Filters=own)["Subnets"]],
        "securityGroupIds": [
            found["GroupId"]
            for found in ec2.describe_security_groups(Filters=[*own, {"Name": "group-name", "Values": ["default"]}])["SecurityGroups"]
        ],
    }
    if not batch.describe_compute_environments(computeEnvironments=[name])["computeEnvironments"]:
        more = {"serviceRole": role} if role else {}  # else AWS makes one, AWSServiceRoleForBatch
        batch.create_compute_environment(computeEnvironmentName=name, type="MANAGED", state="ENABLED", computeResources=resources, **more)
    for _ in range(120):
        (found,) = batch.describe_compute_environments(computeEnvironments=[name])["computeEnvironments"]
        if found["status"] == "VALID":
            break
        if found["status"] == "INVALID":
            raise SystemExit(f"the compute environment {name} is invalid: {found.get('statusReason')}")
        time.sleep(1)
    if not batch.describe_job_queues(jobQueues=[name])["jobQueues"]:
        order = [{"order": 1, "computeEnvironment": name}]
        batch.create_job_queue(jobQueueName=name, state="ENABLED", priority=1, computeEnvironmentOrder=order)


def make_cluster(session: boto3.Session, name: str) -> None:
    """Make a cluster of ECS with both capacities of Fargate."""
    ecs = session.client("ecs")
    found = [each for each in ecs.describe_clusters(clusters=[name])["clusters"] if each["status"] == "ACTIVE"]
    providers = {"capacityProviders": ["FARGATE", "FARGATE_SPOT"], "defaultCapacityProviderStrategy": [{"capacityProvider": "FARGATE"}]}
    if not found:
        ecs.create_cluster(clusterName=name, **providers)
    elif not found[0].get("capacityProviders"):
        ecs.put_cluster_capacity_providers(cluster=name, **providers)


def main() -> None:
    """Make all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", required=True, help="the name of the bucket; names are unique in all of AWS")
    parser.add_argument("--queue", required=True, help="the name of the queue, and of its compute environment")
    parser.add_argument("--cluster", default="default", help="the name of the cluster (default: default)")
    parser.add_argument("--vcpus", type=int, default=64, help="how many vCPUs may run at once (default: 64)")
    parser.add_argument("--spot", action="store_true", help="cheaper capacity that may be taken back")
    parser.add_argument("--service-role", help="the ARN of a role for Batch itself (default: AWS makes one)")
    parser.add_argument("--profile", help="a profile of the AWS command line")
    parser.add_argument("--region", help="a region")
    given = parser.parse_args()
    session = boto3.Session(profile_name=given.profile, region_name=given.region)
    make_bucket(session, given.bucket)
    role = make_role(session, *CONTAINERS, "containers", allowed(ACTIONS))
    functions = make_role(session, *FUNCTIONS, "functions", allowed(LOGS))
    document = (Path(__file__).parent / "job-role.json").read_text().replace("BUCKET", given.bucket)
    job_role = make_role(session, *JOBS, given.bucket, document)  # it may use the buckets of other calls as well
    make_queue(session, given.queue, given.vcpus, given.spot, given.service_role)
    make_cluster(session, given.cluster)
    print(f'@aws(bucket="{given.bucket}")\n@batch(queue="{given.queue}", execution_role="{role}", job_role="{job_role}")')
    print(f'@fargate(cluster="{given.cluster}", execution_role="{role}", job_role="{job_role}")\n@lmbda(role="{functions}")')


if __name__ == "__main__":
    main()
