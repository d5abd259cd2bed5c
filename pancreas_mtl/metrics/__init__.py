"""What evaluation reports, as functions."""
