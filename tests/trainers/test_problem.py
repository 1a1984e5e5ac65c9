"""What an engine is given."""

import numpy as np
import torch

from flrl.bound_model import BoundModel
from flrl.trainers import LocalProblem
from flrl.types import Broadcast, ClientTask
from tests.toys import Linear, blobs


def test_what_a_client_remembers_comes_to_the_models_device() -> None:
    """ "meta" stands for a GPU: no number of it can be read, and none is combined with a CPU's."""
    model = BoundModel(Linear().to("meta"), personal=["net.bias"])
    vector = torch.empty(model.layout.size, device="meta")
    memory = {name: torch.ones(3) for name in ("personal", "control", "transforms/top_k/error", "optimizer/0/step")}
    task = ClientTask(1, 0, 8, 8.0, {**memory, "position": torch.tensor(2)})
    problem = LocalProblem.of(model, blobs(), np.arange(8), task, Broadcast(1, vector, 8.0), seed=0)
    devices = {name: tensor.device.type for name, tensor in problem.task.memory.items()}
    assert devices == {
        "personal": "meta",
        "control": "meta",
        "transforms/top_k/error": "meta",
        "optimizer/0/step": "cpu",  # torch reads the number of steps, wherever the parameters are
        "position": "cpu",
    }
    assert problem.position == 2
    assert problem.start.shape == (model.layout.local_size,)
    assert {name: tensor.device.type for name, tensor in task.memory.items()} == dict.fromkeys(task.memory, "cpu")
