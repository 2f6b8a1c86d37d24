"""Graphs of dask as runs: a graph becomes a Flow, and what dask's callbacks are told of its run."""
