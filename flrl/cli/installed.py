"""Folders of yamls that installed packages add, by the entry-point group `flrl.conf`."""

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

GROUP = "flrl.conf"


def installed_dirs() -> list[Path]:
    """The folders that installed packages add to the conf tree, by the names of their entry points.

    An entry point `lab = "my_lab.conf"` stands for the folder `conf` of the package `my_lab`, which is not imported.

    Raises:
        ValueError: an entry point names a folder that there is not.
    """
    return [_folder(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]


def _folder(point: EntryPoint) -> Path:
    first, *rest = point.value.split(".")
    spec = find_spec(first) if first.isidentifier() else None
    places = [Path(place).joinpath(*rest) for place in (spec and spec.submodule_search_locations) or ()]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        package = point.dist.name if point.dist else "a package"
        raise ValueError(f"{package}: its entry point {point.name}={point.value} of {GROUP} is no folder of a package")
    return found
