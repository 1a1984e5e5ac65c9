"""FLSim: its synchronous trainer with weighted FedAvg, fed batches made beforehand by `FLDataProviderFromList`.

No training metrics are reported, and the evaluation after every round goes through a reporter that counts right
answers. With two workers, two processes have half of the clients each and reduce through gloo; the first evaluates.

FLSim 0.1.0 has mutable defaults in dataclasses, which Python 3.11 and newer only accepts if they are hashable: while
FLSim is imported, and then only, dataclasses are made hashable.
"""

import dataclasses
import functools
import logging
import socket

import hydra.utils
import opacus  # noqa: F401, here so that only FLSim's own dataclasses are touched below
import torch
from common import SEED, TEST_BATCH_SIZE, Arguments, Clock, Job, batches, initial_model, load, parse_arguments, write
from torch import nn

original = dataclasses.dataclass
dataclasses.dataclass = functools.partial(original, unsafe_hash=True)
try:
    import flsim.configs  # noqa: F401, registers FLSim's configurations
    from flsim.data.data_provider import FLDataProviderFromList
    from flsim.interfaces.metrics_reporter import IFLMetricsReporter
    from flsim.interfaces.model import IFLModel
    from flsim.utils.config_utils import fl_config_from_json
    from flsim.utils.distributed.fl_distributed import FLDistributedUtils
    from flsim.utils.simple_batch_metrics import FLBatchMetrics
finally:
    dataclasses.dataclass = original


class Model(IFLModel):
    """The job's model as FLSim wants it; a batch is images and labels."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def fl_forward(self, batch):
        """The loss of a batch."""
        images, labels = batch
        scores = self.module(images)
        loss = nn.functional.cross_entropy(scores, labels)
        return FLBatchMetrics(
            loss=loss, num_examples=len(labels), predictions=scores.detach(), targets=labels, model_inputs=[]
        )

    def fl_create_training_batch(self, batch):
        """Batches are ready."""
        return batch

    def fl_get_module(self):
        """What is trained."""
        return self.module

    def fl_cuda(self):
        """There is no GPU here."""
        raise NotImplementedError

    def get_eval_metrics(self, batch):
        """The loss and scores of a test batch."""
        return self.fl_forward(batch)

    def get_num_examples(self, batch):
        """Its images."""
        return len(batch[1])


class Reporter(IFLMetricsReporter):
    """Counts right answers, and ends the clock's laps: FLSim reports last in a round."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.accuracies: list[float] = []
        self.reset()

    def add_batch_metrics(self, metrics):
        """Count a batch."""
        self.right += int((metrics.predictions.argmax(1) == metrics.targets).sum())
        self.count += metrics.num_examples

    def aggregate(self, one_user_metrics):
        """Not called by the synchronous trainer."""
        raise NotImplementedError

    def report_metrics(self, reset, stage, extra_metrics=None, **kwargs):
        """Called after the round's evaluation; always keep the newest model."""
        self.accuracies.append(self.right / self.count)
        self.reset()
        self.clock.lap()
        return self.accuracies[-1], True

    def reset(self):
        """Begin to count."""
        self.right = self.count = 0

    def set_summary_writer(self, log_dir):
        """Nothing is written."""
        raise NotImplementedError


def main() -> None:
    arguments = parse_arguments(max_workers=2)
    if arguments.workers == 1:
        train(0, arguments, "")
        return
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"tcp://localhost:{found.getsockname()[1]}"
    torch.multiprocessing.spawn(train, (arguments, address), nprocs=arguments.workers)


def train(rank: int, arguments: Arguments, address: str) -> None:
    """One process: all rounds with its part of the clients."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    job, workers = arguments.job, arguments.workers
    FLDistributedUtils.dist_init(rank, workers, address, use_cuda=False)
    data = load(arguments.data, job)
    model = Model(initial_model(job))
    provider = FLDataProviderFromList(
        [batches(samples, job.batch_size) for samples in data.clients[rank::workers]],
        [batches(data.test, TEST_BATCH_SIZE)],
        [],
        model,
    )
    torch.manual_seed(SEED)
    trainer = hydra.utils.instantiate(configuration(job).trainer, model=model, cuda_enabled=False)
    reporter = Reporter(Clock())
    reporter.clock.start()
    trainer.train(provider, reporter, num_total_users=job.clients, distributed_world_size=workers, rank=rank)
    if rank == 0:
        write(arguments, "FLSim", "flsim", reporter.clock.laps, reporter.accuracies[-1])


def configuration(job: Job):
    """FLSim counts in epochs: so many rounds that every client could have taken part once."""
    rounds_per_epoch = job.clients // job.cohort
    return fl_config_from_json(
        {
            "trainer": {
                "_base_": "base_sync_trainer",
                "server": {
                    "_base_": "base_sync_server",
                    "server_optimizer": {"_base_": "base_fed_avg_with_lr", "lr": 1.0, "momentum": 0.0},
                    "active_user_selector": {
                        "_base_": "base_uniformly_random_active_user_selector",
                        "user_selector_seed": SEED,
                    },
                },
                "client": {
                    "epochs": job.epochs,
                    "optimizer": {"_base_": "base_optimizer_sgd", "lr": job.lr, "momentum": 0},
                },
                "users_per_round": job.cohort,
                "epochs": job.rounds / rounds_per_epoch,
                "eval_epoch_frequency": 0.5 / rounds_per_epoch,
                "always_keep_trained_model": True,
                "report_train_metrics": False,
                "do_eval": True,
            }
        }
    )


if __name__ == "__main__":
    main()
