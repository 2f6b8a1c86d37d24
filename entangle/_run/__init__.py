"""Running flows: private. Knows flows, not calls. Start at `run.py`, or at the drawing at the top of `worker.py`."""
