"""Loss curves of a task that a tiny model learns, in fp32 and in bf16, with the same data and first weights."""

import numpy as np

from data.config import IGNORE
from data.encoding.positions import mrope_positions
from data.types import PackedRow
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import STAGES, start
from tests.harness.rows import PATCH_DIM, pack
from train.state import TrainState
from train.step import train_step

STEPS = 200
WINDOW = 10
"""Steps that are averaged before two curves are compared."""
BAND = 0.01
"""Of the fp32 loss, at every place of the smoothed curve: five times the worst of three seeds, 0.0020, and a quarter of
the least that weights without fp32 masters cost within 60 steps, 0.048."""
KINDS = 8
NOISE = 0.1
"""Of the answers are drawn at random, so that the loss has a floor and a share of it means something to the end."""


def picture(generator: np.random.Generator, looks: np.ndarray) -> dict[str, np.ndarray]:
    """A noisy picture of one of KINDS kinds, and three tokens that say which."""
    kind, other = (int(number) for number in generator.integers(0, KINDS, 2))
    told = other if generator.random() < NOISE else kind
    tokens = np.array([8, 7, 7, 7, 7, 9, 20 + told, 30 + told, 10])
    targets = np.full(len(tokens), IGNORE)
    targets[5:8] = tokens[6:9]
    return {
        "tokens": tokens,
        "targets": targets,
        "positions": mrope_positions(len(tokens), [(1, (1, 2, 2))]),
        "grids": np.array([[1, 4, 4]]),
        "visual_index": np.arange(1, 5),
        "patches": (looks[kind] + generator.standard_normal((16, PATCH_DIM))).astype(np.float32),
    }


def counting(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Numbers that go round 16 in steps of 1, 2 or 3."""
    length, first, stride = (int(generator.integers(*ends)) for ends in ((8, 24), (0, 16), (1, 4)))
    tokens = 40 + (first + stride * np.arange(length)) % 16
    tokens = np.where(generator.random(length) < NOISE, 40 + generator.integers(0, 16, length), tokens)
    targets = np.append(tokens[1:], IGNORE)
    targets[0] = IGNORE  # one number does not tell the stride
    return {
        "tokens": tokens,
        "targets": targets,
        "positions": mrope_positions(length, []),
        "grids": np.empty((0, 3), dtype=np.int64),
        "visual_index": np.empty(0, dtype=np.int64),
        "patches": np.empty((0, PATCH_DIM), dtype=np.float32),
    }


def learnable_steps(seed: int, num_steps: int) -> list[list[PackedRow]]:
    """Four rows a step, of two pictures and two counts each."""
    generator = np.random.default_rng(seed)
    looks = np.random.default_rng(77).standard_normal((KINDS, 16, PATCH_DIM))
    makers = (lambda: picture(generator, looks), lambda: counting(generator))
    return [[pack([makers[i // 2]() for i in range(4)]) for _ in range(4)] for _ in range(num_steps)]


def learning_curve(seed: int, precision: str, num_steps: int = STEPS) -> list[float]:
    """The loss of each step of stage 2, with all ranks of the world as replicas."""
    parallel = ParallelConfig()
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        changes = {
            "learning_rates": dict.fromkeys(STAGES["stage2"], 2e-3),
            "steps": STEPS,
            "schedule": "cosine",
            "warmup": 0.05,
        }
        steps = learnable_steps(seed, num_steps)
        made = start(parallel, "stage2", groups, steps=steps, precision=precision, changes=changes)
        state = TrainState()
        losses = [train_step(made.parts, state).loss for _ in steps]
        made.optimizer.close()
    return losses


def smoothed(losses: list[float]) -> np.ndarray:
    """Means of WINDOW steps, (steps - WINDOW + 1,)."""
    return np.convolve(losses, np.ones(WINDOW) / WINDOW, "valid")


def farthest(exact: list[float], rounded: list[float]) -> float:
    """Largest distance of two smoothed curves, as a share of the first."""
    return float(np.abs(smoothed(rounded) / smoothed(exact) - 1).max())
