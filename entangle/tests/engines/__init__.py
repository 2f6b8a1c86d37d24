"""Tests that need another engine: Slurm, Dask, Ray. `make test-engines` runs them."""
