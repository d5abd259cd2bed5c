"""From a bundle and a CT to a mask and a subtype."""
