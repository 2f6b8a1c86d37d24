"""Workers that outlive runs: kept by a session, an executor, or what takes their place."""
