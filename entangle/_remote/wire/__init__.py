"""Both sides of a byte stream: frames, jobs, text. Private."""
