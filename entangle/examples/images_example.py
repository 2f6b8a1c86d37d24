"""A folder of images: thumbnails on all CPUs, with a progress bar, and one file that is no image.

`thumbnail.map(paths)` would end at the bad file. Here `gather` takes its error as a value, so the
other files are not affected. After a second, a bar shows how many are done and failed; if the
output goes to a file, it gets lines instead. Prints how much smaller the thumbnails are, and the
error of the bad file.
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from entangle import gather
from entangle.process import process

IMAGES = 24


@process(timeout=60)
def thumbnail(path: Path, largest: int = 96) -> tuple[int, int]:
    """Write a small copy beside an image, and give its width and height."""
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((largest, largest))
        image.save(path.with_suffix(".jpg"))
        return image.width, image.height


def make(folder: Path) -> None:
    """Make images such as a camera makes, and a download that broke off."""
    from PIL import Image

    for number in range(IMAGES):
        size = (640, 400) if number % 3 else (400, 640)
        Image.linear_gradient("L").resize(size).rotate(15 * number).save(folder / f"{number:02}.png")
    (folder / "half.png").write_bytes((folder / "00.png").read_bytes()[:20])


def main() -> None:
    if find_spec("PIL") is None:
        sys.exit("This example needs Pillow: pip install 'py-entangle[examples]'")
    with tempfile.TemporaryDirectory() as name:
        make(folder := Path(name))
        paths = sorted(folder.glob("*.png"))
        sizes = gather(*[thumbnail(path) for path in paths], return_exceptions=True).run(progress=True)
        small, large = (sum(path.stat().st_size for path in folder.glob(kind)) for kind in ("*.jpg", "*.png"))
    for path, size in zip(paths, sizes, strict=True):
        if isinstance(size, BaseException):
            print(f"{path.name}: {type(size).__name__}")
    good = [size for size in sizes if not isinstance(size, BaseException)]
    print(f"{len(good)} thumbnails, of {sorted(set(good))} pixels: {large // small} times smaller")


if __name__ == "__main__":
    main()
