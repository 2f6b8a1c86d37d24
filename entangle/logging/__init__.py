"""Logging set up in one line, for programs that have no wishes of their own.

Importing one of these modules configures the root logger, and gives the standard library's `logging` module to work with:

    from entangle.logging.info import logging     # INFO and above, to stderr
    from entangle.logging.debug import logging    # everything, to stderr
    from entangle.logging.file import logging     # everything, to entangle.log in the working directory

These are the only modules of the package whose import has an effect. They use `logging.basicConfig`, which leaves a root
logger that already has handlers as it is: a program that configures logging first keeps its own configuration, and of
several of these imports the first one counts.
"""
