"""Test suites of other projects, run with entangle in place of the tested code."""
