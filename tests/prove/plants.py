"""Known defects, planted from outside in a worker process. A proof that passes with one of them is no proof."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.prove import (
    checkpoint_defects,
    data_chat_defects,
    data_defects,
    data_index_defects,
    data_loader_defects,
    data_oss_defects,
    data_plan_defects,
    data_text_defects,
    data_video_defects,
    data_whole_defects,
    launch_defects,
    launch_diagnose_defects,
    launch_plan_defects,
    launch_recipes_defects,
    launch_watch_defects,
    parallel_awkward_defects,
    parallel_faults_defects,
    parallel_finite_defects,
    parallel_grid_defects,
    parallel_messages_defects,
    parallel_precision_defects,
    parallel_replicas_defects,
    parallel_state_defects,
    parallel_times_defects,
    step_defects,
)
from tests.prove.model_data_defects import MODEL_DATA_PLANTS
from tests.prove.model_defects import MODEL_PLANTS
from tests.prove.model_parts_defects import MODEL_PARTS_PLANTS
from tests.prove.model_weights_defects import MODEL_WEIGHTS_PLANTS
from tests.prove.planting import Mend


@dataclass(frozen=True, kw_only=True)
class Plant:
    """One defect."""

    apply: Callable[[], Mend]
    """Breaks this process; returns how to mend it."""
    cases: tuple[str, ...]
    """Cases of its proof to run with it; at least one has to fail."""
    proof: str = "core"
    ends: bool = False
    """It makes a case raise or hang, and that is how it shows."""


PLANTS = {
    "dp_scale": Plant(apply=step_defects.dp_scale, cases=("layout/stage2/DP2",)),
    "microbatch_mean": Plant(apply=step_defects.microbatch_mean, cases=("layout/stage2/DP2", "step/tied")),
    "tied_reduction": Plant(apply=step_defects.tied_reduction, cases=("layout/stage2/PP2",)),
    "sequence_parallel_reduction": Plant(
        apply=step_defects.sequence_parallel_reduction, cases=("layout/stage2/TP2+SP",)
    ),
    "merger_gradient_rank0": Plant(apply=step_defects.merger_gradient_rank0, cases=("layout/stage1/TP2",)),
    "merger_gradient_rank1": Plant(apply=step_defects.merger_gradient_rank1, cases=("layout/stage3/TP2",)),
    "packed_positions": Plant(apply=data_defects.packed_positions, cases=("positions",)),
    "row_positions": Plant(apply=data_defects.row_positions, cases=("parity/tied",)),
    "label_mask_encoded": Plant(apply=data_defects.label_mask_encoded, cases=("supervision",)),
    "label_mask_announced": Plant(apply=data_defects.label_mask_announced, cases=("parity/tied",)),
    "row_twice": Plant(apply=data_defects.row_twice, cases=("resume/DP2",)),
    "moments_forgotten": Plant(apply=data_defects.moments_forgotten, cases=("resume/DP2",)),
    "crc_off": Plant(apply=data_defects.crc_off, cases=("damaged shard",)),
    "commit_digest_off": Plant(apply=data_defects.commit_digest_off, cases=("damaged commit",)),
    "early_seal": Plant(apply=data_defects.early_seal, cases=("save cut short",)),
    "frozen_decay": Plant(apply=step_defects.frozen_decay, cases=("frozen/stage1", "frozen/stage3")),
    "nothing_frozen": Plant(apply=step_defects.nothing_frozen, cases=("frozen/stage1", "frozen/stage3")),
    "frozen_tower_in_graph": Plant(apply=step_defects.frozen_tower_in_graph, cases=("tower memory",)),
    "swapped_norms": Plant(apply=step_defects.swapped_norms, cases=("parity/untied",)),
    "no_causal_mask": Plant(apply=step_defects.no_causal_mask, cases=("parity/tied",)),
    "across_samples": Plant(apply=step_defects.across_samples, cases=("parity/tied",)),
    "handshake": Plant(apply=step_defects.handshake, cases=("messages/PP2",)),
    "padded_rows": Plant(apply=data_defects.padded_rows, cases=("messages/PP2",)),
}
_OF_THE_MODEL = (MODEL_PLANTS, MODEL_WEIGHTS_PLANTS, MODEL_PARTS_PLANTS, MODEL_DATA_PLANTS)
_OF_PARALLEL = tuple(
    topic.PLANTS
    for topic in (
        parallel_grid_defects,
        parallel_awkward_defects,
        parallel_messages_defects,
        parallel_times_defects,
        parallel_state_defects,
        parallel_replicas_defects,
        parallel_faults_defects,
        parallel_finite_defects,
        parallel_precision_defects,
    )
)
_OF_DATA = tuple(
    topic.PLANTS
    for topic in (
        data_oss_defects,
        data_index_defects,
        data_plan_defects,
        data_loader_defects,
        data_video_defects,
        data_text_defects,
        data_chat_defects,
        data_whole_defects,
    )
)
_OF_LAUNCH = tuple(
    topic.PLANTS
    for topic in (
        launch_defects,
        launch_plan_defects,
        launch_recipes_defects,
        launch_watch_defects,
        launch_diagnose_defects,
    )
)
_ENDING = {"each_rank_alone", *checkpoint_defects.ENDING}
"""Ranks part: one leaves a step out and the others wait for it; and those of checkpoint_defects.py."""
PLANTS |= {
    name: Plant(apply=apply, cases=cases, proof=proof, ends=name in _ENDING)
    for proof, group in (
        ("model", _OF_THE_MODEL),
        ("parallel", _OF_PARALLEL),
        ("data", _OF_DATA),
        ("checkpoint", (checkpoint_defects.PLANTS,)),
        ("launch", _OF_LAUNCH),
    )
    for plants in group
    for name, (apply, cases) in plants.items()
}
