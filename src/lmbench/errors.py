"""A user's mistake, and a stop by a signal: commands report both without a traceback."""


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one paragraph for a person: what was wrong, where (file, line, key), what to do.
    """


class Interrupted(Exception):
    """A run was told to stop; what it could save, it has.

    Attributes:
        signum: Number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum
