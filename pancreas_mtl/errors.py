"""Errors that a user can mend: one line that names the file or key, and says what to do.

The commands turn them into exit codes: 2 for a `UsageError` (nothing was done), 1 when some cases
raised a `CaseError` (the others are done). Anything else is a defect of the program.
"""


class UsageError(Exception):
    """Bad usage, bad configuration or bad input as a whole: nothing was done."""


class CaseError(Exception):
    """One case cannot be used; the others go on."""


class TrainingError(CaseError):
    """Training cannot go on; what it reached is kept."""


class LackOfMemoryError(CaseError):
    """One case does not fit into the memory that is free now."""
