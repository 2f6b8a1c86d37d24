"""What the options may be that say what kind of machine a function has at AWS."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from entangle._shared.summaries import value_in_short
from entangle._tasks.option_values import check_strings, is_number
from entangle.errors import OptionError

_ARCHITECTURES = {"x86_64": "X86_64", "amd64": "X86_64", "arm64": "ARM64", "aarch64": "ARM64"}
_UNITS = {"": 1.0, "m": 1.0, "mb": 1e6 / 2**20, "mib": 1.0, "g": 1024.0, "gb": 1024.0, "gib": 1024.0}
#: The sizes of tasks on Fargate: units of CPU (1,024 a vCPU), the least and the most memory with
#: them, and its steps (MiB). Source: Amazon ECS Developer Guide, "Task CPU and memory".
SIZES = (
    (256, 512, 2048, 512),
    (512, 1024, 4096, 1024),
    (1024, 2048, 8192, 1024),
    (2048, 4096, 16384, 1024),
    (4096, 8192, 30720, 1024),
    (8192, 16384, 61440, 4096),
    (16384, 32768, 122880, 8192),
)
#: What a task has that says nothing.
USUAL = 1024, 2048


def mebibytes(door: str, given: object, option: str = "memory") -> int:
    """Memory in MiB. Raises OptionError."""
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", given) if isinstance(given, str) else None
    if found is not None and found[2].lower() in _UNITS and float(found[1]) > 0:
        return math.ceil(float(found[1]) * _UNITS[found[2].lower()])
    raise OptionError(f"@{door}: {option}={value_in_short(given)}; it must be a number of MiB, or a string such as '512MB' or '2GB'")


def architecture_of(door: str, given: object) -> str | None:
    """The architecture as AWS writes it. Raises OptionError."""
    if given is None:
        return None
    if isinstance(given, str) and given.lower() in _ARCHITECTURES:
        return _ARCHITECTURES[given.lower()]
    raise OptionError(f"@{door}: architecture={value_in_short(given)}; it must be 'x86_64' or 'arm64'")


def variables(door: str, given: object) -> tuple[tuple[str, str], ...]:
    """Environment variables, in order. Raises OptionError."""
    if given is None:
        return ()
    if not isinstance(given, Mapping) or not all(
        isinstance(name, str) and isinstance(value, str) and name and "=" not in name for name, value in given.items()
    ):
        raise OptionError(f"@{door}: env must be a dict of strings, such as {{'MODE': 'fast'}}")
    return tuple(sorted(given.items()))


def strings(door: str, option: str, given: object) -> tuple[str, ...]:
    """A string, or a list of strings. Raises OptionError."""
    listed = (given,) if isinstance(given, str) else given
    if not isinstance(listed, Sequence) or not all(isinstance(text, str) and text.strip() for text in listed):
        raise OptionError(f"@{door}: {option}={value_in_short(given)}; it must be a list of strings")
    return tuple(listed)


def container_options(
    door: str,
    image: object,
    python: object,
    architecture: object,
    job_role: object,
    execution_role: object,
    env: object,
    time: object,
) -> dict[str, Any]:
    """What the service is told whose jobs are containers, in its words. Raises OptionError."""
    check_strings(f"@{door}", image=image, job_role=job_role, execution_role=execution_role, python=python)
    for name, role in (("job_role", job_role), ("execution_role", execution_role)):
        if isinstance(role, str) and not role.startswith("arn:"):
            raise OptionError(f"@{door}: {name}={role!r}; it must be the ARN of a role, arn:aws:iam::ACCOUNT:role/NAME")
    if isinstance(image, str) and any(sign.isspace() for sign in image):
        raise OptionError(f"@{door}: image={image!r}; the name of an image has no spaces")
    if time is not None and (not isinstance(time, (int, float)) or not is_number(time) or time <= 0):
        raise OptionError(f"@{door}: time={value_in_short(time)}; it must be a number of seconds")
    return {
        "image": image or f"python:3.{sys.version_info[1]}-slim",
        "interpreter": python,
        "architecture": architecture_of(door, architecture),
        "job_role": job_role,
        "execution_role": execution_role,
        "environment": variables(door, env),
        "life": time,
    }


def fargate_size(cpu: object, ram: object) -> tuple[int, int, str]:
    """The least size of Fargate that has this: units of CPU, memory (MiB), and a note for people
    where it has more than they have said. Raises OptionError."""
    units = _units(cpu) if cpu is not None else None
    memory = mebibytes("fargate", ram, "ram") if ram is not None else None
    if units is None and memory is None:
        return *USUAL, ""
    for has, least, most, step in SIZES:
        if has >= (units or 0) and most >= (memory or 0):
            # Whoever writes 2GB means what AWS calls so, which is 2 GiB.
            given = max(least, step * math.ceil((memory or 0) / step))
            more = (units is not None and has > units) or (memory is not None and given > memory * 1.08)
            return has, given, f"{_asked(cpu, ram)} is no size of Fargate; it has {has / 1024:g} vCPU and {_gb(given)}" if more else ""
    raise OptionError(f"@fargate: {_asked(cpu, ram)} is more than Fargate offers: {_offered()}")


def _units(cpu: object) -> float:
    """Units of CPU. Raises OptionError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:vcpus?)?\s*", cpu, re.IGNORECASE) if isinstance(cpu, str) else None
    number = float(found[1]) if found is not None else cpu
    if not isinstance(number, (int, float)) or not is_number(number) or number <= 0:
        raise OptionError(f"@fargate: cpu={value_in_short(cpu)}; it must be a number of vCPUs. Fargate offers {_offered()}")
    return number * 1024


def _asked(cpu: object, ram: object) -> str:
    return " with ".join(f"{name}={value!r}" for name, value in (("cpu", cpu), ("ram", ram)) if value is not None)


def _gb(memory: int) -> str:
    return f"{memory / 1024:g} GB"


def _offered() -> str:
    return "; ".join(f"cpu={units / 1024:g} with ram from {_gb(least)} to {_gb(most)}" for units, least, most, _ in SIZES)
