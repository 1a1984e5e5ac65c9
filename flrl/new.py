"""Write a study of your own to start from: `python -m flrl.new my_study`, or `flrl-new my_study`.

The study runs at once, and its test passes; the files are in `flrl/new_study/`, with `my_study` for its name.
"""

import argparse
import keyword
import re
import sys
import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

TEMPLATE = Path(__file__).parent / "new_study"
_NAME, _SUFFIX = "my_study", ".txt"
_PYTEST = "which comes with pip install pytest, or with flrl's extra dev"


def new(folder: Path) -> list[Path]:
    """Write a study into a new folder, whose name becomes that of its module and of its experiment.

    Returns:
        the files that were written.

    Raises:
        ValueError: the name cannot be a module's, or is that of a module already.
        FileExistsError: there is such a folder or file already.
    """
    name = folder.name
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        close = re.sub(r"\W", "_", letters)
        usable = close.isidentifier() and not keyword.iskeyword(close)
        hint = f"; did you mean {close}?" if usable else ""
        raise ValueError(f"{name!r} cannot be the name of a module: letters, digits and _, no digit first{hint}")
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: choose another name, or remove it")
    if find_spec(name) is not None:
        raise ValueError(f"{name!r} is the name of an installed module already: did you mean {name}_study?")
    written = []
    for source in sorted(TEMPLATE.rglob(f"*{_SUFFIX}")):
        place = source.relative_to(TEMPLATE).as_posix().removesuffix(_SUFFIX)
        path = folder / place.replace(_NAME, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source.read_text().replace(_NAME, name))
        written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script `flrl-new`."""
    parser = argparse.ArgumentParser(prog="flrl-new", description="Write a study of your own to start from.")
    parser.add_argument("folder", type=Path, help="the new folder; its last part is the study's name")
    folder = parser.parse_args(arguments).folder
    try:
        written = new(folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print("\n".join(map(str, written)))
    command = f"python -m flrl.train --config-dir=conf +experiment={folder.name}"
    print(f"\nRun it, then its test:\n  cd {folder}\n  {command}\n  python -m pytest    # {_PYTEST}")


if __name__ == "__main__":
    main()
