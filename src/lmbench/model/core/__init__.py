"""Recurrent cores: from embeddings and a state to outputs and the next state."""

from lmbench.model.core.awd_lstm import AWDLSTM
from lmbench.model.core.gated_delta_net import GatedDeltaNet
from lmbench.model.core.gru import GRU
from lmbench.model.core.hgrn2 import HGRN2
from lmbench.model.core.lstm import LSTM
from lmbench.model.core.min_gru import MinGRU
from lmbench.model.core.min_lstm import MinLSTM
from lmbench.model.core.mlstm import MLSTM
from lmbench.model.core.mogrifier_lstm import MogrifierLSTM
from lmbench.model.core.qrnn import QRNN
from lmbench.model.core.slstm import SLSTM

__all__ = [
    "AWDLSTM",
    "GRU",
    "HGRN2",
    "LSTM",
    "MLSTM",
    "QRNN",
    "SLSTM",
    "GatedDeltaNet",
    "MinGRU",
    "MinLSTM",
    "MogrifierLSTM",
]
