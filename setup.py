"""The wheel carries configs/ and data/ as tiebreak/shipped/, where tiebreak.shipped looks for them."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("configs", "data")
COMPILED = shutil.ignore_patterns("__pycache__")


class BuildWithFiles(build_py):
    """The packages, and the files that come with them; an editable install finds those in the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for folder in FOLDERS:
                place = Path(self.build_lib) / "tiebreak" / "shipped" / folder
                shutil.copytree(folder, place, ignore=COMPILED, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithFiles})
