"""The depot: where values live longer than a run, found by the hash of what made them.

A depot finds the value of a key, puts one, and gives one process at a time the right to compute a
key. `opened.depot` gives the depot to use; `remembering.py` looks a value up before a body runs,
and stores it after.
"""
