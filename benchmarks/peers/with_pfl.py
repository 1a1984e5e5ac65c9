"""pfl-research: `FederatedAveraging`, `FedProx`, `SCAFFOLD` and the Gaussian mechanism on its `SimulatedBackend`.

Users' datasets are made once and kept, so that pfl keeps their batches; users come in turn (its "minimize_reuse"). Its
own central evaluation runs after every round; without the change in `Algorithm`, pfl would also evaluate every user
before and after training in the first round. With two workers, two processes reduce through gloo, as pfl's
documentation has it.
"""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import torch
from common import CLIP, MU, SEED, TEST_BATCH_SIZE, Arguments, Clock, initial_model, load, parse_arguments, write
from torch import nn

ADDRESSES, RANK = "PFL_WORKER_ADDRESSES", "PFL_WORKER_RANK"


def main() -> None:
    arguments = parse_arguments(max_workers=2, strategies=("fedavg", "fedprox", "scaffold", "dp"))
    if arguments.workers > 1 and RANK not in os.environ:
        sys.exit(start_workers(arguments.workers))
    clock, accuracy = train(arguments)
    if os.environ.get(RANK, "0") == "0":
        write(arguments, "pfl-research", "pfl", clock, accuracy)


def start_workers(workers: int) -> int:
    """This script once per worker; pfl finds the addresses when it is imported."""
    ports = [free_port() for _ in range(workers)]
    environment = os.environ | {ADDRESSES: ",".join(f"localhost:{port}" for port in ports)}
    command = [sys.executable, *sys.argv]
    processes = [subprocess.Popen(command, env=environment | {RANK: str(rank)}) for rank in range(workers)]
    return int(any([process.wait() for process in processes]))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def train(arguments: Arguments) -> tuple[Clock, float]:
    """All rounds: the clock with the seconds of each, and the last one's test accuracy."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.algorithm.fedprox import FedProx, FedProxParams
    from pfl.algorithm.scaffold import SCAFFOLD, SCAFFOLDParams
    from pfl.callback.central_evaluation import CentralEvaluationCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.data.user_state import InMemoryUserStateStorage
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel
    from pfl.privacy.gaussian_mechanism import GaussianMechanism
    from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism

    class Net(nn.Module):
        """The job's model with the two methods pfl asks for; no layer cares whether it is being trained."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = initial_model(job)

        def loss(self, images, labels):
            return nn.functional.cross_entropy(self.layers(images), labels)

        @torch.no_grad()
        def metrics(self, images, labels):
            right = (self.layers(images).argmax(1) == labels).sum().item()
            return {"accuracy": Weighted(right, len(labels))}

    kinds = {"fedavg": FederatedAveraging, "fedprox": FedProx, "scaffold": SCAFFOLD, "dp": FederatedAveraging}

    class Algorithm(kinds[arguments.strategy]):
        """The algorithm without an evaluation on the users' data."""

        def get_next_central_contexts(self, *args, **kwargs):
            contexts, model, metrics = super().get_next_central_contexts(*args, **kwargs)
            if contexts is not None:
                contexts = tuple(replace(context, do_evaluation=False) for context in contexts)
            return contexts, model, metrics

    class Evaluation(CentralEvaluationCallback):
        """Central evaluation after every round, the first too, and not before training."""

        def on_train_begin(self, *, model):
            clock.start()
            return Metrics()

        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            found = super().after_central_iteration(aggregate_metrics, model, central_iteration=central_iteration + 1)
            clock.lap()
            accuracies.append(dict(found[1].to_simple_dict())["Central val | accuracy"])
            return found

    job, clock, accuracies = arguments.job, Clock(), []
    data = load(arguments.data, job)
    users = [PyTorchTensorDataset(samples, user_id=str(index)) for index, samples in enumerate(data.clients)]
    sampler = get_user_sampler("minimize_reuse", range(job.clients))
    federation = FederatedDataset(users.__getitem__, sampler)
    torch.manual_seed(SEED)
    net = Net()
    make_params, options = NNAlgorithmParams, {}
    if arguments.strategy == "fedprox":
        make_params, options = FedProxParams, {"mu": MU}
    if arguments.strategy == "scaffold":
        make_params = SCAFFOLDParams
        options = {"population": job.clients, "use_gradient_as_control_variate": False}
        options["user_state_storage"] = InMemoryUserStateStorage()
    weighting = [] if arguments.strategy == "scaffold" else [WeightByDatapoints()]  # SCAFFOLD's statistics have none
    if arguments.strategy == "dp":
        weighting = [CentrallyAppliedPrivacyMechanism(GaussianMechanism(CLIP, relative_noise_stddev=1.0))]
    Algorithm().run(
        algorithm_params=make_params(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds,
            train_cohort_size=job.cohort,
            val_cohort_size=None,
            **options,
        ),
        backend=SimulatedBackend(training_data=federation, val_data=federation, postprocessors=weighting),
        model=PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=job.epochs, local_learning_rate=job.lr, local_batch_size=job.batch_size
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=TEST_BATCH_SIZE),
        callbacks=[
            Evaluation(
                PyTorchTensorDataset(data.test), model_eval_params=NNEvalHyperParams(local_batch_size=TEST_BATCH_SIZE)
            )
        ],
        send_metrics_to_platform=False,
    )
    return clock, accuracies[-1]


if __name__ == "__main__":
    main()
