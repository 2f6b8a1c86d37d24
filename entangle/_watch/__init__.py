"""Looking on from outside: what runs write down for others, and how it is read. Private."""
