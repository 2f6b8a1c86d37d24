"""What all processes of a run share: the table, the store, the home, pickling, masks. Private."""
