"""Defects for tests/prove/parallel_awkward.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tests.prove.planting import Mend, replace_name


def absent_gradient_skipped() -> Mend:
    """A trainable parameter that this rank's share of a step did not use is left as it is, as torch's AdamW does."""
    from parallel.zero import ZeroOptimizer

    def make_reduce(reduce: Any) -> Any:
        def planted(self: Any) -> None:
            parameters = [p for group in self._low_precision_groups() for p in group]
            used = (lambda p: self.gradient(p).any()) if self._bf16 else (lambda p: p.grad is not None)
            self.left = {p: p.detach().clone() for p in parameters if not used(p)}
            reduce(self)

        return planted

    def make_step(step: Any) -> Any:
        def planted(self: Any) -> float:
            norm: float = step(self)
            with torch.no_grad():
                for parameter, value in self.left.items():
                    parameter.copy_(value)
            return norm

        return planted

    return _both(
        replace_name(ZeroOptimizer, "reduce_gradients", make_reduce), replace_name(ZeroOptimizer, "step", make_step)
    )


def absent_gradient_undecayed() -> Mend:
    """A group of parameters that no picture reached is not decayed."""
    from parallel.zero import ZeroOptimizer

    def make_reduce(reduce: Any) -> Any:
        def planted(self: Any) -> None:
            self.decays = [group["weight_decay"] for group in self._zero.param_groups]
            for group, parameters in zip(self._zero.param_groups, self._low_precision_groups(), strict=True):
                if all(parameter.grad is None for parameter in parameters):
                    group["weight_decay"] = 0.0
            reduce(self)

        return planted

    def make_step(step: Any) -> Any:
        def planted(self: Any) -> float:
            norm: float = step(self)
            for group, decay in zip(self._zero.param_groups, self.decays, strict=True):
                group["weight_decay"] = decay
            return norm

        return planted

    return _both(
        replace_name(ZeroOptimizer, "reduce_gradients", make_reduce), replace_name(ZeroOptimizer, "step", make_step)
    )


def _both(one: Mend, other: Mend) -> Mend:
    def mend() -> None:
        one()
        other()

    return mend


def _after_skipping(do: Callable[[Any, Any], None]) -> Mend:
    """Do something with the parts and the state of each step that was skipped."""
    import tests.harness.skipped
    import train.trainer

    def make(train_step: Any) -> Any:
        def planted(parts: Any, state: Any) -> Any:
            report = train_step(parts, state)
            if report.skipped:
                do(parts, state)
            return report

        return planted

    places = (tests.harness.skipped, train.trainer)
    return _both(*(replace_name(place, "train_step", make) for place in places))


def skipped_step_updates() -> Mend:
    """A step with nothing to learn takes an update with gradients of zero."""

    def update(parts: Any, _: Any) -> None:
        parts.optimizer.reduce_gradients()
        parts.optimizer.set_learning_rates(dict.fromkeys(parts.stage.trainable, 1e-3))
        parts.optimizer.step()

    return _after_skipping(update)


def skipped_step_uncounted() -> Mend:
    """A step with nothing to learn is not counted as skipped."""

    def uncount(_: Any, state: Any) -> None:
        state.skipped -= 1

    return _after_skipping(uncount)


def cursor_waits() -> Mend:
    """The data cursor does not move past a step that was skipped."""
    import train.trainer

    def make(train_step: Any) -> Any:
        def planted(parts: Any, state: Any) -> Any:
            before = parts.batches.cursor
            report = train_step(parts, state)
            if report.skipped:
                parts.batches.cursor = before
            return report

        return planted

    return replace_name(train.trainer, "train_step", make)


def skipped_unrecorded() -> Mend:
    """What was left out is not written down."""
    from train.metrics import Metrics

    return replace_name(Metrics, "_record_skipped", lambda _: lambda *__: None)


def padding_supervised() -> Mend:
    """The token that pads a row for sequence parallelism is to be learnt."""
    import train.batches

    def make(integers: Any) -> Any:
        def planted(row: Any, multiple: int) -> Any:
            tokens, targets, *rest = integers(row, multiple)
            targets[len(row.tokens) :] = 0
            return [tokens, targets, *rest]

        return planted

    return replace_name(train.batches, "_integers", make)


def padding_in_the_vocabulary() -> Mend:
    """Rows that only pad the vocabulary take part in the softmax."""
    from megatron.core.models.gpt import GPTModel

    from model.language import LanguageModel

    return replace_name(LanguageModel, "compute_language_model_loss", lambda _: GPTModel.compute_language_model_loss)


def masked_tokens_learnt() -> Mend:
    """Every token is to be learnt, supervised or not."""
    import train.step

    def make(forward_backward: Any) -> Any:
        def planted(parts: Any, announced: Any, targets: int, **keywords: Any) -> Any:
            rows = [
                replace(
                    row,
                    supervised=torch.arange(row.tokens.numel()),
                    targets=row.tokens.roll(-1, 1),
                    sources=torch.zeros_like(row.tokens),
                )
                for row in announced.rows
            ]
            return forward_backward(parts, replace(announced, rows=rows), targets, **keywords)

        return planted

    return replace_name(train.step, "forward_backward", make)


def mean_of_replicas() -> Mend:
    """Each replica divides by its own supervised tokens, not by a share of the step's."""
    import train.step

    def make(forward_backward: Any) -> Any:
        def planted(parts: Any, announced: Any, targets: int, **keywords: Any) -> Any:
            own = max(1, announced.num_targets * parts.groups.dp_size)
            return forward_backward(parts, announced, own, **keywords)

        return planted

    return replace_name(train.step, "forward_backward", make)


def microbatches_doubled() -> Mend:
    """Where microbatches are fewer than pipeline stages the first of them goes through once more."""
    from parallel.schedule import Schedule

    def make(run: Any) -> Any:
        def planted(self: Any, microbatches: Any, lengths: Any, *arguments: Any, **keywords: Any) -> Any:
            if len(microbatches) < self._groups.pp_size:
                microbatches, lengths = [*microbatches, microbatches[0]], [*lengths, lengths[0]]
            return run(self, microbatches, lengths, *arguments, **keywords)

        return planted

    return replace_name(Schedule, "run", make)


def grids_of_one_rank() -> Mend:
    """Tensor rank 1 takes pictures and clips of a row in another order."""
    from model.vision import VisionTower

    def make(forward: Any) -> Any:
        def planted(self: Any, patches: Any, grids: Any) -> Any:
            return forward(self, patches, grids[::-1] if self.groups.tp_rank == 1 else grids)

        return planted

    return replace_name(VisionTower, "forward", make)


def long_rows_cut() -> Mend:
    """Tokens beyond the first 2048 of a row are not learnt."""
    import train.batches

    def make(integers: Any) -> Any:
        def planted(row: Any, multiple: int) -> Any:
            kept = np.where(np.arange(len(row.targets)) < 2048, row.targets, -100)
            return integers(replace(row, targets=kept), multiple)

        return planted

    return replace_name(train.batches, "_integers", make)


def heads_unchecked() -> Mend:
    """Nobody looks whether tensor ranks can share the heads."""
    import train.crosscheck

    return replace_name(train.crosscheck, "layout_faults", lambda _: lambda *__: [])


def interleaving_unchecked() -> Mend:
    """Nobody looks whether pipeline stages divide the microbatches."""
    import train.crosscheck

    return replace_name(train.crosscheck, "_interleaving", lambda _: lambda *__: [])


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "absent_gradient_skipped": (absent_gradient_skipped, ("awkward/no picture in a whole step/DP2/stage2",)),
    "absent_gradient_skipped_on_a_replica": (
        absent_gradient_skipped,
        ("awkward/a replica without pictures in the whole step/DP2/stage1",),
    ),
    "absent_gradient_skipped_bf16": (absent_gradient_skipped, ("awkward/bf16/DP2xPP2",)),
    "absent_gradient_undecayed": (absent_gradient_undecayed, ("awkward/no picture in a whole step/PP2/stage3",)),
    "skipped_step_updates": (skipped_step_updates, ("awkward/skipped/no supervised token/DP2",)),
    "skipped_run_updates": (skipped_step_updates, ("awkward/skipped run/PP2",)),
    "skipped_step_uncounted": (skipped_step_uncounted, ("awkward/skipped/no picture in stage 1/PP2",)),
    "cursor_waits": (cursor_waits, ("awkward/skipped run/DP2",)),
    "skipped_unrecorded": (skipped_unrecorded, ("awkward/skipped run/PP2",)),
    "padding_supervised": (
        padding_supervised,
        ("awkward/odd lengths under sequence parallelism/TP2+SP/stage2",),
    ),
    "padding_in_the_vocabulary": (
        padding_in_the_vocabulary,
        ("awkward/9 words on 4 tensor ranks/TP4/stage2", "awkward/301 words on 2 and 4 tensor ranks/TP2/stage2"),
    ),
    "masked_tokens_learnt": (masked_tokens_learnt, ("awkward/a row whose tokens are all masked/PP2/stage2",)),
    "mean_of_replicas": (mean_of_replicas, ("awkward/a row whose tokens are all masked/DP2/stage2",)),
    "microbatches_doubled": (
        microbatches_doubled,
        ("awkward/fewer microbatches than pipeline stages/PP4/stage2", "awkward/one microbatch/PP2/stage1"),
    ),
    "grids_of_one_rank": (grids_of_one_rank, ("awkward/pictures and clips in one row/TP2+SP/stage2",)),
    "long_rows_cut": (long_rows_cut, ("awkward/lengths of 5, 37, 700 and 3000 tokens/PP2/stage2",)),
    "heads_unchecked": (heads_unchecked, ("awkward/refused/fewer key/value heads than tensor ranks",)),
    "interleaving_unchecked": (interleaving_unchecked, ("awkward/refused/interleaving, 1 microbatch a replica",)),
}
