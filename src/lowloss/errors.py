"""Errors that a user can mend: one line that names the cause and the remedy."""


class LowlossError(Exception):
    """Something the user can mend; the message is one line that says how."""


class NonFiniteLossError(LowlossError):
    """A loss became NaN or infinite during training."""
