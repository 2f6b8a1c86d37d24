"""What tasks have made in an account, and what of it may go: functions, definitions, boxes."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from entangle._aws.account import Account, asking
from entangle._aws.bucket import BOX, PREFIX
from entangle.errors import EntangleError

DAY = 86400.0
_NAME = re.compile(r"entangle-[0-9a-f]{20}")
#: A box whose lease is younger has a caller that lives (seconds).
_LIVES = 60.0


@dataclass(frozen=True)
class Thing:
    """What is there: its kind, its name, how long it was not used (seconds; None where nobody
    knows), and more in words."""

    kind: str
    name: str
    unused: float | None
    about: str = ""


def functions(account: Account) -> list[Thing]:
    """Functions of Lambda that @lmbda has made. Raises UnreachableError."""
    client, found = account.client("lambda"), []
    with asking(account, "lambda"):
        for page in client.get_paginator("list_functions").paginate():
            for each in page["Functions"]:
                if _NAME.fullmatch(each["FunctionName"]):
                    tags = client.list_tags(Resource=each["FunctionArn"]).get("Tags", {})
                    if "entangle" in tags:
                        about = f"{each.get('Runtime') or 'image'}, {each['MemorySize']} MiB"
                        found.append(Thing("function", each["FunctionName"], _since(tags.get("used") or each["LastModified"]), about))
    return found


def remove_functions(account: Account, days: float, told: Callable[[Thing], object]) -> list[Thing]:
    """Remove functions that were not used for so many days, with their logs. `told` hears of each
    before. A caller that wants one again makes it. Raises UnreachableError."""
    removed = []
    for thing in functions(account):
        if (thing.unused or 0.0) >= days * DAY:
            told(thing)
            client = account.client("lambda")
            with asking(account, "lambda"), contextlib.suppress(client.exceptions.ResourceNotFoundException):
                client.delete_function(FunctionName=thing.name)
            with contextlib.suppress(Exception):  # it may have none, or not be allowed
                account.client("logs").delete_log_group(logGroupName=f"/aws/lambda/{thing.name}")
            removed.append(thing)
    return removed


def definitions(account: Account) -> list[Thing]:
    """Definitions of jobs of Batch and of tasks of ECS. They cost nothing. Raises
    UnreachableError."""
    found = []
    with asking(account, "batch"):
        for page in account.client("batch").get_paginator("describe_job_definitions").paginate(status="ACTIVE"):
            for each in page["jobDefinitions"]:
                if _NAME.fullmatch(each["jobDefinitionName"]):
                    about = each.get("containerProperties", {}).get("image", "")
                    found.append(Thing("job definition", each["jobDefinitionName"], None, about))
    with asking(account, "ecs"):
        for page in (
            account.client("ecs").get_paginator("list_task_definition_families").paginate(familyPrefix="entangle-", status="ACTIVE")
        ):
            found += [Thing("task definition", each, None) for each in page["families"] if _NAME.fullmatch(each)]
    return found


def boxes(account: Account) -> list[Thing]:
    """Boxes of callers in the bucket, whether these live or were killed. Raises UnreachableError,
    OptionError."""
    bucket, client, found = account.bucket_name(), account.client("s3"), []
    with asking(account, "s3"):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=PREFIX, Delimiter="/"):
            for each in page.get("CommonPrefixes", ()):
                name = each["Prefix"][len(PREFIX) : -1]
                if BOX.fullmatch(name):
                    found.append(_box(name, list(_objects(client, bucket, each["Prefix"]))))
    return found


def _objects(client: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        yield from page.get("Contents", ())


def _box(name: str, objects: list[dict[str, Any]]) -> Thing:
    unused = min((time.time() - each["LastModified"].timestamp() for each in objects), default=0.0)
    size = sum(each["Size"] for each in objects)
    leases = [time.time() - each["LastModified"].timestamp() for each in objects if each["Key"].endswith("/lease")]
    state = "its caller lives" if leases and min(leases) < _LIVES else "its caller is gone"
    return Thing("box", name, max(0.0, unused), f"{state}, {len(objects):,} objects, {size:,} bytes")


def inventory(account: Account) -> tuple[list[Thing], list[str]]:
    """All that is there, and what could not be asked for."""
    found: list[Thing] = []
    troubles: list[str] = []
    looks: list[Callable[[Account], list[Thing]]] = [functions, definitions]
    if account.bucket or os.environ.get("ENTANGLE_BUCKET"):
        looks.append(boxes)
    for look in looks:
        try:
            found += look(account)
        except EntangleError as error:
            troubles.append(f"{look.__name__}: {error}")
    return found, troubles


def _since(when: str) -> float:
    """Seconds since a date, or a time as Lambda writes it."""
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S.%f%z"):
        with contextlib.suppress(ValueError):
            found = datetime.strptime(when, form)
            return max(0.0, time.time() - (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp())
    return 0.0
