"""What workers fold apart merges into what one worker folds: the interface that other backends stand on."""

from functools import partial

import pytest
import torch

from flrl.backends import SerialBackend
from flrl.backends.worker import prepare
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.types import Broadcast, ClientReport, ClientTask
from tests.toys import Linear, Rich, make_worker


@pytest.mark.parametrize("dealt", [[(0, 1, 2)], [(2,), (0, 1)], [(1,), (2,), (0,)], [(), (1, 0, 2)]])
def test_any_dealing_of_clients_gives_the_same_bits(dealt: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    worker = make_worker(strategy, module=Rich())
    broadcast = Broadcast(1, worker.model.vector.clone(), 90.0)
    tasks = [ClientTask(1, client, int(size), float(size)) for client, size in enumerate(worker.data.sizes)]
    reported: list[ClientReport] = []
    whole, _ = worker.train(broadcast, tasks, reported.append)
    assert [report.client_id for report in reported] == [0, 1, 2]
    parts = [worker.train(broadcast, [tasks[client] for client in part], lambda report: None)[0] for part in dealt]
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    (means, weight), (expected, total) = merged.result(), whole.result()
    assert means["update"].numpy().tobytes() == expected["update"].numpy().tobytes()
    assert weight == total == 90.0


def test_what_cannot_run_here_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend\.threads=0: must be at least 1"):
        SerialBackend(threads=0)
    with pytest.raises(ValueError, match=r"^threads=0: must be at least 1$"):
        prepare(Linear(), threads=0, device="cpu")
