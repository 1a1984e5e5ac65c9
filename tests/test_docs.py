"""What the pages of docs/ show runs: files and commands of own.md as they stand, every other command is composed."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image
from torchvision.datasets import FakeData

from flrl.attack import main as attack_main
from flrl.cli.app import register_resolvers
from flrl.cli.arguments import arranged, key_of, parted
from flrl.cli.instantiation import check_groups
from flrl.cli.keys import check_top_level
from flrl.cli.pins import without_foreign
from flrl.config import CONF_DIR, AttackConfig, AuditConfig, EvaluateConfig, TrainConfig, VerifyConfig
from flrl.info import choices
from flrl.new import new
from flrl.types import ClientUpdate
from tests.test_readme import blocks_of, write_files

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCHEMAS = {"train": TrainConfig, "evaluate": EvaluateConfig, "verify": VerifyConfig, "attack": AttackConfig}
SCHEMAS |= {"audit": AuditConfig}
COMMAND = re.compile(r"(?:^|[ &])(?:python -m flrl\.|flrl-)(train|evaluate|verify|attack|audit)(?: |$)(.*)")


def lines_of(page: str) -> Iterator[str]:
    """Lines of blocks without a language, and code in the text."""
    for text in [text for language, text in blocks_of(page) if not language]:
        yield from text.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page, flags=re.S | re.M))


def commands() -> dict[tuple[str, tuple[str, ...]], str]:
    """Every command with overrides by what is run and its arguments, with the page where it is first shown."""
    found: dict[tuple[str, tuple[str, ...]], str] = {}
    for page in PAGES:
        for match in filter(None, map(COMMAND.search, lines_of(page.read_text()))):
            arguments = tuple(shlex.split(match[2], comments=True))
            if arguments and "..." not in match[2] and "|" not in arguments:
                found.setdefault((match[1], arguments), page.name)
    return found


def parts_of(override: str) -> tuple[str, list[str]]:
    """The key of an override, and its values: those of a sweep, or of a list of choices."""
    parsed = OverridesParser.create().parse_override(override)
    swept = parsed.sweep_string_iterator() if parsed.is_sweep_override() else [override.partition("=")[2]]
    return key_of(override), [value for each in swept for value in each.strip("[]").split(",")]


def is_choice(override: str, roots: Sequence[Path]) -> bool:
    """Whether an override names a group; each of its choices has to exist then."""
    if not any((root / key_of(override)).is_dir() for root in roots) or override.startswith("~"):
        return False
    key, values = parts_of(override)
    for value in values:
        assert any((root / key / f"{value}.yaml").is_file() for root in roots), override
    return True


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with all files that the pages show, and a study of `flrl-new`."""
    for page in PAGES:
        write_files(page.read_text(), tmp_path)
    new(tmp_path / "my_study")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [path.stem for path in tmp_path.rglob("*.py")]
    _forget(names)  # those of another test's folder
    yield tmp_path
    _forget(names)


def _forget(names: list[str]) -> None:
    for name in names:
        sys.modules.pop(name, None)


def test_every_command_can_be_composed(shown: Path) -> None:
    """Groups, choices and keys of all commands of README and docs/ exist; what they do is tested elsewhere.

    Choices are looked for as files, and what has keys below the top level is composed, with a sweep's first values.
    """
    register_resolvers()
    roots = [CONF_DIR, shown / "my_conf", shown / "my_study" / "conf"]
    found, composed = commands(), 0
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        for (program, arguments), page in found.items():
            options, overrides = parted(arranged(arguments))
            assert {option.partition("=")[0] for option in options} <= {
                "-m",
                "-q",
                "--config-dir",
                "--cfg",
                "job",
                "--help",
            }
            plain = [given for given in overrides if not is_choice(given, roots)]
            if {key_of(given) for given in plain} <= {field.name for field in fields(SCHEMAS[program])}:
                continue
            ConfigStore.instance().store(name=f"{program}_schema", node=SCHEMAS[program])
            job = [given if "=[" in given else given.partition(",")[0] for given in overrides]
            own = f"hydra.searchpath=[{','.join(f'file://{root}' for root in roots[1:])}]"
            try:
                config = compose(program, overrides=[own, *job], return_hydra_config=True)
                chosen = OmegaConf.to_container(config.hydra.runtime.choices)
                config = OmegaConf.masked_copy(config, [name for name in config if name != "hydra"])
                if program == "train":
                    config.logger, config.paths.output_dir = None, "run"  # which a running job has
                check_top_level(config, SCHEMAS[program])
                if program == "train":  # keys below the top level by the signature of what takes them
                    check_groups(without_foreign(OmegaConf.to_container(config, resolve=True), chosen, roots, job))
            except Exception as error:
                error.add_note(f"{page}: flrl-{program} {' '.join(job)}")
                raise
            composed += 1
    assert (len(found) > 85, composed > 15) == (True, True), (len(found), composed)


def test_commands_find_the_modules_that_a_page_shows_and_no_two_pages_show_one_file() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("own.md", "howto.md", "attacks.md"))]
    lines = [line for page in pages for line in page.read_text().splitlines() if "flrl-" in line]
    own = [line for line in lines if re.search(r"flrl-\w+ --config-dir=my", line)]
    assert len(own) > 7
    wrong = [line for line in own if not re.search(r"PYTHONPATH=\. flrl-\w+ --config-dir=my", line)]
    assert [line for line in wrong if not re.search("=(shared|torch|hub)", line)] == []
    files: dict[str, set[str]] = {}
    for text in (text for page in PAGES for _, text in blocks_of(page.read_text())):
        first, _, rest = text.partition("\n")
        if re.fullmatch(r"# [\w/]+\.(py|yaml)", first):
            files.setdefault(first, set()).add(rest)
    assert [name for name, contents in files.items() if len(contents) > 1] == []


def test_own_things_run_as_they_are_shown(cli: Callable[..., Any], shown: Path) -> None:
    """A model, data, a partition, a strategy, a callback and an experiment; a transform, a rule, a sampler, clients."""
    page = (ROOT / "docs" / "own.md").read_text()
    lines = [shlex.split(line) for line in re.findall(r"^PYTHONPATH=. flrl-train (.*)$", page, flags=re.M)]
    *_, parts, experiment = lines
    fast = ("strategy.rounds=2", "logger=none")
    population = next(line for line in lines if "dataset=population" in line)
    assert cli(*population, *fast, "callbacks=none", "hydra.run.dir=population").code == 0
    assert last_row("population")["clients/num"] == 10
    assert np.load("population/partition.npz")["starts"][-1] == 8 * 99_999
    for data in ("mine", "mine_too"):
        early = (f"dataset={data}", "dataset.size=100", "callbacks.mine.value=0", f"hydra.run.dir={data}")
        done = cli(*experiment, *fast, *early)
        assert done.code == 0, done.err
    rows = [last_row(folder) for folder in ("mine", "mine_too")]
    assert rows[0] == rows[1]
    assert rows[0]["comm/up_bytes"] == 2 * rows[0]["comm/down_bytes"]  # Twice sends two vectors
    assert np.load("mine/partition.npz")["sizes"].sum() == 100
    assert rows[0]["round"] == 1  # StopAt has ended it
    assert cli(*parts, *fast, "log_clients=true", "hydra.run.dir=parts").code == 0
    lines = Path("parts/clients.jsonl").read_text().splitlines()
    assert [json.loads(line)["client_id"] for line in lines] == [0, 1, 2, 3]


def test_datasets_of_torch_and_hugging_face_run_as_they_are_shown(
    cli: Callable[..., Any], shown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hugging Face's is a dataset in memory in the place of one from the hub, or rows where the package is missing."""
    page = (ROOT / "docs" / "own.md").read_text()
    images = [Image.fromarray(np.full((8, 8), 20 * number, np.uint8)) for number in range(12)]
    columns = {"image": images, "character": [0, 1, 2] * 4, "writer_id": [*"aabbbbbbcccc"]}
    names = [*columns]

    def load_dataset(path: str, split: str) -> Any:
        assert (path, split.split("[")[0]) == ("flwrlabs/femnist", "train")
        if package is not None:
            return package.Dataset.from_dict(columns)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    try:
        package = import_module("datasets")
    except ModuleNotFoundError:
        package = None
    hub = package or ModuleType("datasets")
    monkeypatch.setattr(hub, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    fast = ("strategy.rounds=1", "logger=none", "callbacks=none")
    given = [line for line in commands_of(page, "flrl-train") if line[1:2] in (["dataset=torch"], ["dataset=hub"])]
    for line in given:
        done = cli(*line, *fast, f"hydra.run.dir={line[1].partition('=')[2]}")
        assert done.code == 0, done.err
    rows = [last_row(name) for name in ("torch", "hub")]
    assert [row["clients/num"] for row in rows] == [10, 3]


def last_row(folder: str) -> dict[str, Any]:
    row = json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in row.items() if not name.startswith("time/")}


def test_what_the_own_parts_compute(shown: Path) -> None:
    """Midrange of three rows, half an update, two clients after one another."""
    midrange, shrink, turn = (import_module(f"my_{name}") for name in ("rule", "transform", "sampler"))
    assert midrange.Midrange()([[1.0, 0.0], [2.0, 9.0], [5.0, 1.0]]).tolist() == [3.0, 4.5]
    update = ClientUpdate(0, 1.0, {"update": torch.tensor([6.0, 8.0])}, {}, 1)
    shrunk, memory, numbers = shrink.Shrink(factor=0.5).client(update, {}, None)
    assert (shrunk.vectors["update"].tolist(), memory, numbers) == ([3.0, 4.0], {}, {"norm": 5.0})
    assert [turn.InTurn(num=2)(3, seed=0, round=round).tolist() for round in (1, 2, 3)] == [[0, 1], [0, 2], [1, 2]]


def test_the_tutorial_computes_what_it_says(cli: Callable[..., Any]) -> None:
    """The first run, clients that differ, and the attack, whose image is exact; the blocks of Python run."""
    page = (ROOT / "docs" / "tutorial.md").read_text()
    trained = [line for line in page.splitlines() if line.startswith("flrl-train")]
    shown = {line.partition("hydra.run.dir=")[2]: shlex.split(line)[1:] for line in trained}
    for folder in ("outputs/first", "outputs/unlike", "outputs/leak"):
        assert cli(*shown[folder], "logger=none").code == 0
    accuracy = [100 * last_row(f"outputs/{name}")["test/accuracy"] for name in ("first", "unlike")]
    assert accuracy == pytest.approx([83.29, 67.69], abs=0.6)  # two of 359 images
    attack = next(shlex.split(line)[1:] for line in page.splitlines() if line.startswith("flrl-attack"))
    done = cli(*attack, main=attack_main)
    assert "reconstructed 1  ssim 1  label_accuracy 1" in done.out
    assert Path("outputs/leak/attacks/analytic/1-1159/reconstruction.png").is_file()
    names: dict[str, Any] = {}
    for language, text in blocks_of(page):
        if language == "python":
            exec(text, names)
    assert names["w"].tolist() == [2.5, 2.0]
    assert names["row"]["round"] == 10


def test_the_japanese_tutorial_has_the_code_of_the_english_one() -> None:
    english, japanese = ((ROOT / "docs" / name).read_text() for name in ("tutorial.md", "tutorial.ja.md"))
    assert len(blocks_of(english)) > 10
    assert blocks_of(japanese) == blocks_of(english)


@pytest.mark.mpi
def test_one_server_and_two_clients_have_the_digest_of_one_process(cli: Callable[..., Any]) -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text()
    lines = [shlex.split(line) for line in page.splitlines() if "num_clients=2 " in line]
    (mpi,), (serial,) = ([line for line in lines if (line[0] == "mpiexec") is under] for under in (True, False))
    program = mpi.index("flrl-train")
    run = [*mpi[:program], sys.executable, "-m", "flrl.train", *mpi[program + 1 :]]
    settings = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    subprocess.run(run, check=True, timeout=300, env=settings | {"PYTHONPATH": str(ROOT)})
    assert cli(*serial[1:]).code == 0
    assert last_row("outputs/mpi")["digest"] == last_row("outputs/serial")["digest"]


QUICKSTARTS = {
    "from_flower.md": ("partition.num_clients=3", "strategy.rounds=1"),
    "from_pfl.md": ("partition.num_clients=4", "strategy.sampler.num=2", "strategy.rounds=1"),
    "from_fedlab.md": ("dataset=digits", "partition.num_clients=20", "strategy.rounds=1"),
    "from_aijack.md": (),
}


def commands_of(page: str, program: str) -> list[list[str]]:
    """The arguments of a program's commands in the blocks of a page."""
    found = re.findall(rf"^(?:PYTHONPATH=. )?{program} (.*)$", page, flags=re.M)
    return [shlex.split(line) for line in found]


@pytest.mark.parametrize(
    "name",
    [
        "from_flower.md",
        pytest.param("from_fedlab.md", marks=pytest.mark.slow),
        pytest.param("from_pfl.md", marks=pytest.mark.slow),
        pytest.param("from_aijack.md", marks=pytest.mark.slow),
    ],
)
def test_our_side_of_their_quickstarts(
    name: str, cli: Callable[..., Any], shown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As shown, but for fewer clients and rounds, and for images made up in the place of CIFAR-10 and MNIST."""

    def images(root: str, *, train: bool, download: bool, transform: Any) -> FakeData:
        return FakeData(60 if train else 20, (3, 32, 32), 10, transform)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", images)
    page = (ROOT / "docs" / name).read_text()
    first = commands_of(page, "flrl-train")[0]
    done = cli(*first, *QUICKSTARTS[name], "logger=none", "hydra.run.dir=run")
    assert done.code == 0, done.err
    row = last_row("run")
    wanted = {"from_flower.md": 3, "from_pfl.md": 2, "from_fedlab.md": 2, "from_aijack.md": 2}
    assert (row["round"], row["clients/num"]) == (1, wanted[name])
    if name == "from_flower.md":
        assert "clients/global/accuracy_mean" in row, sorted(row)
    for attack in commands_of(page, "flrl-attack"):
        done = cli("run=run", *attack[1:], "attack.iterations=3", "attack.restarts=1", main=attack_main)
        assert done.code == 0, done.err
        assert Path("run/attacks/dlg/result.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package"), [("from_flower.md", "flwr"), ("from_pfl.md", "pfl"),
                                               ("from_fedlab.md", "fedlab"), ("from_aijack.md", "aijack")])  # fmt: skip
def test_what_their_side_imports_is_there(name: str, package: str) -> None:
    """In an environment that has the package; elsewhere it is skipped."""
    pytest.importorskip(package)
    page = (ROOT / "docs" / name).read_text()
    lines = [line for line in page.splitlines() if line.startswith(f"from {package}")]
    assert len(lines) >= 2
    for line in lines:
        exec(line, {})


def hooks() -> dict[str, Any]:
    pytest.importorskip("mkdocs", reason='needs pip install -e ".[docs]"')
    return runpy.run_path(str(ROOT / "docs" / "_hooks.py"))


def test_the_reference_has_every_choice_with_its_comments() -> None:
    made = dict(hooks()["pages"]())
    for group, found in choices([CONF_DIR]).items():
        page = made[f"reference/conf/{group.partition('/')[0]}.md"]
        for name in found:
            assert f"### {group}={name}\n" in page
    mine = made["reference/conf/strategy.md"].partition("### strategy=scaffold\n")[2].partition("\n### ")[0]
    assert mine.strip().startswith("SCAFFOLD (Karimireddy et al., ICML 2020)")
    assert "option: 2 # " in mine
    assert "\n```\nflrl-train " in made["reference/conf/strategy.md"]  # a command of a yaml's header
    assert made["project/citation.md"].count("```") == 2


@pytest.mark.slow
def test_the_site_is_built_strictly_and_needs_no_network(tmp_path: Path) -> None:
    hooks()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)})
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "tutorial.ja.html", "reference/conf/strategy.html", "project/contributing.html"} <= set(pages)
    for name, page in pages.items():
        assert not re.search(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="?https?://', page), name
    assert 'id="flrl.strategies.Scaffold"' in pages["reference/python/strategies.html"]
