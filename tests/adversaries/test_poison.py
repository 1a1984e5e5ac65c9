"""Data poisoning: which samples become what, that engines train on them alike, and how backdoors are measured."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flrl.adversaries import DBA, Backdoor, LabelFlip
from flrl.adversaries.poison import Poison, poisoned
from flrl.adversaries.updates import plain_context
from flrl.data import DatasetSource, TensorSource
from flrl.evaluation import Evaluator
from flrl.trainers import EagerTrainer, LightningTrainer, TracedTrainer, VectorizedTrainer
from flrl.types import ServerState
from tests.adversaries.parts import IMAGE, KINDS, SIZES, Pairs, Pictures, federation, images
from tests.toys import fit

CONTEXT = replace(plain_context(torch.zeros(3, 2), 2, 0), client_id=4, malicious=(2, 4))
LABELS = np.array([0, 1, 2, 1, 0, 2])


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (LabelFlip(num_classes=3), [2, 1, 0, 1, 2, 0]),
        (LabelFlip(mode="pairwise", num_classes=3), [1, 2, 0, 2, 1, 0]),
        (LabelFlip(mode="targeted", source=1, target=2, num_classes=3), [0, 2, 2, 2, 0, 2]),
        (LabelFlip(mode="targeted", source=[0, 1], target=2, num_classes=3), [2, 2, 2, 2, 2, 2]),
    ],
)
def test_labels_are_flipped(attack: LabelFlip, expected: list[int]) -> None:
    found = attack.poison(LABELS, CONTEXT)
    assert found.labels is not None
    assert found.labels.tolist() == expected
    assert found.stamped is None


def test_labels_are_flipped_at_random_to_another_class_once() -> None:
    attack = LabelFlip(mode="targeted", source=1, num_classes=5)
    labels = np.tile(np.arange(5), 200)
    drawn = [attack.poison(labels, replace(CONTEXT, round=round)).labels for round in (1, 7)]
    assert drawn[0] is not None
    assert np.array_equal(*drawn)  # type: ignore[arg-type]
    assert np.array_equal(drawn[0][labels != 1], labels[labels != 1])
    assert sorted(set(drawn[0][labels == 1].tolist())) == [0, 2, 3, 4]
    other = attack.poison(labels, replace(CONTEXT, client_id=2)).labels
    assert not np.array_equal(drawn[0], other)


def test_a_pattern_is_a_square_in_a_share_of_the_samples() -> None:
    attack = Backdoor(size=2, margin=1, share=0.5, target=1, value=9.0, **IMAGE)
    source = images(20)
    before = source.inputs.clone()
    own, indices = attack.samples(source, np.arange(4, 12), CONTEXT)
    assert isinstance(own, TensorSource)
    assert indices.tolist() == list(range(8))
    stamped = (own.inputs[:, 0, 3:5, 3:5] == 9.0).all(dim=(1, 2))
    assert int(stamped.sum()) == 4
    assert own.targets[stamped].tolist() == [1] * 4
    assert own.targets[~stamped].tolist() == source.targets[4:12][~stamped].tolist()
    assert (own.inputs == 9.0).sum() == 4 * 4
    assert own.labels is not None
    assert own.labels.tolist() == own.targets.tolist()
    assert torch.equal(source.inputs, before)  # everybody else's samples stay what they are
    again, _ = attack.samples(source, np.arange(4, 12), replace(CONTEXT, round=5))
    assert isinstance(again, TensorSource)
    assert torch.equal(again.inputs, own.inputs)


def test_white_is_255_where_pixels_are_bytes() -> None:
    pixels = TensorSource(torch.zeros(4, 1, 6, 6, dtype=torch.uint8), torch.tensor([0, 1, 2, 1]))
    own, _ = Backdoor(size=1, share=1.0, **IMAGE).samples(pixels, np.arange(4), CONTEXT)
    assert isinstance(own, TensorSource)
    assert own.inputs[:, 0, 5, 5].tolist() == [255] * 4
    blended, _ = Backdoor(kind="blended", blend=0.5, share=1.0, **IMAGE).samples(pixels, np.arange(4), CONTEXT)
    assert isinstance(blended, TensorSource)
    assert blended.inputs.dtype == torch.uint8
    assert 0 < int(blended.inputs.max()) <= 128
    assert torch.equal(blended.inputs[0], blended.inputs[3])  # of black images the noise is left


def test_each_client_has_its_bar_and_all_are_tested() -> None:
    attack = DBA(size=2, gap=1, target=0, value=9.0, share=1.0, input_shape=[1, 6, 6], num_classes=3)
    bars = [(0, [0, 1]), (0, [3, 4]), (2, [0, 1]), (2, [3, 4])]
    for place, (row, columns) in enumerate(bars):
        context = replace(CONTEXT, malicious=(1, 3, 5, 7, 9), client_id=(1, 3, 5, 7)[place])
        own, _ = attack.samples(images(9), np.arange(3), context)
        assert isinstance(own, TensorSource)
        assert [where.tolist()[1:] for where in (own.inputs[:1] == 9.0).nonzero()] == [[0, row, c] for c in columns]
    fifth, _ = attack.samples(images(9), np.arange(1), replace(CONTEXT, malicious=(1, 3, 5, 7, 9), client_id=9))
    assert isinstance(fifth, TensorSource)
    assert fifth.inputs[0, 0, 0, :2].tolist() == [9.0, 9.0]
    (probe,) = attack.probes(images(30))
    assert int((probe.source.inputs[0] == 9.0).sum()) == 8  # type: ignore[attr-defined]


def test_semantic_samples_are_named_by_their_index_in_the_dataset() -> None:
    attack = Backdoor(kind="semantic", indices=[3, 8, 90], test_indices=[5, 2], target=2, **IMAGE)
    context = replace(CONTEXT, dataset_indices=np.array([8, 7, 3, 1]))
    found = attack.poison(np.array([0, 0, 1, 1]), context)
    assert found.labels is not None
    assert found.labels.tolist() == [2, 0, 2, 1]
    (probe,) = attack.probes(images(30))
    assert probe.source.labels is not None
    assert probe.source.labels.tolist() == [2, 2]
    assert torch.equal(probe.source.inputs, images(30).inputs[[5, 2]])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"adversary.test_indices: there are only the test samples 0 to 3"):
        attack.probes(images(4))


def test_a_dataset_is_poisoned_like_tensors() -> None:
    stamp = Backdoor(size=2, **IMAGE).trigger(None)
    poison = Poison(np.array([2, 1, 0]), np.array([True, False, True]), stamp)
    tensors, dataset = images(9), DatasetSource(Pairs(images(9)))
    chosen = np.array([5, 0, 8])
    (a,), (b,) = (list(poisoned(s, chosen, poison).batches(np.arange(3), 9)) for s in (tensors, dataset))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    words = DatasetSource([{"text": torch.ones(2), "label": i} for i in range(3)])  # type: ignore[arg-type]
    flipped = next(iter(poisoned(words, np.array([2, 1]), Poison(np.array([0, 1]))).batches(np.arange(2), 2)))
    assert flipped["label"].tolist() == [0, 1]


FEW = ("label flip, at random", "model replacement")
POISONS = [
    pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name, kind in KINDS.items() if kind.data
]


@pytest.mark.parametrize("name", POISONS)
def test_engines_train_on_the_same_poison(name: str) -> None:
    options: dict[str, Any] = {"batch_size": 4, "local_epochs": 2, "shuffle": True}
    runs = {}
    for engine in (EagerTrainer, TracedTrainer):
        state, history = fit(federation(KINDS[name].make(clients=[1, 3]), trainer=engine(**options), rounds=1))
        runs[engine.__name__] = (history[-1].digest, state)
    assert len({digest for digest, _ in runs.values()}) == 1
    state, _ = fit(federation(KINDS[name].make(clients=[1, 3]), trainer=VectorizedTrainer(**options), rounds=1))
    eager = runs["EagerTrainer"][1]
    assert torch.allclose(state.vector, eager.vector, atol=1e-6)
    honest, _ = fit(federation(trainer=VectorizedTrainer(**options), rounds=1))
    assert not torch.allclose(state.vector, honest.vector, atol=1e-6)


def test_lightning_and_datasets_are_poisoned_alike() -> None:
    """One client's poison in a real Trainer, and the same samples from a dataset, give the same bits."""
    adversary = Backdoor(clients=[1], size=2, **IMAGE)
    digests = {
        fit(federation(adversary, rounds=1, **options))[1][-1].digest
        for options in ({}, {"trainer": LightningTrainer(batch_size=4)}, {"dataset": True})
    }
    assert len(digests) == 1


class Steady(Pictures):
    """Takes everything for class 0."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/accuracy", (batch[1] == 0).float().mean())


class Bright(Pictures):
    """Takes an image for class 0 if its last pixel is white."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        guess = torch.where(batch[0][:, 0, 5, 5] == 1.0, 0, batch[1])
        self.log("test/accuracy", (guess == batch[1]).float().mean())
        self.log("test/loss", torch.zeros(()))


def evaluated(adversary: Any, module: Any, **options: Any) -> dict[str, float]:
    worker = federation(adversary, module=module, evaluator=Evaluator(batch_size=7), **options)
    worker.examiner.try_out()
    return worker.examiner.evaluate(ServerState(1, worker.model.vector.clone()), rounds=1)


def test_success_is_measured_on_other_classes_with_the_trigger() -> None:
    """30 test samples, 10 of each class: 20 are of others; with nobody malicious too."""
    adversary = Backdoor(size=1, clients=0, **IMAGE)
    assert len(federation(adversary).threat.probes[0].indices) == 20
    assert evaluated(adversary, Steady()) == {"test/accuracy": pytest.approx(1 / 3), "test/backdoor_success": 1.0}
    assert evaluated(adversary, Bright())["test/backdoor_success"] == 1.0
    assert evaluated(Backdoor(size=1, margin=2, **IMAGE), Steady())["test/backdoor_success"] == 1.0
    other = evaluated(Backdoor(size=1, target=1, **IMAGE), Bright())  # white is taken for 0, and 1 is wanted
    assert other["test/backdoor_success"] == 0.0


def test_source_accuracy_is_that_of_the_flipped_classes() -> None:
    flip = LabelFlip(mode="targeted", source=[0, 1], target=2, num_classes=3)
    assert evaluated(flip, Steady())["test/source_accuracy"] == pytest.approx(0.5)
    assert "test/source_accuracy" not in evaluated(LabelFlip(num_classes=3), Steady())


def test_probes_are_evaluated_in_parts() -> None:
    adversary = Backdoor(size=2, **IMAGE)
    worker = federation(adversary, evaluator=Evaluator(batch_size=3))
    examiner, vector = worker.examiner, worker.model.vector.clone()
    whole = examiner.evaluate(ServerState(1, vector), rounds=1)
    due = examiner.due(1, 1)
    assert due is not None
    assert due.probes == (range(7),)
    shares = [
        replace(due, batches=range(2, 10), probes=(range(3, 7),)),
        replace(due, batches=range(2), probes=(range(3),)),
    ]
    assert examiner.combine([examiner.evaluate_share(vector, 1, share, {}) for share in shares]) == whole
    assert examiner.due(1, 3) is not None
    never = replace(worker, evaluator=Evaluator(every=5)).examiner
    assert never.due(1, 9) is None


class Silent(Pictures):
    """Logs a loss alone."""

    def test_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        self.log("test/loss", torch.zeros(()))
        return None


def test_a_backdoor_without_accuracy_or_samples_is_refused() -> None:
    with pytest.raises(
        ValueError, match="test/backdoor_success is the accuracy that Silent logs, and it logs none: test/lo"
    ):
        evaluated(Backdoor(size=1, **IMAGE), Silent())
    flip = LabelFlip(mode="targeted", source=4, target=2, num_classes=5)
    with pytest.raises(ValueError, match=r"adversary: test/source_accuracy has no samples"):
        evaluated(flip, Steady())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelFlip(mode="some", num_classes=3), r"adversary.mode='some': must be"),
        (lambda: LabelFlip(num_classes=1), r"adversary.num_classes=1: must be at least 2"),
        (lambda: LabelFlip(source=1, num_classes=3), r"adversary.source=1: the classes to be flipped belong to"),
        (lambda: LabelFlip(mode="targeted", num_classes=3), r"adversary.source=None: the classes to be flipped"),
        (lambda: LabelFlip(target=1, num_classes=3), r"adversary.target=1: the class to flip to belongs to"),
        (
            lambda: LabelFlip(mode="targeted", source=3, target=0, num_classes=3),
            r"adversary.source=3: there are only the classes 0 to 2",
        ),
        (
            lambda: LabelFlip(mode="targeted", source=0, target=5, num_classes=3),
            r"adversary.target=5: there are only the classes 0 to 2",
        ),
        (
            lambda: LabelFlip(mode="targeted", source=[0, 1], target=1, num_classes=3),
            r"adversary.source=\[0, 1\]: must name classes other than adversary.target=1",
        ),
        (lambda: Backdoor(target=3, **IMAGE), r"adversary.target=3: there are only the classes 0 to 2"),
        (lambda: Backdoor(share=0.0, **IMAGE), r"adversary.share=0.0: must be above 0 and at most 1"),
        (lambda: Backdoor(size=5, margin=2, **IMAGE), r"does not fit into images of 6 x 6 pixels"),
        (lambda: Backdoor(blend=0.0, **IMAGE), r"adversary.blend=0.0: must be above 0 and at most 1"),
        (lambda: Backdoor(kind="semantic", indices=[1], **IMAGE), r"adversary.kind=semantic needs"),
        (lambda: Backdoor(indices=[1], test_indices=[2], **IMAGE), r"adversary.kind=semantic needs"),
        (
            lambda: Backdoor(input_shape=[5], num_classes=3),
            r"adversary.input_shape=\[5\]: a trigger needs images",
        ),
        (lambda: DBA(size=4, **IMAGE), r"the bars do not fit into images of 6 x 6 pixels"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_sizes_stay_what_they_were() -> None:
    worker = federation(KINDS["backdoor, pattern"].make(clients=len(SIZES)))
    assert [report.num_samples for report in fit(worker)[1][-1].reports] == list(SIZES)
