"""The far side of a byte stream: the agent, and the modules that come to it. Private."""
