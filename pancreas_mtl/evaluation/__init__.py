"""From predictions and references to numbers and a report."""
