"""A search over training's keys: the space, the study that processes share, its trials, results."""
