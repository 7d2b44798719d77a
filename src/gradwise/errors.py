"""The errors that a user can cause, in one place."""


class UserError(ValueError):
    """A mistake in what the user asked for or in the data they gave.

    The message is one sentence that names the argument, the value and the bound. The command
    line prints it without a traceback and exits with code 2; in Python it is a `ValueError`.
    """
