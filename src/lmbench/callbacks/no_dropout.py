"""Training without dropout, to see what a model can learn by heart."""

from typing import Any

import lightning as L

from lmbench.model.dropout import Dropouts


class NoDropout(L.Callback):
    """Turns all dropouts of the model off while it trains; see ``debug=overfit``."""

    def on_train_start(self, trainer, pl_module: Any) -> None:
        """Turns them off. The module puts them back at the end."""
        Dropouts(pl_module.model.dropouts).scale(0.0)
