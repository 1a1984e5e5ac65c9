"""fluke: `FedAVG`, `FedProx`, `SCAFFOLD` and `Ditto` over `FastDataLoader`s, which hold tensors and slice them.

Everything is kept in memory; under FedAvg and FedProx clients forget their model after a round (`persistency`), or a
thousand of them would keep one each. Of the evaluator's metrics only the accuracy is computed. fluke trains clients one
after the other, in one process; what it does after the last round (`finalize`) is not timed.
"""

import torch
from common import MU, SEED, TEST_BATCH_SIZE, Clock, initial_model, load, parse_arguments, write
from fluke import DDict, FlukeENV
from fluke.algorithms.ditto import Ditto
from fluke.algorithms.fedavg import FedAVG
from fluke.algorithms.fedprox import FedProx
from fluke.algorithms.scaffold import SCAFFOLD
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from fluke.evaluation import ClassificationEval
from fluke.utils import FederationObserver, ServerObserver
from torchmetrics import Accuracy

ALGORITHMS = {
    "fedavg": (FedAVG, {}),
    "fedprox": (FedProx, {"mu": MU}),
    "scaffold": (SCAFFOLD, {}),
    "ditto": (Ditto, {"lam": MU, "tau": 1}),
}
"""By strategy: the class, and what its clients take besides."""


class Rounds(FederationObserver, ServerObserver):
    """Notes when rounds end and what their evaluation found."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.accuracies: list[float] = []

    def server_evaluation(self, round, eval_type, evals, **kwargs) -> None:
        """Called after each evaluation of the global model."""
        self.accuracies.append(evals["accuracy"])

    def end_round(self, round) -> None:
        """Called after the round's evaluation."""
        self.clock.lap()


def main() -> None:
    arguments = parse_arguments(strategies=tuple(ALGORITHMS))
    kind, options = ALGORITHMS[arguments.strategy]
    job = arguments.job
    data = load(arguments.data, job)
    environment = FlukeENV()
    environment.set_seed(SEED)
    environment.set_device("cpu")
    environment.set_inmemory(True)
    environment.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=True)
    environment.set_evaluator(
        ClassificationEval(eval_every=1, n_classes=10, accuracy=Accuracy(task="multiclass", num_classes=10, top_k=1))
    )
    optimizer = OptimizerConfigurator(DDict(name="SGD", lr=job.lr), DDict(name="StepLR", step_size=1, gamma=1))
    make_client, make_server = kind.get_client_class(kind), kind.get_server_class(kind)
    clients = [
        make_client(
            index=index,
            train_set=FastDataLoader(*samples, num_labels=10, batch_size=job.batch_size, skip_singleton=False),
            test_set=None,
            optimizer_cfg=optimizer,
            loss_fn=torch.nn.CrossEntropyLoss(),
            local_epochs=job.epochs,
            persistency=arguments.strategy in ("scaffold", "ditto"),
            **(options | ({"model": initial_model(job)} if kind is Ditto else {})),
        )
        for index, samples in enumerate(data.clients)
    ]
    test = FastDataLoader(*data.test, num_labels=10, batch_size=TEST_BATCH_SIZE)
    server = make_server(model=initial_model(job), test_set=test, clients=clients, weighted=True)
    algorithm = kind(job.clients, None, None, clients=clients, server=server)
    rounds = Rounds()
    algorithm.set_callbacks(rounds)
    rounds.clock.start()
    algorithm.run(n_rounds=job.rounds, eligible_perc=job.cohort / job.clients, finalize=False)
    write(arguments, "fluke", "fluke-fl", rounds.clock, rounds.accuracies[job.rounds - 1])


if __name__ == "__main__":
    main()
