"""`entangle doctor --aws`, and the policies of `deploy/aws`, while moto checks permissions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entangle._aws import policies
from entangle._aws.account import Account
from entangle._services.caller import open_watchers
from entangle.aws import aws as in_account
from entangle.aws import batch
from entangle.cli import doctor_aws
from entangle.errors import ProcessTerminatedException, RunTimeoutException

from ..callers import ROOT
from ..services.emulators import Emulator, JobQueue, new_name
from . import bodies

Client = Callable[[str], Any]
DEPLOY = Path(ROOT, "deploy", "aws")


def findings(moto: Emulator, *words: str, **keys: str) -> dict[str, dict[str, str]]:
    """The doctor's findings, by what it has checked."""
    variables = {**moto.environment(), **keys, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    command = [sys.executable, "-m", "entangle", "doctor", "--aws", "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60, check=False)
    assert done.stderr == ""
    return {found["what"]: found for found in json.loads(done.stdout)}


def user(aws: Client, *names: str, bucket: str) -> dict[str, str]:
    """The keys of a new user with these policies of `deploy/aws`."""
    iam, name = aws("iam"), new_name("user")
    iam.create_user(UserName=name)
    for each in names:
        text = (DEPLOY / f"{each}.json").read_text().replace("BUCKET", bucket)
        # AWS ignores the case of action names; moto compares those of Batch in lower case.
        text = re.sub("batch:[A-Za-z]+", lambda found: found[0].lower(), text)
        iam.put_user_policy(UserName=name, PolicyName=each, PolicyDocument=text)
    made = iam.create_access_key(UserName=name)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}


@pytest.mark.parametrize("name", [*policies.ACTIONS, *policies.OF_ROLES])
def test_the_policies_are_those_of_the_code(name: str) -> None:
    """To write them again: python -m entangle.tests.clouds.test_doctor_aws"""
    assert json.loads((DEPLOY / f"{name}.json").read_text()) == policies.policy(name)


def test_it_says_who_you_are_and_what_works(moto: Emulator, bucket: str, job_queue: JobQueue) -> None:
    found = findings(moto, "--bucket", bucket)
    assert "you are arn:aws:" in found["aws"]["detail"]
    assert found["@aws bucket"]["state"] == "works"
    assert found["@batch"]["state"] == "works"


def test_it_says_what_is_missing(moto: Emulator, bucket: str, aws: Client) -> None:
    found = findings(moto)
    assert "ENTANGLE_BUCKET" in found["@aws bucket"]["detail"]
    assert "there is no bucket 'entangle-nowhere'" in findings(moto, "--bucket", "entangle-nowhere")["@aws bucket"]["detail"]
    keys = user(aws, "bucket", bucket=bucket)
    with moto.permissions():
        found = findings(moto, "--bucket", bucket, **keys)
    assert "user/" in found["aws"]["detail"]
    assert found["@batch"]["state"] == "off"
    assert "batch:DescribeJobQueues" in found["@batch"]["detail"]
    assert "deploy/aws/batch.json" in found["@batch"]["advice"]


def test_it_says_what_is_wrong_with_the_role_of_jobs(moto: Emulator, bucket: str, aws: Client) -> None:
    name, trust = (
        new_name("jobs"),
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "%s"}, "Action": "sts:AssumeRole"}]}',
    )

    def said() -> dict[str, str]:
        return findings(moto, "--bucket", bucket, "--job-role", f"arn:aws:iam::123456789012:role/{name}")["job_role"]

    assert said()["state"] == "off"
    assert f"there is no role {name}" in said()["detail"]
    aws("iam").create_role(RoleName=name, AssumeRolePolicyDocument=trust % "lambda.amazonaws.com")
    assert "does not name ecs-tasks.amazonaws.com" in said()["detail"]
    aws("iam").update_assume_role_policy(RoleName=name, PolicyDocument=trust % policies.PASSED_TO)
    assert said()["state"] == "works"


def test_a_role_that_may_not_be_passed(bucket: str, aws_environment: Emulator, aws: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto does not say what is allowed, so the test gives the answer of AWS."""
    name = new_name("jobs")
    arn = aws("iam").create_role(RoleName=name, AssumeRolePolicyDocument=f'{{"Service": "{policies.PASSED_TO}"}}')["Role"]["Arn"]
    asked: list[Any] = []

    def denied(account: Any, actions: list[str], resources: Any = ("*",)) -> list[str]:
        asked.append((actions, resources))
        return actions

    monkeypatch.setattr(doctor_aws, "_denied", denied)
    found = doctor_aws.looks(Account(bucket=bucket), arn)[-1]()
    assert asked == [(["iam:PassRole"], [arn])]
    assert (found.state, found.detail) == ("off", f"you may not iam:PassRole {arn}")
    assert "pass-roles.json" in found.advice


def test_nobody(moto: Emulator) -> None:
    with moto.permissions():
        found = findings(moto, AWS_ACCESS_KEY_ID="AKIANOBODYATALL00000")
    assert found["aws"]["state"] == "broken"
    assert "does not know these credentials" in found["aws"]["detail"]


#: The permissions that S3's methods need, if they have another name.
S3 = {
    "ListObjectsV2": ["ListBucket"],
    "HeadObject": ["GetObject"],
    "DeleteObjects": ["DeleteObject"],
    "PutObject": ["PutObject", "PutObjectTagging"],
    "CopyObject": ["GetObject", "PutObject"],
    "CreateMultipartUpload": ["PutObject", "PutObjectTagging"],
    "UploadPart": ["PutObject"],
    "CompleteMultipartUpload": ["PutObject"],
}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The actions that were used. moto does not check permissions of signed URLs."""
    from botocore import client as clients

    BaseClient: Any = clients.BaseClient  # noqa: N806
    found: set[str] = set()
    real = BaseClient._make_api_call

    def call(client: Any, operation: str, given: Any) -> Any:
        service = client.meta.service_model.endpoint_prefix
        names = S3.get(operation, [operation]) if service == "s3" else [operation]
        found.update(f"{service}:{name}" for name in names)
        return real(client, operation, given)

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    return found


def test_the_policy_of_batch_is_enough(
    aws_environment: Emulator, bucket: str, job_queue: JobQueue, test_image: str, used: set[str]
) -> None:
    def there(function: Callable[..., Any]) -> Any:
        return in_account(bucket=bucket)(batch(queue=job_queue.name, image=test_image, memory=600)(function))

    assert there(bodies.square).map([1, 2, 3])() == [1, 4, 9]
    with pytest.raises(ProcessTerminatedException, match="exit status 3"):
        there(bodies.leave)(3)()
    with pytest.raises(RunTimeoutException):
        there(bodies.sleep)(60).run(timeout=5)
    open_watchers.close_all()
    assert {"batch:SubmitJob", "batch:TerminateJob", "s3:PutObject"} < used
    assert used - {*policies.ACTIONS["bucket"], *policies.ACTIONS["batch"]} == set()


def test_what_deploy_makes_is_enough(aws_environment: Emulator, test_image: str, aws: Client, job_queue: JobQueue) -> None:
    bucket, queue = new_name("lab"), new_name("short")
    command = [sys.executable, str(DEPLOY / "make.py"), "--bucket", bucket, "--queue", queue, "--service-role", job_queue.role]
    for _ in range(2):  # the second time, everything exists and stays
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    said = dict(re.findall(r'(\w+)="([^"]*)"', done.stdout))
    assert (said["bucket"], said["queue"]) == (bucket, queue)
    assert "role/entangle-containers" in said["execution_role"]
    assert "role/entangle-jobs" in said["job_role"]
    policy = aws("iam").get_role_policy(RoleName="entangle-jobs", PolicyName=bucket)["PolicyDocument"]
    assert policy == policies.policy("job-role", bucket)
    roles = {"execution_role": said["execution_role"], "job_role": said["job_role"]}
    task = in_account(bucket=bucket)(batch(queue=queue, image=test_image, **roles)(bodies.add))
    assert task(1, 2)() == 3
    rules = aws("s3").get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert {rule["ID"] for rule in rules} == {"entangle-left-behind", "entangle-parts"}
    open_watchers.close_all()


if __name__ == "__main__":
    for _name in (*policies.ACTIONS, *policies.OF_ROLES):
        (DEPLOY / f"{_name}.json").write_text(json.dumps(policies.policy(_name), indent=2) + "\n")
