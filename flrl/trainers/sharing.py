"""What the user's own code shares with all clients while a trainer trains them."""

from collections.abc import Iterable, Sequence

from flrl.bound_model import BoundModel
from flrl.snapshot import Outside, Snapshot, own_parts
from flrl.trainers.base import Trainer


def outside_of(models: Sequence[BoundModel], trainer: Trainer, others: Iterable[Snapshot] = ()) -> Outside:
    """What own code shares, as it is now, without what models and trainer put back before each client.

    Args:
        models: their own code is looked through, and what that imports.
        trainer: may put back more than the models.
        others: snapshots of further parts whose own code is looked through.
    """
    parts = [part for model in models for part in model.own_parts]
    parts += [part for snapshot in others for part in own_parts(snapshot.objects)]
    return Outside(parts, [*(model.outside for model in models), *trainer.restored])
