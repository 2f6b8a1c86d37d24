"""`from entangle.logging.info import logging`: messages of level INFO and above go to stderr.

Example:
    from entangle.logging.info import logging
    logging.info("said on stderr, with the time and the level before it")
"""

import logging  # imports are absolute: this is the standard library's module, not this package

__all__ = ["logging"]

logging.basicConfig(format="%(asctime)s : %(levelname)s : %(message)s", level=logging.INFO)
