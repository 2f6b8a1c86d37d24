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
from typing import NamedTuple

from entangle._run import python_command
from entangle._shared.devices import MOST_DEVICES, Visible
from entangle.errors import DeviceError

#: Variables that name devices, in the order in which they are asked.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
OURS = "ENTANGLE_GPUS"
#: This file exists where the driver of ROCm is loaded.
_ROCM = "/dev/kfd"
#: Seconds for NVML to answer: loading a driver may take some.
_PATIENCE = 30.0

#: Prints the devices as JSON: of a GPU in MIG mode, its MIG devices in its place. It uses the C
#: interface (https://docs.nvidia.com/deploy/nvml-api): the library comes with the driver, and a
#: package around it would have to be installed on every host and in every image.
_ASK = """
import ctypes, json, sys

def call(name, *args):
    code = getattr(library, name)(*args)
    if code:
        explain = library.nvmlErrorString
        explain.restype = ctypes.c_char_p
        raise OSError(explain(code).decode())

def number(name, *args):
    found = ctypes.c_uint()
    call(name, *args, ctypes.byref(found))
    return found.value

def text(name, device):
    found = ctypes.create_string_buffer(256)
    call(name, device, found, 256)
    return found.value.decode()

def handle(name, *args):
    found = ctypes.c_void_p()
    call(name, *args, ctypes.byref(found))
    return found

def memory(device):
    found = (ctypes.c_ulonglong * 3)()  # total, free, used
    call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(found))
    return found[0]

def parts(gpu):
    try:
        mode, pending = ctypes.c_uint(), ctypes.c_uint()
        call("nvmlDeviceGetMigMode", gpu, ctypes.byref(mode), ctypes.byref(pending))
        most = number("nvmlDeviceGetMaxMigDeviceCount", gpu) if mode.value else 0
    except (OSError, AttributeError):  # it has no such mode, or the driver knows of none
        return
    for index in range(most):
        try:
            yield handle("nvmlDeviceGetMigDeviceHandleByIndex", gpu, index)
        except OSError:  # there are fewer
            pass

try:
    library = ctypes.CDLL("libnvidia-ml.so.1")
    call("nvmlInit_v2")
    found = []
    for index in range(number("nvmlDeviceGetCount_v2")):
        gpu = handle("nvmlDeviceGetHandleByIndex_v2", index)
        inside = list(parts(gpu))
        whole = text("nvmlDeviceGetUUID", gpu)
        for one in inside or [gpu]:
            found.append([index, bool(inside), text("nvmlDeviceGetUUID", one), whole, text("nvmlDeviceGetName", one), memory(one)])
except OSError as error:
    sys.exit(str(error))
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
    if not _has_driver():
        return [], "no NVIDIA driver"
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
