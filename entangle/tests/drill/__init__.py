"""Heavy faults, made on purpose and over and over: `make drill` runs these alone."""
