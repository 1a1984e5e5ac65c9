"""What a client's training would have sent for guessed samples, as a function that can be differentiated.

The loss is that of the module's own `training_step`. Several local steps are unrolled, as in Geiping et al., NeurIPS
2020, arXiv 2003.14053, section 6, and Dimitrov et al., TMLR 2022, arXiv 2206.12395: plain SGD over guessed batches in
one fixed order, since the client's is unknown. BatchNorm takes the statistics of the batch; dropout, whose masks nobody
else knows, is off.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from flrl.attacks.base import Inputs, Local, Observation
from flrl.lightning.local_step import StepModule
from flrl.lightning.stand_in import TrainerStandIn, attached, configure
from flrl.lightning.steps import loss_of, replaced
from flrl.seeding import seed_for


@dataclass(frozen=True, slots=True)
class Training:
    """One client's training from the model that it was sent.

    Attributes:
        module: a copy of the run's module, whose training step it is.
        start: the trainable parameters that were sent, by name.
        local: how clients train.
        soft: whether the loss takes probabilities of the classes, `[n, num_classes]`, as labels.
        stand_in: the module's trainer.
    """

    module: StepModule
    start: dict[str, Tensor]
    local: Local
    soft: bool
    stand_in: TrainerStandIn

    @classmethod
    def of(cls, observation: Observation, dtype: torch.dtype) -> "Training":
        """The training of the observed client, in a dtype."""
        module = copy.deepcopy(observation.module).to(dtype).train()
        for part in module.modules():
            if isinstance(part, _DropoutNd):
                part.eval()
            if isinstance(part, nn.MultiheadAttention | nn.RNNBase):
                part.dropout = 0.0
            if isinstance(part, _BatchNorm):
                part.track_running_stats, part.running_mean, part.running_var = False, None, None
        stand_in = TrainerStandIn(1, 1, engine="an attack")
        with attached(module, stand_in):
            configure(module, stand_in)  # only for modules that read their learning rate while they train
        parts = observation.parts(observation.sent)
        start = {name: part.to(dtype).detach().requires_grad_() for name, part in parts.items()}
        training = cls(StepModule(module), start, observation.local, True, stand_in)
        soft = training._takes_probabilities(observation.inputs)
        return cls(training.module, start, observation.local, soft, stand_in)

    @property
    def user_module(self) -> pl.LightningModule:
        """The user's module."""
        return self.module.module

    def outputs(self, inputs: Tensor) -> Tensor:
        """What the module's `forward` returns: class scores `[n, num_classes]`."""
        scores: Tensor = functional_call(self.user_module, self.start, (inputs,))
        return scores

    def loss(self, parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        """The training step's loss; for probabilities that it does not take, the cross-entropy of `forward`'s scores.

        Args:
            parameters: by name.
            inputs: `[n, ...]`.
            labels: classes `[n]`, or their probabilities `[n, num_classes]`.
        """
        if labels.is_floating_point() and not self.soft:
            with sdpa_kernel(SDPBackend.MATH):
                return nn.functional.cross_entropy(functional_call(self.user_module, parameters, (inputs,)), labels)
        given = {f"module.{name}": tensor for name, tensor in parameters.items()}
        silent = replaced(self.user_module, log=_nothing, log_dict=_nothing)
        # Only this kernel of attention has second derivatives.
        with silent, attached(self.user_module, self.stand_in), sdpa_kernel(SDPBackend.MATH):
            loss = loss_of(functional_call(self.module, given, ((inputs, labels),)))
        if loss is None:
            raise ValueError("training_step returned no loss for a guessed batch")
        return loss

    def gradient(self, parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """The loss's gradient in the parameters' order, itself to be differentiated; zeros where there is none."""
        values = list(parameters.values())
        loss = self.loss(parameters, inputs, labels)
        found = torch.autograd.grad(loss, values, create_graph=True, allow_unused=True)
        return [torch.zeros_like(value) if part is None else part for value, part in zip(values, found, strict=True)]

    def sent(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """Minus the update by the learning rate, `[*shape]` each: of one step it is the gradient.

        Args:
            inputs: guessed samples in the order of training, `[n, ...]`.
            labels: theirs, as for `loss`.
        """
        batches = batches_of(self.local, len(inputs))
        if len(batches) == 1:
            return self.gradient(self.start, inputs, labels)
        assert self.local.lr is not None
        parameters, total = self.start, [torch.zeros_like(value) for value in self.start.values()]
        for batch in batches:
            gradient = self.gradient(parameters, inputs[batch], labels[batch])
            named = zip(parameters.items(), gradient, strict=True)
            parameters = {name: value - self.local.lr * part for (name, value), part in named}
            total = [before + part for before, part in zip(total, gradient, strict=True)]
        return total

    def _takes_probabilities(self, inputs: Inputs) -> bool:
        """Whether one-hot probabilities give the loss of the classes themselves."""
        if inputs.num_classes is None:
            return False
        classes = torch.arange(2) % inputs.num_classes
        dtype = next(iter(self.start.values())).dtype
        guess = torch.zeros(2, *inputs.shape, dtype=dtype if inputs.dtype.is_floating_point else inputs.dtype)
        expected = self.loss(self.start, guess, classes)
        try:
            found = self.loss(self.start, guess, nn.functional.one_hot(classes, inputs.num_classes).to(dtype))
        except (IndexError, RuntimeError, TypeError, ValueError):
            return False
        return bool(torch.isclose(found, expected, rtol=1e-4))


def batches_of(local: Local, num_samples: int) -> list[slice]:
    """The batches of a client's local steps, each pass in the same order."""
    if local.only_gradient:
        return [slice(0, num_samples)]
    starts = range(0, num_samples, local.batch_size)
    a_pass = [slice(start, min(start + local.batch_size, num_samples)) for start in starts]
    return [a_pass[step % len(a_pass)] for step in range(local.num_steps(num_samples))]


def num_trained(observation: Observation) -> int:
    """The number of samples that the update is made of: all, unless there are too few steps."""
    local, samples = observation.local, observation.num_samples
    if local.only_gradient or local.steps is None:
        return samples
    return min(samples, local.steps * local.batch_size * len(observation.clients))


def num_steps(observation: Observation) -> int:
    """Local steps of the client, or of each of the cohort's if all have as many samples."""
    return observation.local.num_steps(max(1, round(observation.num_samples / len(observation.clients))))


def target_of(observation: Observation, dtype: torch.dtype) -> list[Tensor]:
    """What `Training.sent` is to be: minus the observed update, by the learning rate unless it is a gradient."""
    lr = 1.0 if observation.local.only_gradient else observation.local.lr
    assert lr is not None
    return [part.to(dtype) for part in observation.parts(-observation.update / lr).values()]


def objection_to(observation: Observation, *, max_samples: int, max_steps: int = 1, tokens: bool = False) -> str | None:
    """Why samples cannot be reconstructed by matching gradients, or None.

    Args:
        observation: what is known.
        max_samples: more are not tried.
        max_steps: of more local steps none is simulated.
        tokens: whether inputs must be whole numbers instead of floating-point ones.
    """
    local, inputs, samples = observation.local, observation.inputs, num_trained(observation)
    if len(observation.clients) > 1 and not local.only_gradient:
        return "needs the update of one client or a gradient, and only a mean over clients' local training was seen"
    if observation.layout.personal:
        return f"the client has parameters of its own ({observation.layout.personal[0].name}), which are not known"
    if not local.only_gradient and local.lr is None:
        return "clients do not train by plain SGD, whose steps are all that is simulated"
    if inputs.num_classes is None:
        return "targets are no classes"
    if inputs.dtype.is_floating_point == tokens:
        return "inputs are no tokens" if tokens else f"inputs are {inputs.dtype}: attack=tag is for tokens"
    if samples > max_samples:
        return f"the update is of {samples} samples, more than attack.max_samples={max_samples}"
    steps = num_steps(observation)
    if steps > max_steps:
        return (
            f"the client takes {steps} local steps, more than {'attack.max_steps=' if max_steps > 1 else ''}{max_steps}"
        )
    return None


def generator_of(observation: Observation, purpose: str, number: int = 0) -> torch.Generator:
    """Random numbers of an attack's restart or guess."""
    seed = seed_for(observation.seed, observation.round, observation.clients[0], f"attack/{purpose}/{number}")
    return torch.Generator().manual_seed(seed)


def squared_distance(found: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """The squared distance of two vectors in parts (DLG, formula 4)."""
    return torch.stack([(a - b).square().sum() for a, b in zip(found, target, strict=True)]).sum()


def squared_norm(parts: Sequence[Tensor]) -> Tensor:
    """The squared norm of a vector in parts, to divide by: at least 1e-30."""
    return torch.stack([part.square().sum() for part in parts]).sum().clamp(min=1e-30)


def cosine_distance(found: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """One minus the cosine of the angle between two vectors in parts (Geiping et al., formula 4)."""
    dot = torch.stack([(a * b).sum() for a, b in zip(found, target, strict=True)]).sum()
    norms = [torch.stack([part.square().sum() for part in parts]).sum().sqrt() for parts in (found, target)]
    return 1 - dot / (norms[0] * norms[1]).clamp(min=1e-30)


def _nothing(*args: object, **options: object) -> None:
    pass
