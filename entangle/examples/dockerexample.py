"""A function that runs in a container, called from one that does not.

The image needs a Python and nothing else. `ENTANGLE_IMAGE` names one; the default is
python:3.13-slim, which docker pulls if it is not here. The container starts with the first call of
the run, serves all calls, and is removed at the end. Prints the system and the Python in there.
"""

import os
import sys

from entangle.docker import docker
from entangle.errors import ImageError, UnreachableError
from entangle.process import process

image = os.environ.get("ENTANGLE_IMAGE", "python:3.13-slim")


def look() -> dict[str, str]:
    """The system, the Python and the host. Plain data, since another version of Python may send
    it."""
    import os
    import platform

    with open("/etc/os-release") as file:
        names = [line.split("=")[1].strip().strip('"') for line in file if line.startswith("PRETTY_NAME")]
    return {"system": names[0], "python": platform.python_version(), "host": os.uname().nodename}


inside = docker(image=image, env={"COLOUR": "blue"}, network="none")(look)
outside = process(look)


@process
def compare(here: dict[str, str], *there: dict[str, str]) -> list[str]:
    lines = [f"  {name:<14} {place['system']}, Python {place['python']}" for name, place in (("here", here), ("container", there[0]))]
    return [*lines, f"  {len(there)} calls in {len({place['host'] for place in there})} container"]


def main() -> None:
    try:
        print("\n".join(compare(outside(), inside(), inside(), inside())()))
    except (ImageError, UnreachableError) as error:
        sys.exit(f"This example needs docker and an image with a Python, which ENTANGLE_IMAGE names.\n{error}")


if __name__ == "__main__":
    main()
