"""The near side of a byte stream: channels, what is sent, what is printed. Private."""
