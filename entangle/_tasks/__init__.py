"""What users hold: layers, calls, and how calls become a Flow. Tasks are in `entangle.task`."""
