"""ZeRO-1 by DeepSpeed, driven from outside its engine: megatron-core's schedule owns forward and backward.

Two DeepSpeed optimizers stand behind it: the ZeRO optimizer for fp32, and `BF16_Optimizer`, which shards the same way
and accumulates gradients in fp32. What they expect differently is said at each place below.
"""

import io
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor

from parallel.collectives import any_of, sum_over
from parallel.config import ParallelConfig
from parallel.gradients import finish_model_gradients
from parallel.groups import Groups
from parallel.norms import Piece, squared_norms
from parallel.replicas import have_parted, mean_copy
from parallel.stop import Stop
from parallel.stopwatch import Stopwatch
from parallel.zero_config import Mpu, deepspeed_config, placeholder

STATE_KEYS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamGroup:
    """Parameters that share a learning rate and a decay. Every rank lists the same groups in the same order."""

    name: str
    part: str
    named_parameters: Sequence[tuple[str, torch.nn.Parameter]]
    weight_decay: float
    rate_factor: float = 1.0
    """Learning rate as a share of the part's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragment:
    """What this data-parallel rank holds of one parameter's optimizer state."""

    param_name: str
    start: int
    """First element within the flattened local parameter."""
    numel: int
    tensors: dict[str, Tensor]
    """'master', 'exp_avg', 'exp_avg_sq': fp32 (numel,) views; writing into them changes the optimizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What became of a step's gradients, the same on every rank."""

    norm: float
    """Global norm before clipping; infinite where a gradient is not finite on any rank, and nothing was updated."""
    part_norms: dict[str, float] = field(default_factory=dict)
    """Of each part, likewise; empty where nothing was updated."""
    along: list[float] = field(default_factory=list)
    """Sums over all ranks of the numbers that were given along."""


class ZeroOptimizer:
    """AdamW whose fp32 masters and moments are sharded over the data axis."""

    def __init__(
        self,
        module: torch.nn.Module,
        param_groups: Sequence[ParamGroup],
        groups: Groups,
        *,
        betas: tuple[float, float],
        eps: float,
        clip_norm: float,
        bf16: bool,
        parallel: ParallelConfig,
    ) -> None:
        self.stop: Stop | None = None  # what a run is asked to end by, where that can happen
        self._module = module
        self._groups = groups
        self._bf16 = bf16
        self._names = {p: name for group in param_groups for name, p in group.named_parameters}
        self._tied = [p for p in self._names if getattr(p, "shared_embedding", False)]
        self._bucket_elements = parallel.reduce_bucket_elements
        # DeepSpeed's norm counts replicated parameters on tensor rank 0 alone and cannot take the norm of nothing.
        replicated_alone = not any(getattr(p, "tensor_model_parallel", False) for p in self._names)
        torch_groups = []
        for number, group in enumerate(param_groups):
            parameters = [p for _, p in group.named_parameters]
            if not parameters or (replicated_alone and number == 0 and groups.tp_size > 1):
                parameters.append(placeholder(module, number, groups))
            torch_groups.append({"params": parameters, "weight_decay": group.weight_decay, "lr": 0.0})
        self._rates = [(group.part, group.rate_factor) for group in param_groups]
        fused = parallel.kernels.fused_adamw
        adamw = torch.optim.AdamW(torch_groups, lr=0.0, betas=betas, eps=eps, fused=fused)
        deepspeed_logger.setLevel(logging.ERROR)
        # On CPU DeepSpeed would compile shared-memory collectives with the host's C++ compiler; gloo serves.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        with redirect_stdout(io.StringIO()):  # BF16_Optimizer prints a memory report for each group
            self._engine, self._zero, _, _ = deepspeed.initialize(
                model=module,
                optimizer=adamw,
                mpu=Mpu(groups),
                config=deepspeed_config(parallel, groups.dp_size, clip_norm, bf16),
                dist_init_required=False,
            )
        self._adamw = self._zero.optimizer
        self.updating = Stopwatch(groups.device)  # runs in AdamW itself, which waits for no rank
        self._adamw.register_step_pre_hook(lambda *_: self.updating.start())
        self._adamw.register_step_post_hook(lambda *_: self.updating.stop())
        for flat in self._flat_masters():
            # Adam would make these at its first step; a checkpoint can be read or written before that.
            step = torch.zeros((), dtype=torch.float32, device=flat.device if fused else "cpu")
            self._adamw.state[flat] = {"step": step} | {key: torch.zeros_like(flat) for key in STATE_KEYS}

    def set_learning_rates(self, rates: dict[str, float]) -> None:
        """Set the rate of each part for the coming step."""
        for (part, factor), group in zip(self._rates, self._zero.param_groups, strict=True):
            group["lr"] = rates[part] * factor

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Average every gradient over the data axis, after completing it within the replica.

        A trainable parameter that this step did not use has gradient zero on every layout, so moments and decay apply.
        """
        for parameters in self._low_precision_groups():
            for parameter in parameters:
                if parameter.grad is None and not self._bf16:
                    parameter.grad = torch.zeros_like(parameter)
        if self._bf16:
            # Gradients without the flag would be left out of this rank's norm and clipping, but not of its neighbours'.
            self._zero.fp32_groups_has_gradients = [[True] * len(group) for group in self._zero.bf16_groups]
        finish_model_gradients(self._names, self._tied, self.gradient, self._groups)
        if self._bf16:
            # In place: DeepSpeed would first copy a group, and with it the larger one after it, into one flat tensor.
            whole = self._zero.fp32_groups_gradients_flat
            pieces = [piece for flat in whole for piece in flat.split(self._bucket_elements)]
            self._engine.buffered_allreduce_fallback(pieces, elements_per_buffer=0)
        else:
            self._engine.allreduce_gradients()

    def step(self, along: Callable[[], Sequence[float]] = tuple) -> Update:
        """Clip, update, gather weights.

        Where a gradient is not finite on any rank, none updates and gradients are dropped. A request to end the run is
        agreed on beside that; where `stop` has dropped the step, this does not return.

        Args:
            along: numbers that ranks add up in the same message; asked when the device has done all work so far.
        """
        parts = list(dict.fromkeys(part for part, _ in self._rates))
        # DeepSpeed's norm leaves out copies that other ranks hold too, and a rank that alone saw nan would update.
        every, *squares = squared_norms(self._pieces(), parts)
        asks = self.stop is not None and self.stop.asks()
        unfit, asked, *rest = sum_over(None, [not math.isfinite(every), asks, *squares, *along()])
        if self.stop is not None:
            self.stop.admit(asked > 0)
        if unfit > 0:
            self.drop_gradients()
            return Update(norm=math.inf)
        self._engine.step()
        norm = self._zero._global_grad_norm
        return Update(
            norm=float(norm) if norm is not None else 0.0,
            part_norms={part: math.sqrt(square) for part, square in zip(parts, rest[: len(parts)], strict=True)},
            along=rest[len(parts) :],
        )

    def drop_gradients(self) -> None:
        """Forget this step's gradients without an update."""
        if self._bf16:
            self._zero.clear_hp_grads()
        else:
            self._zero.averaged_gradients.update(dict.fromkeys(self._zero.averaged_gradients))
        self._module.zero_grad(set_to_none=True)

    def gradient(self, parameter: torch.nn.Parameter) -> Tensor:
        """The accumulated gradient of a local parameter, valid between backward and `step`."""
        if not self._bf16:
            assert parameter.grad is not None
            return parameter.grad
        for group, gradients in zip(self._zero.bf16_groups, self._zero.fp32_groups_gradients, strict=True):
            for candidate, gradient in zip(group, gradients, strict=True):
                if candidate is parameter:
                    return gradient.view_as(parameter)
        raise AssertionError("not a trainable parameter of this rank")

    def fragments(self) -> list[Fragment]:
        """This rank's share of every trainable parameter's state, placeholders left out."""
        found = []
        flats = self._flat_masters()
        for parameters, flat in zip(self._low_precision_groups(), flats, strict=True):
            state = self._adamw.state[flat]
            for parameter in parameters:
                mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # set by DeepSpeed
                if mapping is None or parameter not in self._names:
                    continue
                place = mapping.hp_fragment_address
                tensors = {"master": flat.detach().narrow(0, place.start, place.numel)}
                tensors |= {key: state[key].narrow(0, place.start, place.numel) for key in STATE_KEYS}
                found.append(
                    Fragment(
                        param_name=self._names[parameter],
                        start=mapping.lp_fragment_address.start,
                        numel=mapping.lp_fragment_address.numel,
                        tensors=tensors,
                    )
                )
        return found

    @property
    def steps_taken(self) -> int:
        return int(self._adamw.state[self._flat_masters()[0]]["step"].item())

    def loaded(self, steps_taken: int) -> None:
        """Say that the tensors of `fragments()` were written from a checkpoint taken after `steps_taken` updates."""
        for flat in self._flat_masters():
            self._adamw.state[flat]["step"].fill_(float(steps_taken))

    @torch.no_grad()
    def masters_from_weights(self) -> None:
        """Start the fp32 masters from weights that were loaded into the module after construction."""
        for fragment in self.fragments():
            parameter = self._module.get_parameter(fragment.param_name)
            fragment.tensors["master"].copy_(parameter.view(-1)[fragment.start : fragment.start + fragment.numel])

    @torch.no_grad()
    def average_replicas(self) -> list[str]:
        """Make copies that tensor ranks hold alike one again where they have parted; local names of those that had.

        Masters and moments are averaged, and a trained weight becomes its master again, so that a run that goes on and
        one that is resumed from the file have the same bits. What has not parted keeps its bits. Every rank calls it.
        """
        if self._groups.tp_size == 1:
            return []
        shares = {fragment.param_name: fragment for fragment in self.fragments()}
        averaged = []
        for name, parameter in self.replicated():
            share = shares.get(name)
            copies = [parameter, *(share.tensors.values() if share else ())]
            # Weights are alike over the data axis; of masters and moments each data rank sees its share alone.
            if any_of(self._groups.dp, have_parted(copies, self._groups)):
                self._average(parameter, share)
                averaged.append(name)
        return averaged

    def replicated(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Parameters that every tensor rank holds whole, by local name."""
        named = self._module.named_parameters()
        return [(name, p) for name, p in named if not getattr(p, "tensor_model_parallel", False)]

    def _average(self, parameter: torch.nn.Parameter, share: Fragment | None) -> None:
        if parameter not in self._names:  # frozen
            parameter.copy_(mean_copy(parameter, self._groups))
            return
        master = torch.zeros(parameter.numel(), device=parameter.device)
        if share is not None:
            for tensor in share.tensors.values():
                tensor.copy_(mean_copy(tensor, self._groups))
            master[share.start : share.start + share.numel] = share.tensors["master"]
        dist.all_reduce(master, group=self._groups.dp)
        parameter.copy_(master.view_as(parameter))

    def close(self) -> None:
        """Let go of DeepSpeed's hooks, so that a process can build another optimizer."""
        self._engine.destroy()

    def _pieces(self) -> list[Piece]:
        """The reduced gradients that this rank's share of the update is made from."""
        found = []
        for number, (part, _) in enumerate(self._rates):
            for parameter, gradient in self._share_of_group(number):
                # As DeepSpeed counts them: one of the copies that tensor ranks hold, and one of a tied embedding.
                alone = getattr(parameter, "tensor_model_parallel", False) or self._groups.tp_rank == 0
                counts = alone and not getattr(parameter, "ds_pipe_replicated", False)
                found.append(Piece(part=part, gradient=gradient, counts=counts))
        return found

    def _share_of_group(self, number: int) -> list[tuple[torch.nn.Parameter, Tensor]]:
        if not self._bf16:
            gradients = self._zero.averaged_gradients[number]
            filled = (gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False))
            return list(zip(self._zero.params_in_partition[number], filled, strict=False))  # padding may come last
        flat = self._zero.fp32_groups_gradient_flat_partition[number]
        places = [(p, p._hp_mapping) for p in self._zero.bf16_groups[number]]  # set by DeepSpeed; None: another rank's
        mine = [(p, place.hp_fragment_address) for p, place in places if place is not None]
        return [(p, flat.narrow(0, address.start, address.numel)) for p, address in mine]

    def _flat_masters(self) -> list[Tensor]:
        return self._zero.fp32_groups_flat_partition if self._bf16 else self._zero.single_partition_of_fp32_groups

    def _low_precision_groups(self) -> list[list[torch.nn.Parameter]]:
        return self._zero.bf16_groups if self._bf16 else self._zero.bit16_groups
