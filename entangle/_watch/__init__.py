"""Watches runs from other processes: what runs write down for that, and how it is read. Private."""
