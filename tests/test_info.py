"""What `python -m flrl.info` prints."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flrl.config import CONF_DIR
from flrl.info import choices, documentation, header, info, meanings, settings, whole
from flrl.info import main as info_main


def printed(*arguments: str) -> str:
    text = io.StringIO()
    info(arguments, Console(file=text, highlight=False, soft_wrap=True))
    return text.getvalue()


def test_every_choice_has_a_line() -> None:
    """All that is in the conf tree is listed, and its first comment says what it is."""
    text = printed()
    for group, found in choices([CONF_DIR]).items():
        assert f"\n{group}\n" in f"\n{text}"
        for name, path in found.items():
            line = next(iter(header(path)), "")
            assert line, f"{path} begins without a comment"
            assert f"  {name} " in text
            assert whole(line) in text


def test_a_page_has_header_references_and_settings() -> None:
    page = printed("strategy=scaffold")
    assert page.startswith("strategy=scaffold\nSCAFFOLD (Karimireddy et al., ICML 2020)")
    assert "arXiv 1910.06378" in page
    assert "\n# a client's new variate is its full gradient at the global model (1, costs" in page
    assert page.index("the mean of the gradients of its local steps") < page.index("\noption: 2\n")
    assert "\n# number of rounds" in page  # of fedavg.yaml, which it includes, and of the base class
    assert "\nrounds: 10\n" in page
    assert "\nincludes\nstrategy=fedavg\n" in page
    assert "strategy/sampler=uniform" in page.rpartition("\ntakes\n")[2]
    assert "Args:" not in page


def test_every_page_says_what_its_settings_mean() -> None:
    """All settings of flrl's own objects are explained, by a docstring; those of a base class too."""
    without = []
    for group, found in choices([CONF_DIR]).items():
        for name, path in found.items():
            values = settings(path, [CONF_DIR], group)
            for part in [values, *values.values()]:
                if isinstance(part, dict) and str(part.get("_target_", "")).startswith("flrl."):
                    unknown = part.keys() - meanings(part["_target_"]).keys() - {"_target_", "_partial_"}
                    without += [f"{group}={name}: {key}" for key in unknown]
                    assert documentation(part["_target_"]), (group, name)
    assert without == []


def test_docstrings_are_found_without_importing() -> None:
    """The module's, then those of the class or function; nothing for what is not there."""
    module, shown = documentation("flrl.strategies.FedProx")
    assert module.startswith("FedProx: a proximal term")
    assert shown.startswith("FedAvg with the proximal term's gradient.")
    assert documentation("functools.partial")[1].startswith("New function with partial application")
    assert documentation("no_such_package.module.Thing") == []


def test_own_yamls_are_listed_too(tmp_path: Path) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("# Mine.\ndefaults:\n  - fedavg\n  - _self_\nrounds: 3\n")
    text = printed(f"--config-dir={tmp_path}", "strategy=mine")
    assert text.startswith("strategy=mine\nMine.\n")
    assert "rounds: 3" in text
    assert "min_clients: 1" in text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("strategi", r"group 'strategi': .*; did you mean strategy\?"),
        ("strategy=scafold", r"did you mean scaffold\?"),
    ],
)
def test_a_mistyped_name_is_an_error(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        printed(argument)


def test_parts_of_names_are_enough() -> None:
    pages = [printed(name) for name in ("strategy/aggregator=krum", "aggregator=krum", "krum")]
    assert pages[0].startswith("strategy/aggregator=krum\n")
    assert pages[1] == pages[2] == pages[0]


def test_wrong_options_and_yamls(cli: Any, tmp_path: Path) -> None:
    done = cli("--nonsense", main=info_main)
    assert (done.code, done.err.startswith("error: --nonsense: there is no such option")) == (1, True)
    assert cli("--config-dir=nowhere", main=info_main).err == "error: --config-dir=nowhere: there is no such folder\n"
    (tmp_path / "bad" / "strategy").mkdir(parents=True)
    (tmp_path / "bad" / "strategy" / "bad.yaml").write_text("a: [1,\nb: {")
    done = cli("--config-dir=bad", "strategy=bad", main=info_main)
    assert (done.code, done.err.count("\n"), "cannot be read" in done.err) == (1, 1, True)
