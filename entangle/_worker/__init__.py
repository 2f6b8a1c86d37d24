"""What happens in a worker: the loop, what a death or an error means there, joining a run.

Private.
"""
