"""One graph over four places: a container, another host, a Slurm cluster, and this machine.

A beam is calibrated in a container, its load is looked up on another host, the cluster bends it at
many places at once, and the places that bend most are refined here. How many those are is known
only while it runs.

`ENTANGLE_IMAGE` names the container's image, `ENTANGLE_HOSTS` a host (else an ssh server runs on
this machine as long as the example does), `ENTANGLE_PARTITION` the partition of the cluster, which
is the one that `srun` reaches.
"""

import os
import shutil
import sys
from collections import Counter
from typing import Any

from entangle.docker import docker
from entangle.errors import ImageError, UnreachableError
from entangle.examples.hosts import three_hosts
from entangle.process import process
from entangle.slurm import slurm
from entangle.ssh import ssh
from entangle.workflow import workflow

IMAGE = os.environ.get("ENTANGLE_IMAGE", "python:3.13-slim")
PARTITION = os.environ.get("ENTANGLE_PARTITION")
PLACES = 16

Found = dict[str, Any]


def calibrate() -> Found:
    """How stiff the beam is."""
    return {"value": 2.0e7, "where": "docker"}


def load(stiffness: Found) -> Found:
    """How much the beam carries."""
    return {"value": 1200.0 + stiffness["value"] / 1e6, "where": "ssh"}


def bend(stiffness: Found, weight: Found, place: float) -> Found:
    """How far a beam of one metre bends at a place, with the load in its middle."""
    import os

    share = min(place, 1 - place)
    bent = weight["value"] * share * (3 - 4 * share**2) / (48 * stiffness["value"]) * 1e3
    return {"value": bent, "where": f"slurm, job {os.environ['SLURM_JOB_ID']}", "place": place}


@process
def refine(bent: Found, step: float, below: Found | None = None) -> Found:
    """How far the beam bends around a place, at least as far as at the one `below`."""
    least = 0.0 if below is None else below["value"]
    return {"value": max(least, bent["value"] * (1 + step)), "where": "local", "places": [bent, *([below] if below else [])]}


def graph(far: dict[str, Any]) -> Any:
    """The call of the whole graph."""
    stiff = docker(image=IMAGE)(calibrate)()
    weight = ssh(**far)(load)(stiff)
    bend_there = slurm(partition=PARTITION, time=600, cpus=4, memory="500M", jobs=2, python=sys.executable)(bend)

    @workflow
    def closer(stiff: Found, weight: Found, *bends: Found) -> Any:
        most = sorted(bends, key=lambda bent: bent["value"])[-4:]
        first = [refine(bent, 0.01) for bent in most]
        second = [refine(bent, 0.02, below) for bent, below in zip(most, first, strict=True)]
        return summary(stiff, weight, bends, first, second)

    return closer(stiff, weight, *[bend_there(stiff, weight, (place + 0.5) / PLACES) for place in range(PLACES)])


@process
def summary(*found: Any) -> list[str]:
    """What was found, and where."""
    flat = [one for part in found for one in (part if isinstance(part, (list, tuple)) else [part])]
    jobs = {one["where"] for one in flat if one["where"].startswith("slurm")}
    count = Counter(one["where"].partition(",")[0] for one in flat)
    most = max(flat[2:], key=lambda one: one["value"])
    lines = [f"  {place:<7} {number} call{'s' * (number > 1)}" for place, number in count.items()]
    lines = [line + (f" in {len(jobs)} job{'s' * (len(jobs) > 1)}" if "slurm" in line else "") for line in lines]
    return [f"It bends {most['value']:.3f} mm at most.", *lines]


def main() -> None:
    if shutil.which("srun") is None:
        sys.exit("This example needs a Slurm cluster: run it where srun is, such as a login node.")
    try:
        with three_hosts() as hosts:
            print("\n".join(graph(hosts[0])()))
    except (ImageError, UnreachableError) as error:
        sys.exit(f"This example needs docker, a host and a Slurm cluster.\n{error}")


if __name__ == "__main__":
    main()
