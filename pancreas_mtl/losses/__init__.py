"""What training minimises, as functions."""
