"""The wheel carries configs/ and data/ as tiebreak/shipped/, where tiebreak.shipped looks for them."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("configs", "data")


class BuildWithFiles(build_py):
    """The packages, and the files that come with them; an editable install finds those in the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for folder in FOLDERS:
                shutil.copytree(folder, Path(self.build_lib) / "tiebreak" / "shipped" / folder, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithFiles})
