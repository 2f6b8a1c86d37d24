"""The near side of a byte stream: channels, what they send, and what they show. Private."""
