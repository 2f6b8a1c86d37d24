"""`from entangle.logging.debug import logging`: messages of every level go to stderr.

Example:
    from entangle.logging.debug import logging
    logging.debug("said on stderr, with the time and the level before it")
"""

import logging  # imports are absolute: this is the standard library's module, not this package

__all__ = ["logging"]

logging.basicConfig(format="%(asctime)s : %(levelname)s : %(message)s", level=logging.DEBUG)
