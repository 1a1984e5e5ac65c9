"""MI-FACE: an input for each class of which the model is as sure as can be.

Fredrikson, Jha, Ristenpart, "Model Inversion Attacks that Exploit Confidence Information and Basic Countermeasures",
CCS 2015, algorithm 1: gradient descent on `1 - p(class)`, until that is small or has long not become smaller. Steps are
along the gradient of `-log p(class)`, which has the same direction and does not vanish where p is small. The paper
cleans images with a denoising auto-encoder after some steps; here a Gaussian blur of each step may keep them smooth. It
shows what a class is like to the model, an average face where a class is a person, and no single sample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.confidence import needs_scores
from flrl.lightning.modes import evaluating

_SHOWN = 50


class MIFace(Attack):
    """Reconstructs a representative of each class from the model that the client sent back, or the mean model.

    Args:
        classes: classes to reconstruct; null: all.
        iterations: the most steps.
        lr: step along the gradient.
        patience: steps without improvement after which a class is done.
        confidence: probability of the class at which it is done.
        blur: standard deviation in pixels of a Gaussian blur of each step, for smooth images; 0: none.

    Raises:
        ValueError: a setting is invalid.
    """

    knows = "an honest but curious server, or whoever has the model: the model and the range of inputs"
    source = "Fredrikson et al., CCS 2015"
    on_sums = True

    def __init__(
        self,
        *,
        classes: Sequence[int] | None = None,
        iterations: int = 2000,
        lr: float = 0.1,
        patience: int = 100,
        confidence: float = 0.99,
        blur: float = 0.0,
    ) -> None:
        for name, value in (("iterations", iterations), ("patience", patience)):
            if value < 1:
                raise ValueError(f"attack.{name}={value}: must be at least 1")
        if not lr > 0:
            raise ValueError(f"attack.lr={lr}: must be positive")
        if not 0 < confidence <= 1:
            raise ValueError(f"attack.confidence={confidence}: must be above 0 and at most 1")
        if not blur >= 0:
            raise ValueError(f"attack.blur={blur}: must be at least 0")
        if classes is not None and (not classes or min(classes) < 0):
            raise ValueError(f"attack.classes={list(classes)}: must be classes from 0 on, or null")
        self.classes = classes
        self.iterations = iterations
        self.lr = lr
        self.patience = patience
        self.confidence = confidence
        self.blur = blur

    def objection(self, observation: Observation) -> str | None:
        """The reason why the attack does not apply: no model, no class scores, inputs that are no images."""
        inputs = observation.inputs
        if observation.local.only_gradient and len(observation.clients) == 1:
            return "the client has sent a gradient and no model"
        if not inputs.dtype.is_floating_point:
            return f"needs inputs that can be changed a little, and these are {inputs.dtype}"
        if self.blur and len(inputs.shape) != 3:
            return f"attack.blur={self.blur}: inputs of shape {inputs.shape} are no images"
        reason = super().objection(observation) or needs_scores(observation)
        if reason is None and self.classes is not None and max(self.classes) >= (inputs.num_classes or 0):
            return f"attack.classes={list(self.classes)}: there are {inputs.num_classes}"
        return reason

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Reconstruct a representative of each class."""
        inputs, layout = observation.inputs, observation.layout
        labels = torch.tensor(range(inputs.num_classes or 0) if self.classes is None else list(self.classes))
        vector = (observation.sent.double() + observation.update).to(observation.sent.dtype)
        tensors = layout.unflatten(vector)
        x = torch.zeros(len(labels), *inputs.shape, dtype=inputs.dtype).add(inputs.low)
        best, cost_of_best = x.clone(), torch.full((len(labels),), torch.inf)
        waited = torch.zeros(len(labels), dtype=torch.int64)
        active = torch.ones(len(labels), dtype=torch.bool)
        with evaluating(observation.module):
            for step in range(self.iterations):
                x = x.detach().requires_grad_()
                scores = functional_call(observation.module, tensors, (x,))
                cost = 1.0 - scores.softmax(1).gather(1, labels[:, None])[:, 0]
                with torch.no_grad():
                    better = cost < cost_of_best
                    best[better], cost_of_best[better] = x[better], cost[better].float()
                    waited = torch.where(better, 0, waited + 1)
                    active &= (waited < self.patience) & (cost_of_best > 1.0 - self.confidence)
                if not active.any():
                    break
                (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(scores, labels, reduction="sum"), x)
                if self.blur:
                    gradient = blurred(gradient, self.blur)
                x = torch.minimum(torch.maximum(x.detach() - self.lr * gradient, inputs.low), inputs.high)
                if step % _SHOWN == 0:
                    progress(step / self.iterations, f"confidence {1.0 - float(cost_of_best.mean()):.3f}")
        sure = 1.0 - cost_of_best
        progress(1.0, f"confidence {float(sure.mean()):.3f}")
        numbers = {"confidence": float(sure.mean()), "lowest_confidence": float(sure.min())}
        return Finding(inputs=best, labels=labels, numbers=numbers)


def blurred(images: Tensor, std: float) -> Tensor:
    """Images `[n, channels, height, width]` under a Gaussian blur with a standard deviation in pixels."""
    reach = max(1, round(3 * std))
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype)
    weights = torch.exp(-0.5 * (offsets / std) ** 2)
    weights /= weights.sum()
    count = images.shape[1]
    padded = nn.functional.pad(images, (reach,) * 4, mode="replicate")
    rows = nn.functional.conv2d(padded, weights.view(1, 1, -1, 1).expand(count, 1, -1, 1), groups=count)
    return nn.functional.conv2d(rows, weights.view(1, 1, 1, -1).expand(count, 1, 1, -1), groups=count)
