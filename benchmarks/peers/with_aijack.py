"""AIJack: `FedAVGAPI`, which trains the clients it has, all of them, in every communication.

It has no sampling of clients: there are as many client objects as train in a round, and after every round their data
loaders are exchanged for those of the next cohort. A "data loader" is a list of batches that are views of a client's
tensors. Parameters are communicated, not gradients. AIJack trains clients one after the other.
"""

import random

import torch
from aijack.collaborative.fedavg import FedAVGAPI, FedAVGClient, FedAVGServer
from aijack.utils.metrics import accuracy_torch_dataloader
from common import SEED, TEST_BATCH_SIZE, Clock, Samples, batches, initial_model, load, parse_arguments, write


class Batches(list):
    """A client's batches; AIJack takes `len(dataset)` as the client's weight."""

    def __init__(self, samples: Samples, batch_size: int) -> None:
        super().__init__(batches(samples, batch_size))
        self.dataset = samples[1]


def main() -> None:
    arguments = parse_arguments()
    job = arguments.job
    data = load(arguments.data, job)
    loaders = [Batches(samples, job.batch_size) for samples in data.clients]
    test = batches(data.test, TEST_BATCH_SIZE)
    clients = [FedAVGClient(initial_model(job), index, lr=job.lr, send_gradient=False) for index in range(job.cohort)]
    server = FedAVGServer(clients, initial_model(job), lr=job.lr)
    clock, accuracies, choice = Clock(), [], random.Random(SEED)

    def next_round(api: FedAVGAPI) -> None:
        """Called after every round: evaluate, and choose the next cohort."""
        accuracies.append(accuracy_torch_dataloader(server.server_model, test, xpos=0, ypos=1))
        api.local_dataloaders = choice.sample(loaders, job.cohort)
        clock.lap()

    api = FedAVGAPI(
        server,
        clients,
        torch.nn.CrossEntropyLoss(),
        [torch.optim.SGD(client.parameters(), lr=job.lr) for client in clients],
        choice.sample(loaders, job.cohort),
        num_communication=job.rounds,
        local_epoch=job.epochs,
        use_gradients=False,
        custom_action=next_round,
    )
    torch.manual_seed(SEED)
    clock.start()
    api.run()
    write(arguments, "AIJack", "aijack", clock.laps, float(accuracies[-1]))


if __name__ == "__main__":
    main()
