"""The depot: where values live longer than a run, found by the hash of what made them.

A depot finds the value of a key, puts one, and gives one process at a time the right to compute a
key. `opened.depot` gives the one that is meant; `remembering.py` asks it before a body runs, and
tells it after.
"""
