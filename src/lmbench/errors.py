"""The one error that a command turns into a message instead of a traceback."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one paragraph for a person: what was wrong, where (file, line, key), what to do.
    """
