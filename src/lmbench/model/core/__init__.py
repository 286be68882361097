"""Recurrent cores: from embeddings and a state to outputs and the next state."""

from lmbench.model.core.awd_lstm import AWDLSTM
from lmbench.model.core.lstm import LSTM
from lmbench.model.core.stack import CoreOutput, LSTMState, detach_state

__all__ = ["AWDLSTM", "LSTM", "CoreOutput", "LSTMState", "detach_state"]
