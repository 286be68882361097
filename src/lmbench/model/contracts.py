"""What the rest of lmbench asks of the parts of a language model.

Shape letters: T time steps, B columns, E embedding, H hidden. A head is a subclass of
:class:`lmbench.model.head.base.Head`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

State: TypeAlias = tuple[tuple[Tensor, ...], ...]
"""What a core remembers: a tuple of tensors for each layer, whose shapes are the core's own affair.

An LSTM layer's is ``(h, c)``, each ``(1, B, H)``. A checkpoint holds the state of the training
stream. A resumed run passes it on in float32 even if the weights are in bfloat16: the core must
convert it.
"""


class CoreOutput(NamedTuple):
    """What a core, or a whole language model, returns for a window."""

    output: Float[Tensor, "T B H"]
    """Outputs of the last layer, after dropout."""
    raw_output: Float[Tensor, "T B H"]
    """The same before dropout."""
    state: State
    """State after the last step, still attached to the graph."""


def detach_state(state: State) -> State:
    """A copy that is cut off from the window that made it: truncated backpropagation ends here.

    A view of a window's last step would keep the whole window, in memory and in checkpoints.
    """
    return tuple(tuple(tensor.detach().clone() for tensor in layer) for layer in state)


@runtime_checkable
class Dropout(Protocol):
    """A module that drops with the probability ``p``, like ``torch.nn.Dropout``.

    A schedule may change ``p`` before any training step, so the module must read it at every call.
    """

    p: float


@runtime_checkable
class Core(Protocol):
    """A module that reads embeddings from left to right.

    Any ``nn.Module`` with these members can be one. It is called with ``(input, state)`` and
    returns a :class:`CoreOutput`; its only memory is the state, which the caller passes on. Steps
    must not depend on later ones, nor columns on each other.

    A core is built from the values in the config and ``input_size=``; the tests of all cores also
    set ``num_layers``. Under autocast on a CPU without bfloat16, it computes in float32:
    :func:`lmbench.model.core.stack.autocast_where_fast`.

    If an argument changes what the weights mean but not their shapes, such as a number of heads,
    the class names it in ``layout_arguments``, a tuple: a run that starts from such weights may not
    change it.
    """

    input_size: int
    """Size of a step's input, E: that of the embeddings."""
    output_size: int
    """Size of a step's output, H."""

    @property
    def dropouts(self) -> Sequence[Dropout]:
        """All dropouts of the module, for schedules to scale.

        With ``p = 0`` for all of them, training mode gives the outputs of evaluation mode.
        """
        ...

    def __call__(self, input: Float[Tensor, "T B E"], state: State | None = None) -> CoreOutput:
        """What the module's ``forward`` does: runs a window.

        Args:
            input: Embeddings, ``(T, B, E)``; T may be 1 and differ from call to call.
            state: The state that the previous window returned, usually after :func:`detach_state`;
                None for zeros.
        """
        ...
