"""Flower: `FedAvg` and its Simulation Runtime with Ray, one actor per worker.

Every actor reads MNIST once and keeps it; a client's node number is its number in the partition. Evaluation is Flower's
evaluation on the server. As `run_simulation` has it, models travel between server and actors as serialised messages.
Neither starting Ray nor the actors' imports and data are timed: a round that does not count comes first.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from functools import cache
from pathlib import Path

import torch
from common import (
    JOBS,
    SEED,
    Arguments,
    Clock,
    Data,
    accuracy,
    batches,
    initial_model,
    load,
    parse_arguments,
    read_split,
    write,
)
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

client_app = ClientApp()


@cache
def prepared(name: str, folder: str) -> tuple[Data, nn.Module]:
    """What an actor keeps: the data and a model to train."""
    torch.set_num_threads(1)
    return load(Path(folder), JOBS[name]), initial_model(JOBS[name])


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One client's local epochs."""
    config = message.content["config"]
    job = JOBS[config["job"]]
    data, model = prepared(config["job"], config["folder"])
    samples = data.clients[int(context.node_config["partition-id"])]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=job.lr)
    for _ in range(job.epochs):
        for images, labels in batches(samples, job.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(samples[1])}),
    }
    return Message(content=RecordDict(content), reply_to=message)


def server_app(arguments: Arguments, clock: Clock, accuracies: list[float]) -> ServerApp:
    """The server of one job."""
    app, job = ServerApp(), arguments.job
    test = read_split(arguments.data, "t10k")

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0:
            clock.start()
            return None
        model.load_state_dict(arrays.to_torch_state_dict())
        accuracies.append(accuracy(model, test))
        clock.lap()
        return MetricRecord({"accuracy": accuracies[-1]})

    model = initial_model(job)

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=job.cohort / job.clients,
            fraction_evaluate=0.0,
            min_train_nodes=job.cohort,
            min_available_nodes=job.clients,
        )
        config = ConfigRecord({"job": arguments.name, "folder": str(arguments.data)})
        arrays = ArrayRecord(model.state_dict())
        strategy.start(grid, arrays, num_rounds=1, train_config=config)
        strategy.start(grid, arrays, num_rounds=job.rounds, train_config=config, evaluate_fn=evaluate)

    return app


def main() -> None:
    arguments = parse_arguments(max_workers=os.cpu_count() or 1)
    clock, accuracies = Clock(), []
    torch.manual_seed(SEED)
    run_simulation(
        server_app(arguments, clock, accuracies),
        client_app,
        num_supernodes=arguments.job.clients,
        backend_config={
            "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
            "init_args": {"num_cpus": arguments.workers, "num_gpus": 0, "include_dashboard": False},
        },
    )
    write(arguments, "Flower", "flwr", clock.laps, accuracies[-1])


if __name__ == "__main__":
    # Under its own name, what actors run is found by name, and what they keep stays theirs.
    import with_flower

    with_flower.main()
