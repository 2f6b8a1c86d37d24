"""`from entangle.logging.file import logging`: messages of every level go to `entangle.log`.

The file is in the working directory of the program at the time of the import. Messages are appended
to it, also by the processes that a run starts.

Example:
    from entangle.logging.file import logging
    logging.debug("a line of entangle.log, with the time and the level before it")
"""

import logging  # imports are absolute: this is the standard library's module, not this package

__all__ = ["logging"]

logging.basicConfig(
    filename="entangle.log",
    # The locale's encoding may lack a character of a message, which would then not be written.
    encoding="utf-8",
    format="%(asctime)s : %(levelname)s : %(message)s",
    level=logging.DEBUG,
)
