"""The promises of entangle, each a test with real processes."""
