"""Models in plain PyTorch: embedding → core → head."""

from lmbench.model.core import AWDLSTM, LSTM
from lmbench.model.embedding import Embedding
from lmbench.model.head import AdaptiveSoftmax, Softmax
from lmbench.model.language_model import LanguageModel

__all__ = ["AWDLSTM", "LSTM", "AdaptiveSoftmax", "Embedding", "LanguageModel", "Softmax"]
