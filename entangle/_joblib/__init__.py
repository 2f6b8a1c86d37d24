"""Runs joblib's tasks on warm workers: the backend, and how batches of tasks travel."""
