"""Test suites of other projects, run with entangle in the place of what they test."""
