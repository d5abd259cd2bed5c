"""Other formats and frameworks."""
