"""The near side of services: writes messages, watches tickets, gives outcomes to their calls."""
