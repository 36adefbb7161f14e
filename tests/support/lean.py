"""The wheel as an instance has it: with what it requires, and nothing else.

    python tests/support/lean.py FOLDER

An environment for development has more. So a requirement that is missing would show on an instance only; and
libraries load what they find: dependency-injector takes pydantic-settings and Werkzeug, which moto brings
along: a tenth of a second or more, and 16 MiB.
"""

import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["lean_environment"]

_WHEEL: Final = "runs-fleet-agent"


def lean_environment(folder: Path) -> None:
    """Makes a virtual environment there, of links into this one."""
    venv.create(folder, symlinks=True, clear=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for each in _with_required(_WHEEL, {}).values():
        tops = {file.parts[0] for file in each.files or ()} - {"..", "__pycache__"}
        for top in tops:
            (packages / top).symlink_to(Path(str(each.locate_file(top))))
    programs = folder / "bin"
    _, _, script = (Path(sys.executable).parent / _WHEEL).read_text("utf-8").partition("\n")
    command = programs / _WHEEL
    command.write_text(f"#!{programs}/python\n{script}", "utf-8")
    command.chmod(0o755)


def _with_required(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """Adds the distribution of that name to those that were found, and all that it requires."""
    if name not in found:
        found[name] = distribution(name)
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                _with_required(canonicalize_name(requirement.name), found)
    return found


if __name__ == "__main__":
    lean_environment(Path(sys.argv[1]).absolute())
