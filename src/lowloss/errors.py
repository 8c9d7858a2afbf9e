"""Errors that a user can mend: one line that names the cause and the remedy."""


class LowlossError(Exception):
    """Something the user can mend; the message is one line that says how."""


class OtherConfigError(LowlossError):
    """A result was made with another configuration."""


class NonFiniteLossError(LowlossError):
    """A loss became NaN or infinite during training."""
