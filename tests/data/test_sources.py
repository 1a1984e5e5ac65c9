"""Sources: the right samples in the right order, and the bits of their normalisation."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.transforms import Compose, Normalize, ToTensor

from flrl.data import sources
from flrl.data.sources import DatasetSource, TensorSource, labels_of


class Squares(Dataset[Any]):
    """Sample i is (i, i * i), a dict of both, or whatever `form` makes of it."""

    def __init__(
        self, form: Callable[[int], Any] = lambda i: (torch.tensor([float(i)]), i * i), size: int = 10
    ) -> None:
        self.form, self.size = form, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return self.form(index)


class Noisy(Squares):
    """Sample i is a random number: a random transform."""

    def __init__(self) -> None:
        super().__init__(lambda i: (torch.rand(()), 0))


def having(**attributes: Any) -> Dataset[Any]:
    dataset = Squares(size=3)
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def numbered(num_samples: int) -> TensorSource:
    inputs = torch.arange(4 * num_samples, dtype=torch.float32).view(num_samples, 2, 2)
    return TensorSource(inputs, torch.arange(num_samples))


def test_batches_come_in_the_order_asked_for() -> None:
    batches = list(numbered(6).batches(np.array([5, 0, 3, 3, 1]), 2))
    assert [targets.tolist() for _, targets in batches] == [[5, 0], [3, 3], [1]]
    assert [inputs[:, 0, 0].tolist() for inputs, _ in batches] == [[20.0, 0.0], [12.0, 12.0], [4.0]]
    assert len(numbered(6)) == 6


def test_no_indices_are_no_batches() -> None:
    assert list(numbered(3).batches(np.array([], dtype=np.int64), 2)) == []
    assert list(DatasetSource(Squares()).batches(np.array([], dtype=np.int64), 2)) == []


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 200), st.integers(0, 2**32))
@settings(deadline=None, max_examples=80)
def test_blocks_do_not_show(count: int, batch_size: int, block_bytes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (30, 1, 2, 2), dtype=np.uint8))
    source = TensorSource(pixels, torch.arange(30), mean=[0.3], std=[0.7])
    indices = rng.integers(0, 30, count)
    whole = (pixels[indices].float() / 255 - torch.tensor(0.3)) / torch.tensor(0.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_BLOCK_BYTES", block_bytes)
        batches = list(source.batches(indices, batch_size))
    expected = [batch_size] * (count // batch_size) + [count % batch_size] * (count % batch_size > 0)
    assert [len(targets) for _, targets in batches] == expected
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), whole)
    assert torch.cat([targets for _, targets in batches]).tolist() == indices.tolist()


def test_several_batches_are_cut_from_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    # A sample takes 16 bytes, a batch of 3 takes 48, so two batches fit a block of 100.
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 100)
    batches = [inputs for inputs, _ in numbered(20).batches(np.arange(20), 3)]
    starts = {inputs.untyped_storage().data_ptr(): 0 for inputs in batches}
    assert [len(inputs) for inputs in batches] == [3] * 6 + [2]
    assert len(starts) == 4


def test_pixels_are_normalised_as_torchvision_does_bit_for_bit() -> None:
    pixels = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)] * 2)
    pixels[1] = pixels[1][::-1]
    mean, std = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]
    transform = Compose([ToTensor(), Normalize(mean, std)])
    expected = torch.stack([transform(image) for image in pixels])
    source = TensorSource(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.zeros(2), mean=mean, std=std)
    inputs, _ = next(source.batches(np.arange(2), 2))
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs, expected)
    plain = TensorSource(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.zeros(2))
    assert torch.equal(next(plain.batches(np.array([1]), 1))[0][0], ToTensor()(pixels[1]))


def test_normalisation_by_hand() -> None:
    # 51 / 255 = 0.2, then (0.2 - 0.5) / 0.25 = -1.2; 255 / 255 = 1, then (1 - 0.75) / 0.5 = 0.5
    pixels = torch.tensor([[[51]], [[255]]], dtype=torch.uint8).view(1, 2, 1, 1)
    source = TensorSource(pixels, torch.zeros(1), mean=[0.5, 0.75], std=[0.25, 0.5])
    assert next(source.batches(np.arange(1), 1))[0].flatten().tolist() == [pytest.approx(-1.2, abs=1e-7), 0.5]


def test_one_mean_serves_vectors() -> None:
    source = TensorSource(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.zeros(2), mean=[1.0, 3.0], std=[2.0, 3.0])
    assert next(source.batches(np.arange(2), 2))[0].tolist() == [[0.0, 0.0], [2.0, 2.0]]


def test_what_is_held_stays_as_it_is() -> None:
    inputs = torch.tensor([[1.0], [2.0]])
    source = TensorSource(inputs, torch.tensor([0, 1]), mean=[1.0], std=[2.0])
    for _ in range(2):
        batch, targets = next(source.batches(np.arange(2), 2))
        assert batch.tolist() == [[0.0], [0.5]]
        batch.zero_()
        targets.zero_()
    assert inputs.tolist() == [[1.0], [2.0]]
    assert source.targets.tolist() == [0, 1]
    assert source.inputs is inputs


def test_inputs_without_mean_keep_their_dtype() -> None:
    for dtype in (torch.float64, torch.int64, torch.bfloat16):
        source = TensorSource(torch.ones(2, 1, dtype=dtype), torch.zeros(2))
        assert next(source.batches(np.arange(2), 2))[0].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bfloat16])
def test_inputs_with_a_mean_come_as_float32(dtype: torch.dtype) -> None:
    source = TensorSource(torch.full((2, 1), 3, dtype=dtype), torch.zeros(2), mean=[1.0], std=[4.0])
    inputs, _ = next(source.batches(np.arange(2), 2))
    assert inputs.dtype == torch.float32
    assert inputs.tolist() == [[0.5], [0.5]]


@pytest.mark.parametrize(
    ("targets", "labels"),
    [
        (torch.tensor([3, 1]), [3, 1]),
        (torch.tensor([3.0, 1.0]), None),
        (torch.tensor([[3], [1]]), None),
        (torch.tensor([3, 1], dtype=torch.int32), None),
    ],
)
def test_int64_targets_of_one_dimension_are_classes(targets: Tensor, labels: list[int] | None) -> None:
    found = TensorSource(torch.zeros(2, 1), targets).labels
    assert (None if found is None else found.tolist()) == labels


IMAGES = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5]}, "mean and std come together: one is given, the other is not"),
        ({"std": [0.5]}, "mean and std come together: one is given, the other is not"),
        ({"mean": [0.0] * 3, "std": [1.0, 0.0, 1.0]}, r"std=\[1\.0, 0\.0, 1\.0\]: every channel's must be positive"),
        ({"mean": [0.0] * 3, "std": [1.0, -2.0, 1.0]}, r"std=\[1\.0, -2\.0, 1\.0\]: every channel's must be positive"),
        ({"mean": [0.0], "std": [float("nan")]}, r"std=\[nan\]: every channel's must be positive"),
    ],
)
def test_bad_normalisation_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorSource(IMAGES, torch.zeros(4), **options)


@pytest.mark.parametrize("options", [{"mean": [0.5] * 2, "std": [0.5] * 2}, {"mean": [0.5] * 3, "std": [0.5] * 2}])
def test_channels_are_counted_before_training(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"mean|std"):
        TensorSource(IMAGES, torch.zeros(4), **options)


def test_inputs_and_targets_go_in_pairs() -> None:
    with pytest.raises(ValueError, match=r"^4 inputs but 3 targets$"):
        TensorSource(IMAGES, torch.zeros(3))


def test_a_part_is_prepared_as_the_whole_is() -> None:
    source = kept_source()
    source.kept_limit = 1234
    part = source.subset(np.array([7, 2, 5]))
    assert flat(part.batches(np.array([2, 0]), 2)) == flat(source.batches(np.array([5, 7]), 2))
    assert part.labels is not None
    assert part.labels.tolist() == [7, 2, 5]
    assert part.kept_limit == 1234


def test_a_copy_starts_without_prepared_samples() -> None:
    source = kept_source()
    before = len(pickle.dumps(source))
    list(source.batches(np.arange(5), 2, reuse=True))
    assert len(pickle.dumps(source)) == before
    other = pickle.loads(pickle.dumps(source))
    assert (len(source._kept), len(other._kept), other._kept_bytes) == (1, 0, 0)
    assert flat(other.batches(np.arange(5), 2)) == flat(source.batches(np.arange(5), 2))


def test_any_map_style_dataset_is_a_source() -> None:
    source = DatasetSource(Squares())
    assert len(source) == 10
    assert source.labels is not None
    assert source.labels.tolist() == [i * i for i in range(10)]
    batches = list(source.batches(np.array([9, 2, 4]), 2))
    assert [inputs.tolist() for inputs, _ in batches] == [[[9.0], [2.0]], [[4.0]]]
    assert [targets.tolist() for _, targets in batches] == [[81, 4], [16]]


def test_batches_may_be_dicts() -> None:
    source = DatasetSource(Squares(lambda i: {"pixels": torch.full((2,), i), "text": f"number {i}"}))
    assert source.labels is None
    first, second = source.batches(np.array([1, 0, 7]), 2)
    assert first["pixels"].tolist() == [[1, 1], [0, 0]]
    assert first["text"] == ["number 1", "number 0"]
    assert second["pixels"].tolist() == [[7, 7]]


def test_collate_fn_makes_the_batches() -> None:
    source = DatasetSource(Squares(), collate_fn=lambda samples: sum(target for _, target in samples))
    assert list(source.batches(np.array([1, 2, 3]), 2)) == [5, 9]


def test_labels_may_be_given() -> None:
    labels = np.arange(10)[::-1]
    assert DatasetSource(Squares(), labels=labels).labels is labels


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    for source in (DatasetSource(Squares()), DatasetSource(Squares(), num_workers=1), numbered(10)):
        assert len(list(source.batches(np.arange(10), 4))) == 3
        assert torch.equal(torch.get_rng_state(), before)


def test_random_transforms_draw_from_the_global_seed() -> None:
    for num_workers in (0, 1):
        source = DatasetSource(Noisy(), labels=np.zeros(10, dtype=np.int64), num_workers=num_workers)
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(torch.cat([inputs for inputs, _ in source.batches(np.arange(10), 4)]).tolist())
        assert drawn[0] == drawn[1]
        assert len(set(drawn[0]) | set(drawn[2])) == 20


def test_workers_keep_the_order() -> None:
    batches = DatasetSource(Squares(), num_workers=2).batches(np.array([7, 1, 9, 0, 3]), 2)
    assert [targets.tolist() for _, targets in batches] == [[49, 1], [81, 0], [9]]


@pytest.mark.parametrize(
    ("dataset", "labels"),
    [
        (having(targets=[2, 0, 1]), [2, 0, 1]),
        (having(targets=torch.tensor([2, 0, 1], dtype=torch.uint8)), [2, 0, 1]),
        (having(labels=np.array([2, 0, 1], dtype=np.int16)), [2, 0, 1]),
        (having(y=(2, 0, 1)), [2, 0, 1]),
        (having(targets=[1, 1, 1], labels=[2, 2, 2], y=[3, 3, 3]), [1, 1, 1]),
        (having(labels=[2, 2, 2], y=[3, 3, 3]), [2, 2, 2]),
        (Squares(size=3), [0, 1, 4]),
        (having(labels=None), [0, 1, 4]),
        (TensorDataset(torch.zeros(3, 2), torch.tensor([2, 0, 1])), [2, 0, 1]),
        (Squares(lambda i: [0.0, np.int64(i)], size=3), [0, 1, 2]),
        (ConcatDataset([having(targets=[5, 5, 5]), Squares(size=2)]), [0, 1, 4, 0, 1]),
        (Subset(having(targets=[2, 0, 1]), [2, 2, 0]), [1, 1, 2]),
        (Subset(Subset(Squares(), [9, 8, 3]), [2, 0]), [9, 81]),
        (Subset(Squares(), []), []),
    ],
)
def test_labels_are_found(dataset: Dataset[Any], labels: list[int]) -> None:
    found = labels_of(dataset)
    assert found is not None
    assert found.dtype == np.int64
    assert found.tolist() == labels


@pytest.mark.parametrize(
    "dataset",
    [
        having(targets=[0.5, 1.0, 2.0]),
        having(targets=["cat", "dog", "cat"]),
        having(targets=[[0, 1], [1, 0], [1, 1]]),
        having(targets=[0, 1]),
        having(targets=[[0], [0, 1], []]),
        Squares(lambda i: torch.zeros(2), size=3),
        Squares(lambda i: (torch.zeros(2),), size=3),
        Squares(lambda i: (0, 0.5), size=3),
        Squares(lambda i: {"x": i}, size=3),
        Squares(lambda i: (0, torch.zeros(i, dtype=torch.int64)), size=3),
        Subset(having(targets=[0.5, 1.0, 2.0]), [0]),
    ],
)
def test_what_is_no_class_is_none(dataset: Dataset[Any]) -> None:
    assert labels_of(dataset) is None


def test_given_labels_are_one_a_sample() -> None:
    with pytest.raises(ValueError, match=r"^3 samples but 2 labels$"):
        DatasetSource(Squares(size=3), labels=np.zeros(2, dtype=np.int64))


def kept_source() -> TensorSource:
    pixels = torch.arange(10 * 3 * 64).to(torch.uint8).view(10, 3, 8, 8)
    return TensorSource(pixels, torch.arange(10), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])


def flat(batches: Any) -> list[Any]:
    return [(inputs.flatten().tolist(), targets.tolist()) for inputs, targets in batches]


def test_what_is_kept_is_what_is_made_anew() -> None:
    source, indices = kept_source(), np.array([3, 1, 4, 1, 5])
    fresh = flat(source.batches(indices, 2))
    assert [flat(source.batches(indices, 2, reuse=True)) for _ in range(2)] == [fresh, fresh]
    assert flat(source.batches(indices, 3, reuse=True)) == flat(source.batches(indices, 3))
    assert flat(source.batches(indices[::-1], 2, reuse=True)) == flat(source.batches(indices[::-1], 2))


def test_a_batch_changed_in_place_does_not_change_what_is_kept() -> None:
    source, indices = kept_source(), np.arange(5)
    fresh = flat(source.batches(indices, 2))
    for inputs, targets in source.batches(indices, 2, reuse=True):
        inputs.mul_(7)
        targets.zero_()
    assert flat(source.batches(indices, 2, reuse=True)) == fresh


def test_no_more_is_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = 4 * 3 * 64 * 5 + 8 * 5 + 8 * 5 + sources._KEPT_ENTRY_BYTES  # inputs, targets, key
    monkeypatch.setattr(sources, "_KEPT_BYTES", 2 * kept - 1)
    source = kept_source()
    first, second = np.arange(5), np.arange(5, 10)
    for _ in range(2):
        assert flat(source.batches(first, 2, reuse=True)) == flat(source.batches(first, 2))
        assert flat(source.batches(second, 2, reuse=True)) == flat(source.batches(second, 2))
    assert source._kept_bytes == kept
    assert len(source._kept) == 1


def test_what_is_less_than_its_keeping_takes_is_not_kept() -> None:
    source = TensorSource(torch.arange(320, dtype=torch.uint8).view(10, 32), torch.arange(10))
    least = -(-sources._KEPT_ENTRY_BYTES // (4 * 32 + 8))
    for size in (least - 1, least):
        assert flat(source.batches(np.arange(size), 4, reuse=True)) == flat(source.batches(np.arange(size), 4))
    assert [len(inputs) for inputs, _, _ in source._kept.values()] == [least]


@pytest.mark.parametrize("reuse", [False, True])
def test_samples_move_to_a_device_with_the_first_batch(reuse: bool) -> None:
    source = TensorSource(torch.zeros(600, 1, 4, 4, dtype=torch.uint8), torch.zeros(600).long(), mean=[0.1], std=[0.3])
    source.move_to(torch.device("meta"))
    assert source.inputs.device.type == "cpu"
    batches = list(source.batches(np.arange(50, 600), 100, reuse=reuse))
    assert source.inputs.device.type == "meta"
    assert [(x.shape[0], x.dtype, x.device.type, y.device.type) for x, y in batches] == [
        (size, torch.float32, "meta", "meta") for size in (100, 100, 100, 100, 100, 50)
    ]
