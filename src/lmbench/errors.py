"""What commands report without a traceback: a user's mistake, a stop, too little memory."""


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on a GPU or on the machine."""
    is_of_gpu = type(error).__name__ == "OutOfMemoryError"  # torch's, which is slow to import
    return is_of_gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)
