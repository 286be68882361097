"""One step of a language model as a program of ``torch.export``, which needs no lmbench to run.

Shape letters: B columns, V vocabulary.
"""

import copy
import io
import warnings
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from lmbench.errors import UserError
from lmbench.model import LanguageModel
from lmbench.model.core import State

CHECKED_COLUMNS = (1, 2, 5)
CHECKED_STEPS = 8


class Step(nn.Module):
    """Reads a word in each column, and gives the distribution over the next one."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Int[Tensor, "1 B"], state: State
    ) -> tuple[Float[Tensor, "1 B V"], State]:
        """Log-probabilities of all words as the next one, in nats, and the new state."""
        output, _, state = self.model(tokens, state)
        return self.model.head.log_probs(output), state


def zero_state(model: LanguageModel, num_columns: int) -> State:
    """The state before the first word: zeros, of the shapes that the core gives."""
    tokens = torch.zeros(1, num_columns, dtype=torch.int64)
    return tuple(tuple(torch.zeros_like(x) for x in layer) for layer in model(tokens).state)


@torch.no_grad()
def write_step_program(model: LanguageModel, vocabulary_size: int, path: Path) -> None:
    """Writes ``(tokens (1, B), state) -> (log_probs (1, B, V), state)``, and checks what it wrote.

    The number of columns B is free, from 1 on, also for LSTMs. The program runs on the CPU, in the
    precision of the model. It is read again and compared with the model on random words, over
    several steps and for several B: all log-probabilities and states must be equal to the last bit.

    Args:
        model: The model, in evaluation mode, on the CPU.
        vocabulary_size: Number of words, V.
        path: The file to be.

    Raises:
        OSError: The file cannot be written.
        UserError: ``torch.export`` cannot follow the model, or the program gives other numbers.
    """
    try:
        path.write_bytes(_serialized(_export(Step(copy.deepcopy(model)))))
        _require_equal(torch.export.load(path).module(), Step(model), vocabulary_size)
    except OSError:
        raise
    except Exception as error:  # torch.export raises whatever the model's code made it raise
        core = f"{type(model.core).__module__}.{type(model.core).__qualname__}"
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"No program of a step can be made of a model with the core {core}: torch.export says: "
            f"{reason[0]} Everything else can be exported: add --no-program."
        ) from error


def _export(step: Step) -> ExportedProgram:
    two, three = (zero_state(step.model, num_columns) for num_columns in (2, 3))
    columns = Dim("columns", min=1, max=2**20)
    # A core may keep its columns in whatever axis it likes.
    free = tuple(
        tuple(
            {axis: columns for axis in range(x.ndim) if x.shape[axis] != y.shape[axis]}
            for x, y in zip(*layers, strict=True)
        )
        for layers in zip(two, three, strict=True)
    )
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    with warnings.catch_warnings():
        # Of the list of its weights that nn.LSTM keeps beside the registered ones.
        warnings.filterwarnings("ignore", message="(?s)The tensor attributes .*_flat_weights")
        return torch.export.export(
            step, (tokens, two), dynamic_shapes=({1: columns}, free), strict=False
        )


def _serialized(program: ExportedProgram) -> bytes:
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # has the paths of this machine in it
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _require_equal(program: nn.Module, step: Step, vocabulary_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for num_columns in CHECKED_COLUMNS:
        state = expected_state = zero_state(step.model, num_columns)
        for _ in range(CHECKED_STEPS):
            tokens = torch.randint(vocabulary_size, (1, num_columns), generator=generator)
            log_probs, state = program(tokens, state)
            expected, expected_state = step(tokens, expected_state)
            pairs = [(log_probs, expected)]
            for layer, expected_layer in zip(state, expected_state, strict=True):
                pairs += zip(layer, expected_layer, strict=True)
            if not all(torch.equal(x, y) for x, y in pairs):
                raise ValueError("The program's numbers are not those of the model.")
