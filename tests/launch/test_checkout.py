"""The five short package names have to be ours."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.checkout import PACKAGES, ROOT, CheckoutError, check_checkout


def test_this_checkout_is_in_order() -> None:
    check_checkout()


def test_every_package_of_the_checkout_is_checked() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} == set(PACKAGES)


def test_a_folder_that_shadows_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").touch()
    code = "import sys; sys.path[:0] = sys.argv[1:]\nfrom launch.checkout import check_checkout; check_checkout()"
    command = [sys.executable, "-c", code, str(tmp_path), str(ROOT)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1
    assert f"import data gives {tmp_path.resolve() / 'data'}" in found.stderr
    assert f"cd {ROOT}" in found.stderr


def test_another_root_is_refused_with_every_package(tmp_path: Path) -> None:
    with pytest.raises(CheckoutError) as caught:
        check_checkout(tmp_path)
    assert str(caught.value).count("import ") == len(PACKAGES)
