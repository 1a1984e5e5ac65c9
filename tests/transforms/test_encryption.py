"""Encrypted updates: the server adds what it cannot read, and a key holder decrypts the sum."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flrl.aggregation import Mean, Median, Parcel
from flrl.encryption.ckks import error_bound
from flrl.kernels import vector_stats
from flrl.rounds import planned
from flrl.sampling import AllClients
from flrl.strategies import FedAvg, Scaffold
from flrl.transforms import Ckks, ClipNorm, GaussianNoise, Paillier, Transform
from flrl.transforms.encrypted_sum import EncryptedSum, as_tensor, opened
from flrl.verify import main as verify
from tests.backends.test_digest_table import launch, outcome
from tests.toys import fit, make_worker, setup_of

SGD = partial(torch.optim.SGD, lr=1.0)
SMALL = Paillier(key_bits=256)
PAILLIER, CKKS = {"paillier": SMALL}, {"ckks": Ckks(poly_modulus_degree=4096)}


def fedavg(transforms: dict[str, Transform], kind: Any = FedAvg, **options: Any) -> Any:
    return kind(rounds=2, sampler=AllClients(), server_optimizer=SGD, transforms=transforms, **options)


def trained(transforms: dict[str, Transform], kind: Any = FedAvg) -> tuple[torch.Tensor, list[Any]]:
    state, records = fit(make_worker(fedavg(transforms, kind)))
    return state.vector, records


def the_plan(worker: Any) -> Any:
    strategy, layout = worker.strategy, worker.model.layout
    state = strategy.initialize(worker.model.vector.clone(), layout)
    return planned(strategy, worker.threat, state, worker.data.sizes, 0, layout)


@pytest.mark.parametrize("kind", [FedAvg, Scaffold])
def test_paillier_has_the_digests_of_the_plain_run(kind: Any) -> None:
    plain, encrypted = trained({}, kind), trained(PAILLIER, kind)
    assert [record.digest for record in encrypted[1]] == [record.digest for record in plain[1]]


def test_ckks_has_the_plain_model_to_its_bound() -> None:
    (plain, _), (encrypted, records) = trained({}), trained(CKKS)
    bound = records[-1].metrics["transforms/ckks/error_bound"]
    assert bound == 2 * error_bound(4096, 40, 3)
    assert 0 < float((encrypted - plain).abs().max()) < 2 * 2 * bound + 1e-6  # two rounds; float32 models


@pytest.mark.parametrize("transforms", [PAILLIER, CKKS])
def test_what_is_said_to_be_sent_is_the_length_of_the_serialised_ciphertexts(transforms: Any) -> None:
    worker = make_worker(fedavg(transforms))
    part = the_plan(worker).parts[0]
    reducer, reports = worker.train(part.broadcast, part.tasks, lambda report: None)
    sent = sum(map(len, reducer.ciphertexts))
    assert [report.up_bytes for report in reports] == [sent] * 3
    assert sum(tensor.nbytes for tensor in reducer.parcel().extras.values()) == sent
    public = part.broadcast.variables[f"transforms/{next(iter(transforms))}/key"].nbytes
    assert sum(part.broadcast.payload.values()) == worker.model.layout.nbytes + public + 8
    if transforms is PAILLIER:
        assert sent == 9 * 64  # 18 numbers of 94 bits, two in a plaintext of 254; a ciphertext has 512 bits
        assert public == 32


def test_the_server_has_no_private_key() -> None:
    for transforms in (PAILLIER, CKKS):
        worker = make_worker(fedavg(transforms))
        plan = the_plan(worker)
        reducer, _ = worker.train(plan.parts[0].broadcast, plan.tasks, lambda report: None)
        assert isinstance(reducer, EncryptedSum)
        assert set(vars(reducer)) == {"inner", "scheme", "largest", "weights", "ciphertexts", "addends"}
        assert reducer.addends == 3
        assert float(reducer.inner.sum.parts.abs().max()) == 0.0  # nothing but ciphertexts
        with pytest.raises(RuntimeError, match=r"^an encrypted sum has no result without the private key$"):
            reducer.result()
        (holder,) = plan.key_holders.values()
        secret = holder._private if transforms is PAILLIER else holder._context
        for known in (*vars(reducer).values(), *vars(reducer.scheme).values()):
            assert known is not holder
            assert known is not secret
        if transforms is PAILLIER:
            assert set(vars(reducer.scheme.key)) == {"g", "n", "nsquare", "max_int"}
        else:
            assert not reducer.scheme.context.has_secret_key()
        means, weight = opened(reducer, plan.key_holders).result()
        assert weight == 90.0
        assert float(means["update"].norm()) > 0


def test_workers_sums_merge_in_any_division() -> None:
    worker = make_worker(fedavg(PAILLIER))
    plan = the_plan(worker)
    broadcast = plan.parts[0].broadcast
    plain = Mean().reducer({"update": 18}, total_weight=90.0)
    for update in worker.updates(plan.tasks[:1], broadcast) + worker.updates(plan.tasks[1:], broadcast):
        plain.add(update, {"update": vector_stats(update.vectors["update"])})
    for division in ([[0, 1, 2], []], [[], [2, 0, 1]], [[1], [0], [2]]):
        shares = [[plan.tasks[i] for i in some] for some in division]
        ours, *others = (worker.train(broadcast, share, lambda report: None)[0] for share in shares)
        parcels = [other.parcel() for other in others]
        sum_here = ours.merge([Parcel(None, parcel.extras, parcel.numbers) for parcel in parcels])
        for parcel in parcels:
            sum_here.add_(parcel.summand)
        assert ours.addends == 3
        means, weight = opened(ours, plan.key_holders).result()
        assert torch.equal(means["update"], plain.result()[0]["update"])
        assert weight == 90.0


def test_a_round_without_a_usable_update_has_no_sum() -> None:
    worker = make_worker(fedavg(PAILLIER))
    plan = the_plan(worker)
    assert opened(worker.reducer(plan.parts[0].broadcast), plan.key_holders).result() == ({}, 0.0)


def test_a_client_whose_numbers_cannot_be_encrypted_sends_nothing() -> None:
    worker = make_worker(fedavg({"ckks": Ckks(poly_modulus_degree=4096, scale_bits=52)}))  # up to 64
    plan = the_plan(worker)
    reducer = worker.reducer(plan.parts[0].broadcast)
    (update,) = worker.updates(plan.tasks[:1], plan.parts[0].broadcast)
    for number, why in ((64.5, "update is too large to be encrypted (64.5, at most 64)"), (64.0, None)):
        update.vectors["update"][0] = number
        assert reducer.rejection(update, {"update": vector_stats(update.vectors["update"])}) == why
    update.vectors["update"][0] = float("nan")
    assert reducer.rejection(update, {"update": vector_stats(update.vectors["update"])}) == "update is not finite"


def test_bytes_become_tensors_and_bytes_again() -> None:
    assert as_tensor(b"\x00\xff\x07").tolist() == [0, 255, 7]


@pytest.mark.parametrize(
    ("transforms", "options", "why"),
    [
        (PAILLIER, {"aggregator": Median()}, "paillier: Median needs each update, and paillier hides them"),
        (
            {**PAILLIER, "clip": ClipNorm(max_norm=1.0)},
            {},
            "paillier: clip changes the update after it is encrypted; put",
        ),
        ({**PAILLIER, **CKKS}, {}, "paillier: ckks changes the update after it is encrypted; put ckks first"),
    ],
)
def test_what_encryption_does_not_go_with_is_refused(transforms: Any, options: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^strategy\.transforms\.{why}"):
        setup_of(strategy=fedavg(transforms, **options)).check()


def test_what_hides_or_encodes_is_not_encrypted() -> None:
    class Encodes(Transform):
        encodes = True

    with pytest.raises(ValueError, match=r"paillier: only sums of plain numbers can be encrypted; leave out code$"):
        setup_of(strategy=fedavg({"code": Encodes(), **PAILLIER})).check()
    with pytest.raises(ValueError, match=r"paillier: only sums of plain numbers can be encrypted; leave out ckks$"):
        PAILLIER["paillier"].check(setup_of(strategy=fedavg({**CKKS, **PAILLIER})))


def test_what_comes_before_or_works_on_the_server_is_allowed() -> None:
    parts = {"clip": ClipNorm(max_norm=1.0), **PAILLIER, "noise": GaussianNoise(std=0.1)}
    setup_of(strategy=fedavg(parts)).check()
    with pytest.raises(ValueError, match=r"cosines=true: paillier hides updates"):
        setup_of(strategy=fedavg(PAILLIER, aggregator=Mean(cosines=True))).check()


def test_what_would_take_too_long_is_refused_before_the_first_round(caplog: pytest.LogCaptureFixture) -> None:
    slow = Paillier(key_bits=256, most_seconds=1e-9)
    why = r"most_seconds=1e-09: 18 numbers are 9 ciphertexts, 576 bytes and about 0\.0 s for each update; choose"
    with pytest.raises(ValueError, match=why):
        setup_of(strategy=fedavg({"paillier": slow})).check()

    class Slow(Paillier):
        def seconds_each(self) -> float:
            return 2.0

    with caplog.at_level(logging.WARNING):
        setup_of(strategy=fedavg({"paillier": Slow(key_bits=256)})).check()
    assert "18 numbers are 9 ciphertexts, 576 bytes and about 18.0 s for each update" in caplog.text


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        (Paillier, {"key_bits": 128}, "paillier.key_bits=128: must be a multiple of 16 from 256 to 8192"),
        (Paillier, {"key_bits": 2047}, "paillier.key_bits=2047: must be a multiple of 16 from 256 to 8192"),
        (Paillier, {"most_seconds": 0}, "paillier.most_seconds=0: must be positive, or null"),
        (Ckks, {"poly_modulus_degree": 2048}, "ckks.poly_modulus_degree=2048: must be one of 4096, 8192, 16384"),
        (Ckks, {"scale_bits": 53}, "ckks.scale_bits=53: must be from 20 to 52"),
        (Ckks, {"most_seconds": -1}, "ckks.most_seconds=-1: must be positive, or null"),
    ],
)
def test_settings_are_checked(kind: Any, options: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"^strategy.transforms.{why}$"):
        kind(**options)


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flrl.encryption.base.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"^strategy/transforms=paillier: needs phe and gmpy2: pip install 'flrl\[he\]'$"
    ):
        Paillier()
    with pytest.raises(ValueError, match=r"^strategy/transforms=ckks: needs tenseal: pip install 'flrl\[he\]'$"):
        Ckks()


RUN = (
    "model=softmax_regression",
    "dataset=digits",
    "strategy.rounds=2",
    "partition.num_clients=5",
    "logger=none",
    "log_clients=true",
)
SMALL_KEY = ("strategy/transforms=paillier", "strategy.transforms.paillier.key_bits=256", "callbacks=none")


def digests(folder: Path) -> list[str]:
    return [row["digest"] for row in outcome(folder)["rounds"]]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_digest_is_plain_in_processes_too(tmp_path: Path) -> None:
    launch(tmp_path, 0, *RUN, "callbacks=none", f"hydra.run.dir={tmp_path / 'plain'}")
    launch(tmp_path, 0, *RUN, *SMALL_KEY, f"hydra.run.dir={tmp_path / 'serial'}")
    launch(tmp_path, 0, *RUN, *SMALL_KEY, "backend=process", "backend.workers=2", f"hydra.run.dir={tmp_path / 'two'}")
    assert outcome(tmp_path / "two") == outcome(tmp_path / "serial")
    assert digests(tmp_path / "serial") == digests(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_verifying_an_approximate_sum_says_why_digests_differ(tmp_path: Path, cli: Any) -> None:
    launch(tmp_path, 0, *RUN, "strategy/transforms=ckks", "callbacks=none", f"hydra.run.dir={tmp_path / 'run'}")
    done = cli(f"run={tmp_path / 'run'}", main=verify)
    assert done.code == 1
    assert "note      strategy.transforms.ckks: sums have random errors: expect other digests" in done.out
    assert "no client's update: it is the server's step that differs" in done.out


@pytest.mark.mpi
@pytest.mark.timeout(300)
def test_the_digest_is_plain_under_mpi_too(tmp_path: Path) -> None:
    launch(tmp_path, 0, *RUN, "callbacks=none", f"hydra.run.dir={tmp_path / 'plain'}")
    for more in ((), ("backend.dedicated_server=true",)):
        folder = tmp_path / f"mpi{len(more)}"
        launch(tmp_path, 3, *RUN, *SMALL_KEY, "backend=mpi", *more, f"hydra.run.dir={folder}")
        assert digests(folder) == digests(tmp_path / "plain")


@pytest.mark.mpi
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["distributed_discrete_gaussian", "skellam"])
def test_integer_noise_has_one_digest_everywhere_encrypted_or_not(tmp_path: Path, kind: str) -> None:
    run = (*RUN, "callbacks=none", "strategy/sampler=all", "privacy.accountant=rdp")
    places = {"plain": (0, f"strategy/transforms={kind}"), "two": (0, "backend=process", "backend.workers=2")}
    for name, (ranks, *more) in {**places, "mpi": (3, "backend=mpi")}.items():
        chosen = [] if name == "plain" else [f"strategy/transforms=[{kind},ckks]"]
        launch(tmp_path, ranks, *run, *chosen, *more, f"hydra.run.dir={tmp_path / name}")
    assert digests(tmp_path / "two") == digests(tmp_path / "mpi") == digests(tmp_path / "plain")
