"""Runs graphs of dask: compiles a graph to a Flow, and calls dask's callbacks for its tasks."""
