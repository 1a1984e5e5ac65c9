"""TAG: the embeddings of a text's tokens are searched for, and read as the nearest tokens.

Deng et al., "TAG: Gradient Attack on Transformer-based Language Models", Findings of EMNLP 2021, arXiv 2103.06819:
squared L2 plus alpha times L1 distance of gradients, alpha falling from layer to layer. Differences: the label is read
from the last layer; the gradient of the embedding itself, which has rows for the tokens of the text alone, narrows the
choice of tokens unless `rows` is false.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.gradients import Training, generator_of, num_trained, objection_to, squared_norm, target_of
from flrl.attacks.labels import labels_of, objection_to_labels
from flrl.attacks.matching import Guess, Step, adam, best_of, check_at_least, check_positive


class TAG(Attack):
    """Minimises the distance by Adam in float64, from normal noise of the embedding's scale.

    Args:
        iterations: steps of Adam, with rates as in `adam`.
        restarts: searches from other noise, of which the one with the least distance is kept.
        lr: Adam's learning rate, relative to the embedding's standard deviation.
        alpha: weight of the L1 distance in the first layer.
        decay: factor of `alpha` from one parameter to the next.
        rows: whether only tokens whose rows of the embedding have a gradient are considered.
        max_samples: more are not tried.
    """

    knows = "An honest but curious server, or an eavesdropper: the model that was sent, one gradient, the vocabulary."
    source = "Deng et al., Findings of EMNLP 2021, arXiv 2103.06819"
    on_sums = True

    def __init__(
        self,
        *,
        iterations: int = 1000,
        restarts: int = 3,
        lr: float = 0.3,
        alpha: float = 0.1,
        decay: float = 0.9,
        rows: bool = True,
        max_samples: int = 4,
    ) -> None:
        for name, value in (("iterations", iterations), ("restarts", restarts), ("max_samples", max_samples)):
            check_at_least(name, value, 1)
        check_positive("lr", lr)
        check_at_least("alpha", alpha, 0)
        check_positive("decay", decay)
        self.iterations, self.restarts, self.lr, self.alpha, self.decay = iterations, restarts, lr, alpha, decay
        self.rows, self.max_samples = rows, max_samples

    def objection(self, observation: Observation) -> str | None:
        """Inputs are no tokens, no embedding takes them, too many samples, or several steps."""
        found = objection_to(observation, max_samples=self.max_samples, tokens=True)
        found = found or objection_to_labels(observation)
        if found:
            return found
        if token_embedding(Training.of(observation, torch.float64), observation) is None:
            return "no trained nn.Embedding of the module takes its inputs"
        return None

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Tokens, `[n, length]`, and labels."""
        training, target = Training.of(observation, torch.float64), target_of(observation, torch.float64)
        embedding = token_embedding(training, observation)
        assert embedding is not None
        names = list(training.start)
        table = training.start[f"{embedding}.weight"].detach()
        place = names.index(f"{embedding}.weight")
        labels, shape = labels_of(observation), (num_trained(observation), *observation.inputs.shape)
        others = [index for index in range(len(names)) if index != place]
        scale = squared_norm([target[index] for index in others])
        tokens, deviation = torch.zeros(shape, dtype=observation.inputs.dtype), table.std()

        def search(restart: int, step: Step) -> Guess:
            generator = generator_of(observation, "tag", restart)
            guess = torch.randn((*shape, table.shape[1]), generator=generator, dtype=torch.float64)
            vectors = guess.mul_(deviation).requires_grad_()

            def objective() -> Tensor:
                with embedded(training.user_module, embedding, vectors):
                    found = training.sent(tokens, labels)
                distances = [self._distance(found[i] - target[i], scale, depth) for depth, i in enumerate(others)]
                return torch.stack(distances).sum()

            lr, iterations = self.lr * float(deviation), self.iterations
            loss, done = adam(
                [vectors], objective, lr=lr, iterations=iterations, signed=False, box=lambda: None, step=step
            )
            return Guess((vectors.detach(),), loss, restart, done)

        best = best_of(search, restarts=self.restarts, iterations=self.iterations, tolerance=1e-4, progress=progress)
        distances = torch.cdist(best.tensors[0].flatten(0, -2), table)
        if self.rows:
            distances[:, target[place].abs().sum(1) == 0] = torch.inf
        nearest = distances.argmin(1).view(shape).to(observation.inputs.dtype)
        return Finding(inputs=nearest, labels=labels, numbers=best.numbers)

    def _distance(self, difference: Tensor, scale: Tensor, depth: int) -> Tensor:
        absolute = difference.abs().sum() / scale.sqrt()
        return difference.square().sum() / scale + self.alpha * self.decay**depth * absolute


def token_embedding(training: Training, observation: Observation) -> str | None:
    """The name of the trained `nn.Embedding` that is given the inputs themselves, or None."""
    tokens = torch.zeros(2, *observation.inputs.shape, dtype=observation.inputs.dtype)
    found: list[str] = []
    handles = []
    for name, layer in training.user_module.named_modules():
        if isinstance(layer, nn.Embedding) and f"{name}.weight" in training.start:

            def note(layer: object, arguments: tuple[Tensor, ...], name: str = name) -> None:
                if arguments[0].shape == tokens.shape and torch.equal(arguments[0], tokens):
                    found.append(name)

            handles.append(layer.register_forward_pre_hook(note))
    labels = torch.zeros(2, dtype=torch.int64)
    try:
        training.loss(training.start, tokens, labels)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


@contextmanager
def embedded(module: nn.Module, name: str, vectors: Tensor) -> Iterator[None]:
    """Have a layer return vectors in place of its output while the module is called."""

    def instead(layer: object, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return vectors

    handle = module.get_submodule(name).register_forward_hook(instead)
    try:
        yield
    finally:
        handle.remove()
