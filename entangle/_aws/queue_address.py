"""The address of a queue of SQS, and what is said of one that cannot be reached."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from entangle._aws.account import Account, told
from entangle.errors import UnreachableError

_URL = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/")
_ARN = re.compile(r"arn:[\w-]+:sqs:([a-z0-9-]+):(\d+):(.+)")


def region_in(queue: str) -> str | None:
    """The region that an address or an ARN names."""
    named = _URL.match(queue) or _ARN.fullmatch(queue)
    return None if named is None else named[1]


def url_of(client: Any, queue: str, account: Account) -> str:
    """The address of a queue, by its name, address or ARN. Raises UnreachableError."""
    if queue.startswith(("http://", "https://")):
        return queue
    arn = _ARN.fullmatch(queue)
    given = {"QueueName": queue} if arn is None else {"QueueName": arn[3], "QueueOwnerAWSAccountId": arn[2]}
    with asking_for(queue, account):
        found: str = client.get_queue_url(**given)["QueueUrl"]
    return found


@contextlib.contextmanager
def asking_for(queue: str, account: Account) -> Iterator[None]:
    """A block in which errors of boto3 become ours, about this queue."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise told_of(error, queue, account) from None


def told_of(error: Any, queue: str, account: Account) -> Exception:
    """The error of ours for what SQS refuses."""
    code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
    if "NonExistentQueue" in code or "QueueDoesNotExist" in code:
        return UnreachableError(
            f"{account.place}: there is no queue {queue!r} of SQS in this account and region; make it, or name another one"
        )
    return told(error, account, "sqs")


def by_chance(error: Any) -> bool:
    """Whether a request is worth another try."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return True  # no answer came
    code = answer.get("Error", {}).get("Code", "")
    return answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500 or "Throttl" in code
