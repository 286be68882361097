"""Recurrent cores: from embeddings and a state to outputs and the next state."""

from lmbench.model.core.awd_lstm import AWDLSTM
from lmbench.model.core.lstm import LSTM

__all__ = ["AWDLSTM", "LSTM"]
