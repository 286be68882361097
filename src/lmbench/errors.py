"""What commands report without a traceback: a user's mistake, a stop, too little memory."""


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one paragraph for a person: what was wrong, where (file, line, key), what to do.
    """


class Diverged(UserError):
    """A loss, a weight or all validations were not finite; the run would end so again."""


class Interrupted(Exception):
    """A run was told to stop, and has saved what it could.

    Attributes:
        signum: Number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on a GPU or on the machine."""
    if isinstance(error, MemoryError):
        return True
    # By what it says: not every such error of torch is an OutOfMemoryError.
    said = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in said)
