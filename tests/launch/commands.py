"""The `triptych` command in a test's own process."""

import pytest

from launch.cli import main


def end(*arguments: object) -> int:
    """The exit code of `triptych ARGUMENTS`, run in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code
