"""FedLab: its standalone pipeline with the handlers and serial trainers of FedAvg, FedProx and SCAFFOLD.

A client's "data loader" is a list of batches that are views of its tensors, as FedLab iterates over whatever the user's
`FedDataset` returns. FedLab's mean is not weighted by samples: all clients have equally many here. Its pipeline leaves
evaluation to the user; FedLab's own `evaluate` is called after every round. FedLab trains clients one after the other.
Its Ditto cannot be run: it calls the module `tqdm`, and reads attributes that nothing sets.
"""

import random

import torch
from common import (
    MU,
    SEED,
    TEST_BATCH_SIZE,
    Clock,
    Data,
    Samples,
    batches,
    initial_model,
    load,
    parse_arguments,
    write,
)
from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
from fedlab.contrib.algorithm.fedprox import FedProxSerialClientTrainer, FedProxServerHandler
from fedlab.contrib.algorithm.scaffold import ScaffoldSerialClientTrainer, ScaffoldServerHandler
from fedlab.contrib.dataset.basic_dataset import FedDataset
from fedlab.core.standalone import StandalonePipeline
from fedlab.utils.functional import evaluate

KINDS = {
    "fedavg": (FedAvgServerHandler, FedAvgSerialClientTrainer),
    "fedprox": (FedProxServerHandler, FedProxSerialClientTrainer),
    "scaffold": (ScaffoldServerHandler, ScaffoldSerialClientTrainer),
}


class Clients(FedDataset):
    """Clients' samples, cut into batches once."""

    def __init__(self, data: Data, batch_size: int) -> None:
        self.loaders = [batches(samples, batch_size) for samples in data.clients]

    def get_dataloader(self, id: int, batch_size: int) -> list[Samples]:
        """What the trainer iterates over."""
        return self.loaders[id]


class Pipeline(StandalonePipeline):
    """Evaluates the global model after every round."""

    def __init__(self, handler, trainer, test: list[Samples]) -> None:
        super().__init__(handler, trainer)
        self.test = test
        self.clock = Clock()
        self.accuracies: list[float] = []

    def evaluate(self) -> None:
        """Called after every round."""
        self.accuracies.append(evaluate(self.handler.model, torch.nn.CrossEntropyLoss(), self.test)[1])
        self.clock.lap()


def main() -> None:
    arguments = parse_arguments(strategies=tuple(KINDS))
    make_handler, make_trainer = KINDS[arguments.strategy]
    job = arguments.job
    data = load(arguments.data, job)
    random.seed(SEED)
    handler = make_handler(initial_model(job), job.rounds, job.cohort / job.clients)
    trainer = make_trainer(initial_model(job), job.clients)
    trainer.setup_dataset(Clients(data, job.batch_size))
    trainer.setup_optim(job.epochs, job.batch_size, job.lr, *([MU] if arguments.strategy == "fedprox" else []))
    if arguments.strategy == "scaffold":
        handler.setup_optim(1.0)
    pipeline = Pipeline(handler, trainer, batches(data.test, TEST_BATCH_SIZE))
    torch.manual_seed(SEED)
    pipeline.clock.start()
    pipeline.main()
    write(arguments, "FedLab", "fedlab", pipeline.clock, pipeline.accuracies[-1])


if __name__ == "__main__":
    main()
