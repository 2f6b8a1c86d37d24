"""What users hold: layers, calls, and how a tree of calls becomes a Flow. Tasks themselves are in `entangle.task`."""
