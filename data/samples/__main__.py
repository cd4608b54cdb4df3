"""`python -m data.samples --out DIR [--seed N] [--fraction F]`: make the sample data set, or leave it alone if it is
already there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from importlib.metadata import version
from pathlib import Path

from data.samples.recipe import TRAIN_SOURCES, heldout_documents, heldout_samples, train_samples
from data.samples.splits import rng_for
from data.samples.tasks import TASKS
from data.samples.text import prose, text_chat
from data.samples.tokenizer import train_tokenizer
from data.samples.write import write_source

HELDOUT_DOCUMENTS = ("captions", "text")
PACKAGES = ("scikit-learn", "scikit-image", "matplotlib", "pillow", "av", "numpy", "tokenizers", "webdataset")


def fingerprint(seed: int, fraction: float = 1.0) -> dict[str, object]:
    """What the bytes depend on: the seed, the share that is made, this folder's source files and the packages behind
    the material.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    packages = {name: version(name) for name in PACKAGES}
    return {"seed": seed, "fraction": fraction, "generator": digest.hexdigest(), "packages": packages}


def _tokenizer_texts(seed: int) -> list[str]:
    rng = rng_for(seed, "tokenizer", "train", 0)
    texts = [prose(rng, "train") for _ in range(1000)]
    for _ in range(5000):
        item = text_chat(rng, "train")
        # Strings to read are left out: they must stay spelled letter by letter.
        texts += [text for turn in item.turns for text in turn if not text.isupper()]
    return [*texts, "system\nYou are a helpful assistant.", "user\n", "assistant\n"] + ["user\nassistant\n"] * 100


def make(out: Path, seed: int, fraction: float = 1.0) -> dict[str, object]:
    """Write everything below `out`, with `fraction` of the training samples; DONE.json comes last and is returned."""
    started = time.monotonic()
    done: dict[str, object] = fingerprint(seed, fraction)
    counts = {}
    train_tokenizer(_tokenizer_texts(seed), out / "tokenizer")
    for source in TRAIN_SOURCES:
        folder = out / "train" / source
        counts[f"train/{source}"] = write_source(folder, source, train_samples(source, seed, fraction))
    for task in TASKS:
        counts[f"heldout/{task}"] = write_source(out / "heldout" / task, task, heldout_samples(task, seed))
    for source in HELDOUT_DOCUMENTS:
        name = f"document_{source}"
        counts[f"heldout/{name}"] = write_source(out / "heldout" / name, name, heldout_documents(source, seed))
    done["samples"] = counts
    done["bytes"] = sum(path.stat().st_size for path in out.rglob("*.tar"))
    print(f"sample data: {sum(counts.values())} samples, {done['bytes']} bytes, {time.monotonic() - started:.0f} s")
    partial = out / "DONE.json.partial"
    partial.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n")
    partial.replace(out / "DONE.json")
    return done


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m data.samples", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its old sample data are removed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the training samples; default: all")
    options = parser.parse_args()
    if not 0 < options.fraction <= 1:
        parser.error(f"--fraction {options.fraction:g} is a share of the training samples; give 0 < share <= 1")
    marker = options.out / "DONE.json"
    if marker.is_file():
        old = json.loads(marker.read_text())
        if fingerprint(options.seed, options.fraction).items() <= old.items():
            print(f"sample data: {options.out} is up to date")
            return
    marker.unlink(missing_ok=True)
    for part in ("train", "heldout", "tokenizer"):
        shutil.rmtree(options.out / part, ignore_errors=True)
    make(options.out, options.seed, options.fraction)


if __name__ == "__main__":
    main()
