"""What both sides of a byte stream share: frames, values as parts, how source is written."""
