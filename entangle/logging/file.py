"""`from entangle.logging.file import logging`: messages of every level are appended to `entangle.log`.

The file is made in the directory in which the program runs when the import happens. Processes that a run starts append
to the same file.

Example:
    from entangle.logging.file import logging
    logging.debug("a line of entangle.log, with the time and the level before it")
"""

import logging  # imports are absolute: this is the standard library's module, not this package

__all__ = ["logging"]

logging.basicConfig(
    filename="entangle.log",
    # Without it the encoding would be the locale's, and a message might fail to be written for a letter it holds.
    encoding="utf-8",
    format="%(asctime)s : %(levelname)s : %(message)s",
    level=logging.DEBUG,
)
