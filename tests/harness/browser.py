"""A page in a headless browser: what its reader gets, and what is seen on it."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

INSTALL = "apt-get install chromium"
_WINDOW = "1000,1600"


class Browser:
    """Chromium with a profile of its own in `scratch`."""

    def __init__(self, program: str, scratch: Path) -> None:
        self._scratch = scratch
        self._command = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={scratch}/profile"]
        # Else colours are those of a monitor, and pixels not those of the page.
        self._command += ["--force-color-profile=srgb", "--force-device-scale-factor=1", f"--window-size={_WINDOW}"]

    def dom(self, page: Path) -> str:
        """The page as it is after loading, as HTML."""
        return self._run("--dump-dom", page)

    def screen(self, page: Path) -> NDArray[np.uint8]:
        """The pixels (height, width, 3) of the page's upper part."""
        target = self._scratch / "screen.png"
        self._run(f"--screenshot={target}", page)
        return np.asarray(Image.open(target).convert("RGB"))

    def _run(self, what: str, page: Path) -> str:
        done = subprocess.run(
            [*self._command, what, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout


def find_browser(scratch: Path) -> Browser | None:
    """Chromium or Chrome if one is installed; INSTALL has the way to it."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    return None if program is None else Browser(program, scratch)


def is_blank(screen: NDArray[np.uint8]) -> bool:
    """Whether there is one colour, or text alone: a picture has thousands."""
    return len(np.unique(screen.reshape(-1, 3), axis=0)) < 1000


def shows(screen: NDArray[np.uint8], picture: NDArray[np.uint8]) -> bool:
    """Whether the picture's last row is somewhere on the screen, pixel for pixel; boxes lie above it."""
    wanted = picture[-1].tobytes()
    return any(wanted in row.tobytes() for row in screen)
