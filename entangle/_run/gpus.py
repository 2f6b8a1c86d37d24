"""Which GPUs there are for the bodies under `@scheduler(gpus=n)`.

NVML says which GPUs and MIG devices the machine has. It is asked in a process of its own, since it
opens the devices, and a process that has opened one must not fork. CUDA_VISIBLE_DEVICES restricts
what it finds, by number, UUID or start of a UUID, as it does for CUDA: the list ends at the first
entry that names no device. Without NVML the variable itself is the list, else HIP_VISIBLE_DEVICES
or ROCR_VISIBLE_DEVICES, else ENTANGLE_GPUS.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

from entangle._run import python_command
from entangle._shared.devices import MOST_DEVICES, Visible
from entangle.errors import DeviceError

#: Variables that name devices, in the order in which they are asked.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
OURS = "ENTANGLE_GPUS"
#: There where the driver of ROCm is.
_ROCM = "/dev/kfd"
#: Seconds for NVML to answer: a driver that is not loaded may take some to be.
_PATIENCE = 30.0

#: Prints the devices as JSON: of a GPU in MIG mode, its MIG devices in its place.
_ASK = """
import json
import pynvml as nvml
text = lambda found: found.decode() if isinstance(found, bytes) else found
nvml.nvmlInit()
found = []
for number in range(nvml.nvmlDeviceGetCount()):
    gpu = nvml.nvmlDeviceGetHandleByIndex(number)
    parts = []
    try:
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(gpu) if nvml.nvmlDeviceGetMigMode(gpu)[0] else 0
    except nvml.NVMLError:
        most = 0
    for part in range(most):
        try:
            parts.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, part))
        except nvml.NVMLError:
            pass
    for one in parts or [gpu]:
        model = text(nvml.nvmlDeviceGetName(one))
        uuid = text(nvml.nvmlDeviceGetUUID(one))
        found.append([number, bool(parts), uuid, text(nvml.nvmlDeviceGetUUID(gpu)), model, int(nvml.nvmlDeviceGetMemoryInfo(one).total)])
print(json.dumps(found))
"""


class Gpu(NamedTuple):
    """A device: its name in CUDA_VISIBLE_DEVICES, its model, and its memory (bytes; 0: unknown)."""

    name: str
    model: str = ""
    memory: int = 0


class Found(NamedTuple):
    """The devices, where they were found, and what was looked for in vain, in words."""

    gpus: tuple[Gpu, ...]
    source: str
    looked: str


class _Known(NamedTuple):
    """A device of NVML."""

    number: int
    is_part: bool
    uuid: str
    whole: str
    model: str
    memory: int

    def gpu(self, name: str) -> Gpu:
        return Gpu(name, self.model, self.memory)


def find() -> Found:
    """The devices that this process may use now."""
    known, trouble = _asked()
    given = {name: os.environ[name] for name in (*VARIABLES, OURS) if name in os.environ}
    chosen = next((name for name in VARIABLES if name in given), "")
    if known:
        if chosen != "CUDA_VISIBLE_DEVICES":
            gpus = tuple(one.gpu(one.uuid if one.is_part else str(one.number)) for one in known)
            return Found(gpus[:MOST_DEVICES], "NVML", "")
        gpus = _restricted(known, entries(given[chosen]))
        there = ", ".join(one.uuid if one.is_part else str(one.number) for one in known)
        looked = f"{chosen}={given[chosen]!r} leaves none of those that NVML finds ({there})"
        return Found(gpus[:MOST_DEVICES], f"NVML and {chosen}", looked)
    looked = f"NVML ({trouble})"
    name = chosen or OURS
    if name not in given:
        return Found((), "", f"{looked}; {', '.join((*VARIABLES, OURS))}, of which none is set")
    return Found(tuple(map(Gpu, entries(given[name])))[:MOST_DEVICES], name, f"{looked}; {name}={given[name]!r}, which names none")


def needed(task: str, most: int, known: Visible) -> Visible:
    """The devices for a run: those of the run around it, if any. `task` wants the `most` of them.

    Raises DeviceError if there are not so many.
    """
    found = Found(tuple(map(Gpu, known.names)), "the run around it", "") if known.names else find()
    if len(found.gpus) >= most:
        return known if known.names else Visible(tuple(gpu.name for gpu in found.gpus), _style(found))
    wants = f"task {task!r} wants {'a GPU' if most == 1 else f'{most} GPUs'}"
    if found.gpus:
        there = f"there {'is 1' if len(found.gpus) == 1 else f'are {len(found.gpus)}'}: {', '.join(gpu.name for gpu in found.gpus)}"
        raise DeviceError(f"{wants} at once, and {there} (from {found.source}). Lower gpus=, or give this process more of them")
    restricted = found.source.rpartition(" ")[2]
    advice = f"Where there is one all the same, say which: {OURS}=0,1"
    if restricted in VARIABLES:
        advice = f"Unset {restricted}, or name devices in it"
    raise DeviceError(f"{wants}, and none was found. Looked for: {found.looked}. {advice}")


def _style(found: Found) -> str:
    """Which variables show devices to a process (`_shared/devices.py`)."""
    if found.source == "NVML":
        return "" if "CUDA_DEVICE_ORDER" in os.environ else "nvml"
    if found.source.startswith("NVML") or not os.path.exists(_ROCM):
        return ""
    return "hip" if "ROCR_VISIBLE_DEVICES" in os.environ and found.source != "ROCR_VISIBLE_DEVICES" else "rocr"


def entries(text: str) -> list[str]:
    """The devices that a list such as `0,1` or `GPU-5a2f,MIG-…` names, as CUDA reads it.

    It ends at an empty entry or a number below 0.
    """
    found: list[str] = []
    for entry in text.split(","):
        entry = entry.strip()
        if not entry or entry.startswith("-"):
            break
        if entry not in found:
            found.append(entry)
    return found


def _restricted(known: Sequence[_Known], wanted: Sequence[str]) -> tuple[Gpu, ...]:
    """Those of the devices that the variable names, under the names that it has for them."""
    found: list[Gpu] = []
    for name in wanted:
        if name.isdigit():
            match = [one for one in known if one.number == int(name)]
        elif name.startswith("MIG-GPU-"):  # of older drivers: MIG-GPU-<uuid>/<instance>/<instance>
            match = [one for one in known if one.is_part and one.whole == name.split("/")[0].removeprefix("MIG-")]
        else:
            match = [one for one in known if one.uuid.startswith(name) or one.whole == name]
        if not match:
            break
        # Of a GPU in MIG mode, CUDA uses one part; it chooses the first.
        found.append(match[0].gpu(name))
    return tuple(found)


#: What NVML has told this process, and why it told nothing.
_told: tuple[list[_Known], str] | None = None


def _asked() -> tuple[list[_Known], str]:
    """The devices that NVML knows; else none, and why. It is asked once."""
    global _told
    if _told is None:
        _told = _ask_nvml()
    return _told


def _ask_nvml() -> tuple[list[_Known], str]:
    if find_spec("pynvml") is None:
        return [], "not installed: pip install nvidia-ml-py" if _has_driver() else "no NVIDIA driver"
    try:
        done = subprocess.run(
            python_command.command(_ASK),
            env=python_command.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"no answer: {type(error).__name__}"
    if done.returncode:
        return [], ([line for line in done.stderr.splitlines() if line.strip()] or ["it failed"])[-1].strip()[:160]
    known = [_Known(*one) for one in json.loads(done.stdout.splitlines()[-1])]
    return known, "" if known else "it finds none"


def _has_driver() -> bool:
    return any(map(os.path.exists, ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")))
