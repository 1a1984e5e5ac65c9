"""Next characters: losses and perplexity by hand, nets that see no future, engines that agree."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flrl.bound_model import BoundModel
from flrl.data import TensorSource
from flrl.evaluation import Evaluator
from flrl.models import LanguageModel
from flrl.models.language import CharLSTM, CharTransformer
from flrl.models.perplexity import Perplexity
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer, TracedTrainer, VectorizedTrainer
from tests.toys import fit, make_worker

SGD = partial(torch.optim.SGD, lr=0.5)
NETS = {
    "lstm": partial(CharLSTM, num_classes=5, embedding=3, hidden=4, layers=1),
    "transformer": partial(CharTransformer, num_classes=5, width=8, heads=2, layers=1),
}
SYMBOLS = torch.randint(5, (12, 6), generator=torch.Generator().manual_seed(0))


class Table(nn.Module):
    """The next symbol's scores depend on the present one alone; 0 predicts 1 with probability 3/4."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]))

    def forward(self, symbols: Tensor) -> Tensor:
        return self.scores[symbols.long()]


def model(net: nn.Module, num_classes: int) -> LanguageModel:
    return LanguageModel(net=net, num_classes=num_classes, optimizer=SGD)


def texts(last: bool = False) -> TensorSource:
    inputs, targets = SYMBOLS[:, :-1].to(torch.int8), SYMBOLS[:, 1:]
    return TensorSource(inputs, targets[:, -1].contiguous() if last else targets.contiguous())


def test_loss_accuracy_and_perplexity_by_hand() -> None:
    source = TensorSource(torch.tensor([[0, 0], [1, 0], [1, 1]]), torch.tensor([[1, 0], [0, 1], [0, 0]]))
    # Probabilities of the targets: 3/4, 1/4; 1/2, 3/4; 1/2, 1/2. Equal scores count for the first symbol.
    mean = -(2 * math.log(0.75) + math.log(0.25) + 3 * math.log(0.5)) / 6
    bound = BoundModel(model(Table(), 2))
    assert Evaluator(batch_size=2).run(bound, source, np.arange(3)) == {
        "test/loss": pytest.approx(mean, rel=1e-6),
        "test/accuracy": pytest.approx(5 / 6),
        "test/perplexity": pytest.approx(math.exp(mean), rel=1e-6),
    }
    last = TensorSource(source.inputs, source.targets[:, 1].contiguous())
    assert Evaluator().run(bound, last, np.arange(2))["test/loss"] == pytest.approx(
        -(math.log(0.25) + math.log(0.75)) / 2, rel=1e-6
    )
    loss = bound.module.training_step((source.inputs, source.targets), 0)
    assert float(loss.detach()) == pytest.approx(mean, rel=1e-6)


def test_the_test_set_may_be_evaluated_in_parts() -> None:
    """Perplexity keeps only counts: any order of batches gives the same number."""
    module = model(NETS["lstm"](), 5)
    assert Evaluator().divisible(module)
    parts = [torch.tensor(value) for value in (0.1, 1e6, 3.0)]
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        perplexity = Perplexity()
        for place in order:
            perplexity.update(parts[place], 10**6)
        found.append(float(perplexity.compute()))
    assert found[0] == found[1] == pytest.approx(math.exp(1000003.1 / 3e6), rel=1e-6)
    perplexity.update(torch.tensor(float("inf")), 1)
    assert math.isnan(perplexity.compute())


@pytest.mark.parametrize("name", NETS)
def test_a_net_sees_no_future(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]()
    with torch.no_grad():
        whole = net(SYMBOLS)
        changed = SYMBOLS.clone()
        changed[:, 4:] = (changed[:, 4:] + 1) % 5
        assert whole.shape == (12, 6, 5)
        assert torch.allclose(net(changed)[:, :4], whole[:, :4], atol=1e-6)
        assert not torch.allclose(net(changed)[:, 4], whole[:, 4], atol=1e-3)
        # What came before is not only counted: its order matters.
        turned = SYMBOLS[:, [1, 0, 2, 3, 4, 5]]
        differ = (turned != SYMBOLS).any(1)
        assert not torch.allclose(net(turned)[differ, 2], whole[differ, 2], atol=1e-4)


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    block = NETS["transformer"]().blocks[0]
    vectors = torch.randn(3, 6, 8)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": block.asked.weight,
            "in_proj_bias": block.asked.bias,
            "out_proj.weight": block.mixed.weight,
            "out_proj.bias": block.mixed.bias,
        }
    )
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    expected, _ = theirs(vectors, vectors, vectors, attn_mask=later)
    assert torch.allclose(block._attention(vectors), expected, atol=1e-6)


def test_sizes() -> None:
    assert sum(parameter.numel() for parameter in CharLSTM(num_classes=80).parameters()) == 819_920
    small = CharTransformer(num_classes=80)
    assert sum(parameter.numel() for parameter in small.parameters()) == 80 * 64 + 2 * 49_984 + 128 + 80 * 65
    for sizes, said in (({"hidden": 0}, "hidden=0: must be at least 1"), ({"layers": 0}, "layers=0: must be at l")):
        with pytest.raises(ValueError, match=rf"^model\.net\.{said}"):
            CharLSTM(num_classes=3, **sizes)
    with pytest.raises(ValueError, match=r"^model\.net\.width=6: must be even and divisible by model\.net\.heads=4$"):
        CharTransformer(num_classes=3, width=6)


def trained(name: str, trainer: Any, last: bool) -> tuple[list[float], Tensor]:
    torch.manual_seed(0)
    strategy = FedAvg(rounds=2, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    worker = make_worker(
        strategy, module=model(NETS[name](), 5), sizes=(4, 8), trainer=trainer(batch_size=4), source=texts(last)
    )
    worker.data.splits.test.inputs, worker.data.splits.test.targets = texts(last).inputs, texts(last).targets
    state, history = fit(worker)
    return [record.metrics["test/loss"] for record in history], state.vector


@pytest.mark.parametrize(
    ("name", "last"),
    [("transformer", False)]
    + [
        pytest.param(*case, marks=pytest.mark.slow) for case in (("transformer", True), ("lstm", False), ("lstm", True))
    ],
)
def test_engines_agree(name: str, last: bool) -> None:
    losses, eager = trained(name, EagerTrainer, last)
    assert losses[1] < losses[0]
    assert torch.equal(trained(name, TracedTrainer, last)[1], eager)
    assert torch.allclose(trained(name, VectorizedTrainer, last)[1], eager, atol=1e-6)
