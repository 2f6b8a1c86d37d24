"""Runs as pictures and documents: each file takes a run and gives text."""
