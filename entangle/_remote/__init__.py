"""Other places: one agent over any byte stream. Private; the doors are ssh, docker, containers and interpreter."""
