"""Any executor of concurrent.futures as a place for calls: `@on`."""
