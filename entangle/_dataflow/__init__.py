"""Dataflows: graphs of nodes, compiled to flows into which values are pushed."""
