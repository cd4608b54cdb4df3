"""What no single record can see: the parts of a recipe against each other, and against the number of processes.

All of it is arithmetic on the recipe, so it runs before any process group, file or device is touched.
"""

import re
from collections.abc import Iterator

from model.placement import layout_faults
from parallel.config import ParallelConfig
from train.config import RunConfig
from train.sources import part_sources

LEAST_EPS = 1e-30
ADDRESS = re.compile(r"oss://[a-z0-9][a-z0-9-]{1,61}[a-z0-9]/[^/\s][^\s]*")
"""Of checkpoints: a prefix there must be, so that a bucket can hold those of several runs."""


def cross_faults(run: RunConfig) -> list[str]:
    """One line, with numbers and a cure, for every pair of values that cannot go together."""
    return [
        *layout_faults(run.model, run.parallel),
        *_stage(run),
        *_parts(run),
        *_sources(run),
        *_pictures(run),
        *_cadence(run),
        *_upload(run),
        *_evaluation(run),
    ]


def world_faults(run: RunConfig, world_size: int) -> list[str]:
    """The same for the number of processes the run is started with."""
    try:
        data_size = run.parallel.data_size(world_size)
    except ValueError as fault:
        return [f"{fault} (NPROC_PER_NODE of launch/torchrun.sh, --processes of triptych resume)"]
    rows = run.data.rows_per_step
    if rows < data_size:
        return [
            f"data.rows_per_step={rows} rows leave none for some of {data_size} replicas ({world_size} processes / "
            f"tensor {run.parallel.tensor} / pipeline {run.parallel.pipeline}); start fewer processes, split the model "
            f"over more of them, or set data.rows_per_step={data_size}"
        ]
    absent = [rank for rank in run.profile.ranks if not 0 <= rank < world_size] if run.profile.steps else []
    if absent:
        return [f"profile.ranks={list(run.profile.ranks)} names {absent}, and ranks are 0 to {world_size - 1}"]
    # Rows that replicas do not divide are dealt to them by one more and one less.
    most, least = -(-rows // data_size), rows // data_size
    return _interleaving(run.parallel, most, data_size) or _interleaving(run.parallel, least, data_size)


def _interleaving(parallel: ParallelConfig, microbatches: int, data_size: int) -> list[str]:
    """megatron-core sends microbatches through a chunk in groups of `pipeline`, and refuses a last group of less."""
    if parallel.chunks == 1 or microbatches % parallel.pipeline == 0:
        return []
    more = -(-microbatches // parallel.pipeline) * parallel.pipeline
    return [
        f"parallel.chunks={parallel.chunks} interleaves {microbatches} microbatches a replica over parallel.pipeline="
        f"{parallel.pipeline} pipeline stages, which have to divide them; set data.rows_per_step={more * data_size} or "
        "parallel.chunks=1"
    ]


def _stage(run: RunConfig) -> Iterator[str]:
    stage = run.stage
    if (stage.steps is None) == (stage.tokens is None):
        yield (
            f"stage {stage.name} has stage.steps={stage.steps} and stage.tokens={stage.tokens}; "
            "give one of them and set the other to null"
        )
    for name, length in (("steps", stage.steps), ("tokens", stage.tokens)):
        if length is not None and length < 1:
            yield f"stage.{name}={length}; a stage needs at least 1"
    if not 0 <= stage.warmup < 1:
        yield f"stage.warmup={stage.warmup} is a share of the stage's length; set 0 <= stage.warmup < 1"
    if not 0 <= stage.final_rate <= 1:
        yield f"stage.final_rate={stage.final_rate} is a share of the peak rate; set 0 <= stage.final_rate <= 1"
    for name in ("weight_decay", "clip_norm", "eps"):
        value = getattr(run.optimizer, name)
        if value < 0 or (value == 0 and name != "weight_decay"):
            yield f"optimizer.{name}={value:g} must be {'0 or more' if name == 'weight_decay' else 'positive'}"
    if 0 < run.optimizer.eps < LEAST_EPS:
        yield (
            f"optimizer.eps={run.optimizer.eps:g} is nothing beside fp32 moments, so a weight whose gradient is zero "
            f"would become nan; set {LEAST_EPS:g} or more"
        )
    if run.optimizer.skip_non_finite < 0:
        yield f"optimizer.skip_non_finite={run.optimizer.skip_non_finite} is a number of steps and must be 0 or more"
    for part, value in stage.weight_decays.items():
        if value < 0:
            yield f"stage.weight_decays.{part}={value:g} must be 0 or more"
    for part, value in stage.layer_decays.items():
        if part == "merger":
            yield "stage.layer_decays names merger, which has no layers; vision and language have"
        elif not 0 < value <= 1:
            yield f"stage.layer_decays.{part}={value:g} is a share of the layer above; set 0 < d <= 1"
    if not all(0 <= beta < 1 for beta in run.optimizer.betas):
        yield f"optimizer.betas={list(run.optimizer.betas)}; AdamW needs both in [0, 1)"


def _parts(run: RunConfig) -> Iterator[str]:
    stage, parts = run.stage, run.model.parts
    lists = {
        "stage.trainable": stage.trainable,
        "stage.learning_rates": tuple(stage.learning_rates),
        "stage.weight_decays": tuple(stage.weight_decays),
        "stage.layer_decays": tuple(stage.layer_decays),
        "init.fresh": run.init.fresh,
    }
    for key, named in lists.items():
        for part in sorted(set(named) - set(parts)):
            yield f"{key} names the part {part!r}; {run.model.name} has {', '.join(parts)}"
        if len(set(named)) < len(named):
            yield f"{key}={list(named)} names a part twice; name each once"
    if not stage.trainable:
        yield f"stage.trainable is empty, so nothing would learn; name one or more of {', '.join(parts)}"
    for part in stage.trainable:
        rate = stage.learning_rates.get(part)
        if part in parts and (rate is None or rate <= 0):
            had = "no rate" if rate is None else f"rate {rate:g}"
            yield f"stage.trainable has {part} but stage.learning_rates gives it {had}; set stage.learning_rates.{part}"
    if not run.init.std > 0:
        yield f"init.std={run.init.std:g} must be more than 0: parts drawn alike would learn alike"


def _sources(run: RunConfig) -> Iterator[str]:
    init = run.init
    if init.from_run and init.from_hf:
        yield f"init.from_run={init.from_run} and init.from_hf={init.from_hf} both give weights; null one"
    for part, folder in (("language", init.language), ("vision", init.vision)):
        if folder and part not in run.model.parts:
            yield f"init.{part}={folder} but {run.model.name} has no {part} part; set init.{part}=null"
        if folder and part in init.fresh:
            yield (
                f"init.{part}={folder} and init.fresh={list(init.fresh)} both give {part}; set init.{part}=null or "
                f"leave {part} out of init.fresh"
            )
    kinds = {source.kind for source in part_sources(run).values()}
    for kind, folder in (("from_run", init.from_run), ("from_hf", init.from_hf)):
        if folder and kind not in kinds and not (init.from_run and init.from_hf):
            yield f"init.{kind}={folder} is left no part to give: {', '.join(run.model.parts)} are named elsewhere"
    if init.accept_activation and not init.vision:
        yield f"init.accept_activation={init.accept_activation} is read with init.vision alone; set it to null"


def _pictures(run: RunConfig) -> Iterator[str]:
    vision, data, image = run.model.vision, run.data, run.data.image
    if vision is None:
        return
    pairs = {
        "patch_size": (vision.patch_size, image.patch_size),
        "spatial_merge_size / merge_size": (vision.spatial_merge_size, image.merge_size),
        "temporal_patch_size": (vision.temporal_patch_size, image.temporal_patch_size),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            yield f"model.vision and data.image differ in {name}: {ours} and {theirs}; set both to the same"
    patches = image.max_pixels // image.patch_size**2
    tokens = patches // image.merge_size**2 + 2  # and the two markers around them
    least = image.factor**2
    for key, budget, need, pixels in (
        ("patches_per_row", data.patches_per_row, patches, data.patches_per_row * image.patch_size**2),
        ("tokens_per_row", data.tokens_per_row, tokens, (data.tokens_per_row - 2) * least),
    ):
        if need > budget:
            yield (
                f"data.{key}={budget} is less than one picture of data.image.max_pixels={image.max_pixels} can need "
                f"({need}); set data.{key}={need} or more, or data.image.max_pixels={max(pixels, least)} or less"
            )


def _cadence(run: RunConfig) -> Iterator[str]:
    if not run.run_dir.strip():
        yield "run_dir is empty; name the folder that metrics and checkpoints go to"
    counts = {
        "stop_after_steps": run.stop_after_steps,
        "checkpoint.every_steps": run.checkpoint.every_steps,
        "checkpoint.keep": run.checkpoint.keep,
        "checkpoint.keep_every_steps": run.checkpoint.keep_every_steps,
        "log.every_steps": run.log.every_steps,
        "evaluate.every_steps": run.evaluate.every_steps,
        "evaluate.samples": run.evaluate.samples,
        "evaluate.answer_tokens": run.evaluate.answer_tokens,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            optional = name == "stop_after_steps" or (name.endswith("every_steps") and name != "log.every_steps")
            yield f"{name}={count} must be at least 1" + (" or null" if optional else "")
    for name in ("commit_seconds", "grace_seconds"):
        seconds = getattr(run.checkpoint, name)
        if seconds <= 0:
            yield f"checkpoint.{name}={seconds:g} is a time in seconds; set it to more than 0"
    for name, seed in (("seed", run.seed), ("data.seed", run.data.seed)):
        if not 0 <= seed < 2**63:
            yield f"{name}={seed} must be at least 0 and fit in 63 bits; torch takes no other"


def _upload(run: RunConfig) -> Iterator[str]:
    checkpoint = run.checkpoint
    for name in ("upload_bytes_per_second", "transfer_seconds"):
        if not getattr(checkpoint, name) > 0:
            yield f"checkpoint.{name}={getattr(checkpoint, name):g} must be more than 0"
    if checkpoint.upload is None:
        return
    if not ADDRESS.fullmatch(checkpoint.upload):
        yield f"checkpoint.upload={checkpoint.upload} is no place for checkpoints; write it as oss://bucket/prefix"
    if run.data.oss is None:
        yield f"checkpoint.upload={checkpoint.upload} but nothing says how it is reached; set data.oss.region and so on"


def _evaluation(run: RunConfig) -> Iterator[str]:
    evaluate, profile = run.evaluate, run.profile
    names = [source.name for source in evaluate.sources]
    if len(set(names)) < len(names):
        yield f"evaluate.sources has a name twice: {names}"
    if evaluate.every_steps is not None and not evaluate.sources:
        yield f"evaluate.every_steps={evaluate.every_steps} but evaluate.sources is empty; name a held-out source"
    beside = evaluate.answers or evaluate.command
    if beside and evaluate.every_steps is None:
        yield "evaluate.answers and evaluate.command need evaluate.every_steps"
    saved = run.checkpoint.every_steps
    if beside and evaluate.every_steps and (saved is None or evaluate.every_steps % saved):
        yield (
            f"evaluate.answers and evaluate.command look at checkpoints, and evaluate.every_steps="
            f"{evaluate.every_steps} is no multiple of checkpoint.every_steps={saved}; set "
            f"checkpoint.every_steps={evaluate.every_steps}"
        )
    if evaluate.answers < 0:
        yield f"evaluate.answers={evaluate.answers} must be 0 or more"
    if evaluate.command_seconds <= 0:
        yield f"evaluate.command_seconds={evaluate.command_seconds:g} must be more than 0"
    if evaluate.wait_seconds is not None and evaluate.wait_seconds < 0:
        yield f"evaluate.wait_seconds={evaluate.wait_seconds:g} must be 0 or more, or null for evaluate.command_seconds"
    if profile.steps is not None and not 1 <= profile.steps[0] <= profile.steps[1]:
        yield f"profile.steps={list(profile.steps)} are a first and a last step, counted from 1; set e.g. [10, 12]"
