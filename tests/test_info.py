"""What `python -m flrl.info` prints."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from flrl.config import CONF_DIR
from flrl.info import choices, documentation, header, info


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
            assert line in text


def test_a_page_has_header_references_and_settings() -> None:
    page = printed("strategy=scaffold")
    assert page.startswith("strategy=scaffold\nSCAFFOLD (Karimireddy et al., ICML 2020)")
    assert "arXiv 1910.06378" in page
    assert "option: a client's new variate" in page
    assert "rounds: 10" in page  # of fedavg.yaml, which it includes
    assert page.rstrip().endswith("option: 2")


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
    [("strategi", r"group 'strategi': .*; did you mean strategy\?"), ("strategy=scafold", r"did you mean scaffold\?")],
)
def test_a_mistyped_name_is_an_error(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        printed(argument)
