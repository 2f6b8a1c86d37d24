"""Tests against emulators of clouds. `make test-clouds` runs them."""
