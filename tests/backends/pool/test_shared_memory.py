"""What travels between processes: tensors as bytes, datasets once for all."""

import gc
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from flrl.backends.pool.messages import Specs, by_client, by_name
from flrl.backends.pool.shared_memory import Reader, Segment, SharedObject, into_shared_memory
from flrl.data import DatasetSource, FederatedData, Splits, TensorSource
from tests.toys import blobs, blocks

TENSORS = {
    "vector": torch.arange(7, dtype=torch.float32),
    "half": torch.arange(5).to(torch.bfloat16),
    "matrix": torch.arange(6, dtype=torch.float64).view(2, 3).t(),
    "count": torch.tensor(3),
    "flags": torch.tensor([True, False, True]),
    "nothing": torch.empty(0, 4),
}


def test_tensors_of_any_kind_come_out_as_they_went_in() -> None:
    specs = Specs.of(TENSORS)
    buffer = torch.full((specs.nbytes,), 255, dtype=torch.uint8)
    specs.fill(buffer, TENSORS)
    found = specs.views(buffer)
    assert list(found) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_memory_is_named_by_client() -> None:
    memory = {3: {"optimizer/0/momentum": torch.ones(2), "control": torch.zeros(1)}, 11: {"control": torch.ones(1)}}
    named = by_name(memory)
    assert sorted(named) == ["11/control", "3/control", "3/optimizer/0/momentum"]
    assert by_client(named) == memory


def test_a_segment_grows_and_leaves_nothing_behind() -> None:
    segment, reader = Segment(), Reader()
    segment.buffer(4).copy_(torch.tensor([1, 2, 3, 4], dtype=torch.uint8))
    assert reader.buffer(segment.path, 4)[:4].tolist() == [1, 2, 3, 4]
    segment.buffer(100_000)[99_999] = 7
    assert reader.buffer(segment.path, 100_000)[99_999] == 7
    assert reader.buffer(segment.path, 4)[:4].tolist() == [1, 2, 3, 4]
    segment.buffer(10)[0] = 9  # writer and reader look at the same memory
    assert reader.buffer(segment.path, 4)[0] == 9
    if sys.platform == "linux":
        assert not any("flrl" in name for name in os.listdir("/dev/shm"))
    segment.close()


class Holding(Dataset[Any]):
    """A dataset that holds arrays and tensors, as torchvision's do."""

    def __init__(self) -> None:
        self.data = np.arange(1_000_000, dtype=np.float32).reshape(1000, 1000)
        self.targets = torch.arange(1000) % 3

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(self.data[index, :5]), int(self.targets[index])


@pytest.mark.parametrize(
    "source",
    [
        blobs(90),
        TensorSource(
            torch.randint(0, 256, (90, 3, 4, 4), dtype=torch.uint8), torch.arange(90) % 3, mean=[0.1], std=[2]
        ),
        DatasetSource(TensorDataset(torch.randn(90, 5), torch.arange(90) % 3)),
    ],
)
def test_shared_data_gives_the_same_batches(source: Any) -> None:
    data = FederatedData(Splits(source, blobs(60, seed=8)), blocks((20, 30, 40)), seed=0, holdout=0.1)
    loaded, shared = into_shared_memory(data)
    assert shared is not None
    assert loaded.hash == data.hash
    for client in range(3):
        pairs = zip(
            loaded.splits.train.batches(loaded.train_indices(client), 7),
            data.splits.train.batches(data.train_indices(client), 7),
            strict=True,
        )
        assert all(torch.equal(a, b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))


def test_what_one_process_writes_into_shared_data_stays_its_own() -> None:
    shared = SharedObject(blobs(30))
    one, other = shared.handle.load(), shared.handle.load()
    one.inputs.zero_()
    assert other.inputs.abs().sum() > 0
    assert torch.equal(shared.handle.load().inputs, other.inputs)


def test_large_arrays_are_not_in_the_stream() -> None:
    shared = SharedObject(DatasetSource(Holding(), labels=np.arange(1000) % 3))
    assert shared.handle.parts[0][1] < 10_000
    assert sum(length for _, length in shared.handle.parts) > 4_000_000


def test_another_process_opens_it_while_it_is_there() -> None:
    shared = SharedObject(blobs(30))
    path, parts = shared.handle.path, shared.handle.parts
    load = f"print(float(Handle({path!r}, {parts!r}).load().inputs.sum()))"
    code = f"from flrl.backends.pool.shared_memory import Handle; {load}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == float(blobs(30).inputs.sum())
    loaded = shared.handle.load()
    shared.segment.close()
    gc.collect()
    assert torch.equal(loaded.inputs, blobs(30).inputs)
    with pytest.raises(OSError, match="No such file"):
        shared.handle.load()


def test_what_cannot_be_sent_stays_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    source = blobs(30)
    source.inputs.transform = lambda x: x  # type: ignore[attr-defined]
    thing = {"dataset": lambda: source}
    same, shared = into_shared_memory(thing)
    assert same is thing
    assert shared is None
    assert "cannot be sent to another process" in caplog.text


def test_only_some_clients_are_held() -> None:
    data = FederatedData(Splits(blobs(90), blobs(60, seed=8)), blocks((20, 30, 40)), seed=0, holdout=0.2)
    some = data.only([2, 0], test=False)
    assert (len(some.splits.train), len(some.splits.test)) == (60, 0)
    for client in (0, 2):
        for mine, theirs in ((some.train_indices, data.train_indices), (some.holdout_indices, data.holdout_indices)):
            own = some.splits.train.inputs[mine(client)]  # type: ignore[attr-defined]
            assert torch.equal(own, data.splits.train.inputs[theirs(client)])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the samples of client 1 are not held here"):
        some.train_indices(1)
    assert (some.hash, some.sizes.tolist(), some.holdout_size(1)) == (data.hash, data.sizes.tolist(), 6)
    assert len(data.only([], test=True).splits.train) == 0
