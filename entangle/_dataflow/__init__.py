"""Dataflows: nodes and what stands in their parentheses, compiled to flows into which values are pushed."""
