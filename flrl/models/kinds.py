"""Several networks for one federation: clients of different kinds, and a server that may have yet another one."""

from collections.abc import Mapping
from copy import deepcopy

import pytorch_lightning as pl


class Kinds:
    """One LightningModule for each kind of client; client c is of kind `c % len(kinds)`, in the order of their names.

    Only for strategies whose clients exchange no parameters.

    Args:
        kinds: the modules by name.
        server: the server's module, where the strategy has a global model; null: one like that of the first kind.

    Attributes:
        kinds: the clients' modules.
        server: the server's module, which shares nothing with them.

    Raises:
        ValueError: there are no kinds, or one is no LightningModule.
    """

    def __init__(self, *, kinds: Mapping[str, pl.LightningModule], server: pl.LightningModule | None = None) -> None:
        if not kinds:
            raise ValueError("model.kinds={}: must have at least one")
        for name, module in kinds.items():
            if not hasattr(module, "automatic_optimization"):
                raise ValueError(f"model.kinds.{name}: {type(module).__name__} is not a LightningModule")
        # In the order of their names: a configuration that is read back need not keep that of its keys.
        self.kinds = [kinds[name] for name in sorted(kinds)]
        for module in self.kinds:
            module.configure_model()
        self.server = deepcopy(self.kinds[0]) if server is None else server
