"""Conversion from and to awd-lstm-lm, whose layout is rebuilt here by modules of the same names."""

import itertools
from pathlib import Path

import pytest
import torch
from awd_lstm_lm import from_awd_lstm_lm, main, to_awd_lstm_lm
from torch import Tensor, nn
from torch.testing import assert_close

from lmbench.model import AWDLSTM, Embedding, LanguageModel, Softmax

WORDS, SIZES = 11, (4, 6, 6, 4)


class WeightDrop(nn.Module):
    """Holds an LSTM as ``module``, with its recurrent weight under the name of the raw one."""

    def __init__(self, module: nn.LSTM) -> None:
        super().__init__()
        self.module = module
        raw = module.weight_hh_l0
        del module._parameters["weight_hh_l0"]
        module.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.detach()))


class RNNModel(nn.Module):
    def __init__(self, weight_dropout: bool = True, tied: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Embedding(WORDS, SIZES[0])
        layers = [nn.LSTM(a, b) for a, b in itertools.pairwise(SIZES)]
        self.rnns = nn.ModuleList(WeightDrop(one) if weight_dropout else one for one in layers)
        self.decoder = nn.Linear(SIZES[-1], WORDS)
        if tied:
            self.decoder.weight = self.encoder.weight

    def log_probs(self, tokens: Tensor) -> Tensor:
        """Log-probabilities by nn.LSTM itself, with the raw weights."""
        output = self.encoder(tokens)
        for index, (a, b) in enumerate(itertools.pairwise(SIZES)):
            layer = nn.LSTM(a, b)
            prefix = f"rnns.{index}."
            layer.load_state_dict(
                {
                    name.removeprefix(prefix).removeprefix("module.").removesuffix("_raw"): value
                    for name, value in self.state_dict().items()
                    if name.startswith(prefix)
                }
            )
            output, _ = layer(output)
        return self.decoder(output).log_softmax(-1)


def make_ours(tied: bool = True) -> LanguageModel:
    dropouts = ("input_dropout", "hidden_dropout", "output_dropout", "weight_dropout")
    core = AWDLSTM(4, 6, 4, 3, **dict.fromkeys(dropouts, 0.5))
    return LanguageModel(Embedding(WORDS, 4), core, Softmax(4, WORDS), tied=tied).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weight_dropout", [True, False])
def test_the_originals_weights_give_its_probabilities(weight_dropout: bool, tied: bool):
    torch.manual_seed(0)
    original, ours = RNNModel(weight_dropout, tied), make_ours(tied)
    ours.load_state_dict(from_awd_lstm_lm(original.state_dict()))
    tokens = torch.randint(WORDS, (9, 2))
    with torch.no_grad():
        assert_close(ours.head.log_probs(ours(tokens).output), original.log_probs(tokens))


def test_there_and_back_again_changes_nothing(tmp_path: Path):
    ours = make_ours().state_dict()
    files = [str(tmp_path / name) for name in ("ours.pt", "original.pt", "again.pt")]
    torch.save(ours, files[0])
    main([*files[:2], "--back"])
    main(files[1:])
    assert "rnns.0.module.weight_hh_l0_raw" in torch.load(files[1])
    again = torch.load(files[2])
    assert list(again) == list(ours)
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())


def test_the_dropped_weight_of_the_last_pass_is_left_out():
    original = RNNModel().state_dict()
    raw = original["rnns.1.module.weight_hh_l0_raw"]
    original["rnns.1.module.weight_hh_l0"] = raw * 0
    assert from_awd_lstm_lm(original)["core.layers.1.weight_hh_l0"] is raw


def test_what_is_not_a_state_dict_is_refused_without_a_traceback(tmp_path: Path):
    path = tmp_path / "WT2.pt"
    for content in ([RNNModel()], [torch.zeros(1)], {"x": torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(SystemExit, match=rf"^{path}: "):
            main([str(path), str(tmp_path / "converted.pt")])
    path.write_bytes(b"")
    with pytest.raises(SystemExit, match=rf"^{path}: .*\w"):
        main([str(path), str(tmp_path / "converted.pt")])
    with pytest.raises(SystemExit, match=r"No such file"):
        main([str(tmp_path / "x.pt"), str(tmp_path / "converted.pt")])
    assert not (tmp_path / "converted.pt").exists()


def test_a_file_that_cannot_be_written_is_the_one_named(tmp_path: Path):
    torch.save(RNNModel().state_dict(), tmp_path / "original.pt")
    with pytest.raises(SystemExit, match=rf"^{tmp_path}/nowhere/x.pt: "):
        main([str(tmp_path / "original.pt"), str(tmp_path / "nowhere/x.pt")])


@pytest.mark.parametrize("rename", [from_awd_lstm_lm, to_awd_lstm_lm])
def test_an_unknown_name_is_refused(rename):
    with pytest.raises(ValueError, match=r"^'rnns\.0\.linear\.weight'"):
        rename({"rnns.0.linear.weight": torch.zeros(1)})
