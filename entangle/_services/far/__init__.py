"""The far side of services: the program that runs a message, whatever service has started it."""
