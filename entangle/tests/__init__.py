"""What entangle guarantees, tested with real processes."""
