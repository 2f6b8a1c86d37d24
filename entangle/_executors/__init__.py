"""Runs calls in any executor of concurrent.futures: `@on`."""
