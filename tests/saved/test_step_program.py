"""A step as a program: it gives what the model gives when it reads the whole text at once."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lmbench
from lmbench.errors import UserError
from lmbench.model import LSTM, CoreOutput, Embedding, LanguageModel, Softmax
from lmbench.saved.step_program import Step, write_step_program, zero_state

MODELS = {
    "lstm, untied": ("model=lstm", "model.tied=false", "model.head.bias=false"),
    "lstm, float64": ("model=lstm", "trainer.precision=64-true"),
    "lstm, bfloat16": ("model=lstm", "trainer.precision=bf16-true"),
    "awd_lstm": ("model=awd_lstm", "model.core.num_layers=3"),
    "awd_lstm, adaptive": ("model=awd_lstm", "model/head=adaptive_softmax"),
    "lstm, adaptive, untied": ("model=lstm", "model/head=adaptive_softmax", "model.tied=false"),
}


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("model=lstm",), id="lstm"),
        *(pytest.param(x, id=name, marks=pytest.mark.slow) for name, x in MODELS.items()),
    ],
)
def test_steps_give_what_the_model_gives_for_the_text(
    make_run: Callable[..., Path], tmp_path: Path, overrides: tuple[str, ...]
):
    model, vocabulary = lmbench.load(make_run(*overrides))
    path = tmp_path / "step.pt2"
    write_step_program(model, len(vocabulary), path)
    program = torch.export.load(path).module()
    dtype = model.embedding.weight.dtype
    for num_columns in (1, 3, 17):
        tokens = torch.randint(len(vocabulary), (12, num_columns))
        with torch.no_grad():
            expected = model.head.log_probs(model(tokens).output)
        state = zero_state(model, num_columns)
        for step, words in enumerate(tokens):
            log_probs, state = program(words[None], state)
            assert log_probs.shape == (1, num_columns, len(vocabulary))
            assert (log_probs[0] - expected[step]).abs().max() <= 40 * torch.finfo(dtype).eps
        assert log_probs.double().exp().sum(-1).sub(1).abs().max() < 0.05


def test_nothing_of_this_machine_is_in_the_file(make_run: Callable[..., Path], tmp_path: Path):
    model, vocabulary = lmbench.load(make_run())
    path = tmp_path / "step.pt2"
    write_step_program(model, len(vocabulary), path)
    with zipfile.ZipFile(path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"aten.lstm" in content
    for folder in (Path(lmbench.__file__).parents[1], Path(torch.__file__).parents[1], Path.home()):
        assert f"{folder}/".encode() not in content


class Wayward(nn.Module):
    """A core whose number of steps is in the hands of its numbers."""

    input_size = output_size = 4

    def forward(self, input: Tensor, state: Any = None) -> CoreOutput:
        hidden = input[:1] if state is None else state[0][0]
        while hidden.sum() > 0:
            hidden = hidden - 1
        return CoreOutput(hidden, hidden, ((hidden,),))


class ColumnsFirst(nn.Module):
    """A core that keeps its columns in the first axis of a state of one tensor."""

    input_size = output_size = 4

    def forward(self, input: Tensor, state: Any = None) -> CoreOutput:
        hidden = input.new_zeros(input.shape[1], 4) if state is None else state[0][0]
        for step in input:
            hidden = torch.tanh(step + 0.5 * hidden)
        return CoreOutput(hidden[None], hidden[None], ((hidden,),))


def with_core(core: nn.Module) -> LanguageModel:
    return LanguageModel(Embedding(7, 4), core, Softmax(4, 7), tied=True).eval()


def test_a_core_that_cannot_be_followed_is_named(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"(?s)core \S+\.Wayward: torch\.export says: .*--no-program"
    ):
        write_step_program(with_core(Wayward()), 7, tmp_path / "step.pt2")


def test_a_state_of_another_form(tmp_path: Path):
    model = with_core(ColumnsFirst())
    write_step_program(model, 7, tmp_path / "step.pt2")
    program = torch.export.load(tmp_path / "step.pt2").module()
    state = expected = ((torch.rand(6, 4),),)
    for words in torch.randint(7, (5, 1, 6)):
        log_probs, state = program(words, state)
        expected_log_probs, expected = Step(model)(words, expected)
        assert torch.equal(log_probs, expected_log_probs)


def test_a_program_with_other_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = with_core(LSTM(4, 4, 4, 1))
    load = torch.export.load

    def damaged(path: Path) -> Any:
        program = load(path)
        program.state_dict["model.core.layers.0.bias_hh_l0"][0] += 1e-3
        return program

    monkeypatch.setattr(torch.export, "load", damaged)
    with pytest.raises(UserError, match=r"numbers are not those of the model.*--no-program"):
        write_step_program(model, 7, tmp_path / "step.pt2")


def test_a_full_disk_is_none_of_the_cores_faults(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        write_step_program(with_core(LSTM(4, 4, 4, 1)), 7, tmp_path / "nowhere" / "step.pt2")
