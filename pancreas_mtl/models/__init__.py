"""The shared network and its subtype heads."""
