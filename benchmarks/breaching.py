"""The `breaching` package's attacks beside ours: the same net, images, gradients and iterations.

    python -m benchmarks.breaching --images 5

Needs `breaching==0.1.2` (without its dependencies, and with ours, in an environment of its own). Nets are the LeNet of
the DLG paper (sigmoid for DLG, else leaky ReLU) and McMahan's 2NN, images the first of MNIST's
training set, each one's gradient in float32. Both run on one thread, one after the other in the same process; seconds
are those of the processor. An image counts as recovered below a mean squared error of 0.01 in [0, 1] pixels.
"""

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from flrl.attacks import Attack, Observation
from flrl.attacks.analytic import Analytic
from flrl.attacks.dlg import DLG
from flrl.attacks.inverting_gradients import InvertingGradients
from flrl.attacks.rgap import RGAP
from flrl.data.datasets import mnist
from flrl.models.nets import dlg_lenet, mlp_2nn
from tests.attacks.given import classifier, observe, quiet

SHAPE = {"input_shape": [1, 28, 28], "num_classes": 10}
RECOVERED = 1e-2


def theirs(name: str, overrides: list[str], net: nn.Module, observation: Observation, label: Tensor | None) -> Tensor:
    """What breaching's attack finds, `[n, 1, 28, 28]`."""
    import breaching

    with contextlib.redirect_stdout(io.StringIO()):
        config = breaching.get_attack_config(name, overrides)
    metadata = OmegaConf.create(
        {
            "shape": [1, 28, 28],
            "mean": [0.0],
            "std": [1.0],
            "modality": "vision",
            "classes": 10,
            "task": "classification",
        }
    )
    gradients = [value.float() for value in observation.parts(-observation.update).values()]
    payload = [{"parameters": list(net.parameters()), "buffers": None, "metadata": metadata}]
    local = {"num_data_points": 1, "labels": label, "local_hyperparams": None, "data_key": "inputs"}
    shared = [{"gradients": gradients, "buffers": None, "metadata": local}]
    attacker = breaching.attacks.prepare_attack(
        net, nn.CrossEntropyLoss(), config, {"dtype": torch.float, "device": torch.device("cpu")}
    )
    with contextlib.redirect_stdout(io.StringIO()):
        found, _ = attacker.reconstruct(payload, shared, {})
    return found["data"].detach().view(1, 1, 28, 28)


def ours(attack: Attack, observation: Observation) -> Tensor:
    """What our attack finds, `[n, 1, 28, 28]`."""
    assert attack.objection(observation) is None
    found = attack.find(observation, quiet).inputs
    assert found is not None
    return found


def measured(find: Callable[[], Tensor], truth: Tensor) -> tuple[float, float] | str:
    """Mean squared error and processor seconds; or the error that it ended with."""
    begin = time.process_time()
    try:
        found = find().clamp(0, 1)
    except Exception as error:  # whatever the peer raises is its result
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    error = (found - truth).square().mean().nan_to_num(1.0)
    return float(error), time.process_time() - begin


def line(name: str, results: list[tuple[float, float] | str]) -> str:
    """A row of the table."""
    failed = [result for result in results if isinstance(result, str)]
    if failed:
        return f"| {name} | {failed[0]} | | |"
    errors, seconds = zip(*[result for result in results if not isinstance(result, str)], strict=True)
    recovered = sum(error < RECOVERED for error in errors)
    return (
        f"| {name} | {recovered}/{len(errors)} | {statistics.median(errors):.1e} | {statistics.median(seconds):.1f} |"
    )


def main() -> None:
    """Run the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--data", default="data")
    parser.add_argument("--cases", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = mnist(data_dir=arguments.data, mean=[0.0], std=[1.0]).train
    images = source.inputs[: arguments.images].float() / 255  # type: ignore[attr-defined]
    images = images.view(-1, 1, 28, 28)
    labels = source.targets[: arguments.images]  # type: ignore[attr-defined]
    print("| attack, net | recovered | median MSE | processor s |")
    print("|---|---|---|---|")
    for name, (make, attack, config, overrides, told) in cases().items():
        if arguments.cases and name not in arguments.cases:
            continue
        results: dict[str, list[Any]] = {"flrl": [], "breaching": []}
        for index in range(len(images)):
            torch.manual_seed(index)
            net, image, label = make(), images[index : index + 1], labels[index : index + 1]
            observation = observe(classifier(net), image, label, seed=index)
            results["flrl"].append(measured(lambda seen=observation, one=attack: ours(one, seen), image))
            known = label if told else None
            run = lambda seen=observation, own=net, known=known, c=config, o=overrides: theirs(c, o, own, seen, known)  # noqa: E731
            results["breaching"].append(measured(run, image))
        for who, rows in results.items():
            print(line(f"{name}, {who}", rows), flush=True)


def cases() -> dict[str, tuple[Callable[[], nn.Module], Attack, str, list[str], bool]]:
    """Net, our attack, breaching's configuration, its overrides, and whether it is told the label, by name."""

    def sigmoid() -> nn.Module:
        return dlg_lenet(**SHAPE)

    def leaky() -> nn.Module:
        return dlg_lenet(**SHAPE, activation="leaky_relu", init_bound=None)

    def unbiased() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2, padding=2, bias=False), nn.LeakyReLU(0.2),
            nn.Conv2d(12, 12, 5, stride=2, padding=2, bias=False), nn.LeakyReLU(0.2),
            nn.Conv2d(12, 12, 5, padding=2, bias=False), nn.Flatten(), nn.LeakyReLU(0.2), nn.Linear(588, 10),
        )  # fmt: skip

    # breaching's total variation takes three channels alone.
    steps = ["optim.max_iterations=500", "regularization.total_variation.scale=0"]
    geiping = InvertingGradients(iterations=500, total_variation=0)
    return {
        "DLG 60 iterations, sigmoid LeNet": (
            sigmoid, DLG(iterations=60, restarts=1), "deepleakage", ["optim.max_iterations=60"], False,
        ),
        "inverting gradients 500 steps, leaky LeNet": (leaky, geiping, "invertinggradients", steps, True),
        "inverting gradients 500 steps, 2NN": (lambda: mlp_2nn(**SHAPE), geiping, "invertinggradients", steps, True),
        "R-GAP, leaky LeNet": (leaky, RGAP(), "rgap", [], True),
        "R-GAP, leaky LeNet without hidden biases": (unbiased, RGAP(), "rgap", [], True),
        "closed form, 2NN": (lambda: mlp_2nn(**SHAPE), Analytic(), "analytic", [], True),
    }  # fmt: skip


if __name__ == "__main__":
    main()
