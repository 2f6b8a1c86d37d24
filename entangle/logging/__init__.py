"""Logging set up in one line, for programs that need nothing special.

Importing one of these modules configures the root logger, and gives the standard library's
`logging`:

    from entangle.logging.info import logging     # INFO and above, to stderr
    from entangle.logging.debug import logging    # everything, to stderr
    from entangle.logging.file import logging     # everything, to entangle.log here

These are the only modules of the package whose import has an effect. They use
`logging.basicConfig`, which changes nothing where the root logger has handlers. So a program that
has configured logging keeps its configuration, and of several of these imports the first one
counts.
"""
