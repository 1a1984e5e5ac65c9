"""Flower's SecAgg+: rounds with the server and all clients in this process, without training and without Ray.

`benchmarks/peers/secagg.py` starts this in an environment of its own. A line on standard input asks for a round, whose
costs are a line of JSON on standard output; the mean goes to a file.

Flower's workflow is the server, and its mod is each client. Only what lies between them is written here: a grid that
turns every message into bytes and back, calls the mod, and keeps each client's context for the next stage. Its own
seconds, and those in which the strategy takes the mean of as many copies of the result, are counted apart.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.server import LegacyContext
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

MAX_WEIGHT = 1000
"""Flower's default, and every client's number of samples: the weight at which it quantises most finely."""


class Loopback(Grid):
    """Calls each client's mod in place of sending it a message.

    Args:
        vectors: what clients return, float32 `[clients, numbers]`.

    Attributes:
        seconds: processor seconds of clients, by stage.
        transport: those of messages to bytes and back.
        up: bytes of all messages from clients.
        down: bytes of all messages to clients.
    """

    run = None

    def __init__(self, vectors: np.ndarray) -> None:
        ids = np.random.default_rng(0).integers(1, 2**62, len(vectors)).tolist()
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in ids}
        self.answers = {node: answer(vector) for node, vector in zip(ids, vectors, strict=True)}
        self.seconds = dict.fromkeys(Stage.all(), 0.0)
        self.transport = 0.0
        self.up = self.down = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The clients' answers."""
        return [self.answered(message) for message in messages]

    def answered(self, message: Message) -> Message:
        """One client's answer."""
        message, length = self.sent(message)
        self.down += length
        stage = message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
        started = time.process_time()
        reply = secaggplus_mod(message, self.contexts[message.metadata.dst_node_id], self.trained)
        self.seconds[stage] += time.process_time() - started
        reply, length = self.sent(reply)
        self.up += length
        return reply

    def trained(self, message: Message, context: Context) -> Message:
        """What a client that does not train answers with."""
        return Message(self.answers.pop(message.metadata.dst_node_id), reply_to=message)

    def sent(self, message: Message) -> tuple[Message, int]:
        """The message as the other side gets it, and its length in bytes."""
        started = time.process_time()
        data = message_to_proto(message).SerializeToString()
        received = message_from_proto(ProtoMessage.FromString(data))
        self.transport += time.process_time() - started
        return received, len(data)

    def set_run(self, run: object) -> None:
        """Not needed."""

    def get_node_ids(self) -> list[int]:
        """All clients."""
        return list(self.contexts)

    def create_message(self, *arguments: object, **options: object) -> Message:
        """Not needed."""
        raise NotImplementedError

    push_messages = pull_messages = create_message


class TimedFedAvg(FedAvg):
    """FedAvg, with the processor seconds of its mean."""

    seconds = 0.0

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[BaseException]
    ) -> object:
        """FedAvg's mean."""
        assert not failures, failures
        started = time.process_time()
        found = super().aggregate_fit(server_round, results, failures)
        self.seconds += time.process_time() - started
        return found


def answer(vector: np.ndarray) -> RecordDict:
    """A client's result."""
    result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), MAX_WEIGHT, {})
    return compat.fitres_to_recorddict(result, keep_input=False)


def once(round: int, vectors: np.ndarray, workflow: SecAggPlusWorkflow) -> tuple[dict[str, Any], np.ndarray]:
    """What a round costs, and its mean. The model that clients are sent is one number."""
    grid, strategy = Loopback(vectors), TimedFedAvg()
    context = LegacyContext(Context(1, 1, {}, RecordDict(), {}), strategy=strategy)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: round})
    model = ndarrays_to_parameters([np.zeros(1, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(model, keep_input=True)
    for node in grid.get_node_ids():
        context.client_manager.register(GridClientProxy(node, grid, 1))
    started = time.process_time()
    workflow(grid, context)
    seconds = time.process_time() - started
    found = compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], keep_input=True)
    (mean,) = parameters_to_ndarrays(found)
    assert mean.shape == vectors[0].shape, "the round was given up"
    clients = list(grid.seconds.values())
    costs = {
        "stages": [*clients, seconds - sum(clients) - grid.transport - strategy.seconds],
        "transport": grid.transport,
        "copies": strategy.seconds,
        "up": grid.up,
        "down": grid.down,
    }
    return costs, mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, required=True, help="what clients return, float32 [clients, numbers]")
    parser.add_argument("--shares", type=int, required=True, help="a client's neighbours and itself")
    parser.add_argument("--threshold", type=int, required=True)
    parser.add_argument("--mean", type=Path, required=True, help="where to write each round's mean")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    vectors = np.load(options.vectors)
    workflow = SecAggPlusWorkflow(options.shares, options.threshold, max_weight=MAX_WEIGHT)
    for round, _ in enumerate(sys.stdin, start=1):
        costs, mean = once(round, vectors, workflow)
        np.save(options.mean, mean)
        step = 2 * workflow.clipping_range / workflow.quantization_range
        print(json.dumps(costs | {"step": step, "version": version("flwr")}), flush=True)


if __name__ == "__main__":
    main()
