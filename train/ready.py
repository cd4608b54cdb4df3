"""What a run needs on disk. launch/jobs/preflight.py looks in one process before others start, the trainer again."""

import importlib.util
import sys
from collections.abc import Callable
from functools import partial

from data.config import DataConfig
from data.encoding.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from data.errors import DataFaults, MismatchError, StoreError
from data.loading.rows import SourceIndex, open_indexes
from data.plan.plan import Plan
from train.checkpoint import identity
from train.checkpoint.bucket import found_in
from train.checkpoint.commits import Commit, attempts, newest_readable, readable
from train.checkpoint.remote import noted, remote_of
from train.config import RunConfig
from train.held_out import held_out
from train.resolve import from_yaml
from train.segments import course
from train.sources import Source, open_folder, part_sources, parts_by_source

# What shapes of weights follow from; rotary bases and the like may change from one stage to the next.
_SIZES = {
    "language": ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "ffn_size", "vocab_size", "tie_embeddings"),
    "vision": ("depth", "embed_dim", "num_heads", "mlp_ratio", "patch_size", "temporal_patch_size"),
}


def open_data(run: RunConfig) -> tuple[Tokenizer, list[SourceIndex], Plan]:
    """Tokenizer, indexes and the plan of a new run. Raises ValueError saying what does not fit."""
    tokenizer, indexes = open_sources(run)
    return tokenizer, indexes, Plan(run.data, indexes)


def open_sources(run: RunConfig) -> tuple[Tokenizer, list[SourceIndex]]:
    """Tokenizer and indexes, held to each other and to the model. Raises DataFaults with all that does not fit."""
    faults: list[str] = []
    try:
        tokenizer = load_tokenizer(run.data.tokenizer)
        check_tokenizer(tokenizer, run.model.language.vocab_size, _declared(run))
    except ValueError as fault:
        faults.append(str(fault))
    try:
        indexes = open_indexes(run.data)
        _check_media(run, run.data, indexes)
    except ValueError as fault:
        faults += _each(fault)
    if faults:
        raise DataFaults(*dict.fromkeys(faults))  # what cannot be loaded is told by both
    return tokenizer, indexes


def _each(fault: Exception) -> list[str]:
    return list(fault.args) if isinstance(fault, DataFaults) else [str(fault)]


def _check_media(run: RunConfig, data: DataConfig, indexes: list[SourceIndex]) -> None:
    if run.model.vision is None:
        with_media = [s.name for s, i in zip(data.sources, indexes, strict=True) if len(i.columns["media_kind"])]
        if with_media:
            raise ValueError(
                f"{run.model.name} has no vision tower, but these sources hold pictures or clips: "
                f"{', '.join(with_media)}; leave them out of data.sources or choose a model with vision"
            )


def _declared(run: RunConfig) -> dict[str, int]:
    """Ids of special tokens that the language part of a new run was trained with, where its folder tells them."""
    source = part_sources(run)["language"]
    if run.resume or source.where is None or source.kind == "from_run":
        return {}
    from model.hf_config import declared_ids  # brings torch along, which most looks at a recipe do without

    return declared_ids(source.where)


def check_run_folder(run: RunConfig) -> None:
    """Raises ValueError if a new run would write over another, or there is nothing to go on from."""
    sealed = [attempt.path.name for attempt in attempts(run.run_dir) if attempt.sealed]
    if sealed and not run.resume:
        raise ValueError(
            f"{run.run_dir} already holds {len(sealed)} checkpoint(s), the newest {sealed[0]}; go on with "
            f"`triptych resume {run.run_dir}`, or start anew with another run_dir"
        )
    if run.resume and not sealed and not run.checkpoint.upload and noted(run.run_dir) is None:
        raise ValueError(f"resume=true but {run.run_dir} has no finished checkpoint; start without resume")


def check_upload_folder(run: RunConfig) -> None:
    """Raises ValueError if a run would upload among the checkpoints of another; StoreError for a new one."""
    remote = remote_of(run)
    if remote is None:
        return
    if run.resume:
        try:
            identity.check_owner(remote.store(), remote.address, run.run_dir)
        except StoreError as error:  # it can train meanwhile, and the first upload looks again
            print(f"{remote.address} could not be looked at: {error}", file=sys.stderr, flush=True)
        return
    store = remote.store()
    sealed = [each.name for each in found_in(store.tree("step_")) if each.sealed]
    if sealed:
        raise ValueError(
            f"checkpoint.upload={remote.address} already holds {len(sealed)} checkpoint(s), the newest {sealed[0]}; go "
            f"on with `triptych resume {remote.address} --run-dir RUN`, or name another prefix"
        )
    owner, ours = identity.owner_of(store, remote.address), identity.begun_id(run.run_dir)
    if owner is not None and owner != ours:
        raise identity.taken(owner, ours, remote.address, run.run_dir)


def file_faults(run: RunConfig) -> list[str]:
    """One entry for each thing that is missing or does not fit. Of weights the headers are read, here, once."""
    sources = {} if run.resume else parts_by_source(run)
    looks: list[Callable[[], object]] = [
        partial(check_run_folder, run),
        partial(check_upload_folder, run),
        partial(_data, run),
        partial(check_held_out, run),
        partial(_packages, run),
    ]
    looks += [partial(_first_weights, run, *pair) for pair in sources.items()]
    faults: list[str] = []
    for look in looks:
        try:
            look()
        except (ValueError, OSError) as fault:
            faults += _each(fault)
    return list(dict.fromkeys(faults))  # held-out sources have the same tokenizer


def _packages(run: RunConfig) -> None:
    if run.log.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "log.tensorboard=true, but the package tensorboard is not installed: pip install 'triptych[tensorboard]', "
            "or leave it out; metrics.jsonl has the same numbers"
        )


def _data(run: RunConfig) -> None:
    """Raises ValueError if no checkpoint that the run may go on from has its data.

    Which one that is shows once newer ones were read through, which may be a terabyte and is what all ranks do at their
    start: a damaged one that began another segment of the plan must not keep the run from going on from the one before.
    """
    indexes = open_sources(run)[1]
    commits = readable(run.run_dir) if run.resume else iter(())
    newest = next(commits, None)
    try:
        course(run.data, indexes, newest.state if newest else None, run.new_segment)
    except MismatchError:
        fits = next((commit for commit in commits if _has_data(commit, run, indexes)), None)
        if newest is None or fits is None:
            raise
        said = f"the data is that of {fits.path.name}, so the run goes on if {newest.path.name} is damaged"
        print(f"{said}, and is refused if it is whole", file=sys.stderr, flush=True)


def _has_data(commit: Commit, run: RunConfig, indexes: list[SourceIndex]) -> bool:
    try:
        course(run.data, indexes, commit.state, run.new_segment)
    except MismatchError:
        return False
    return True


def check_held_out(run: RunConfig) -> None:
    """Raises ValueError if held-out sources are not there, or do not fit the run."""
    if run.evaluate.every_steps is None:
        return
    data, indexes = held_out(run.data, run.evaluate)
    _check_media(run, data, indexes)
    Plan(data, indexes)


def _first_weights(run: RunConfig, source: Source, parts: tuple[str, ...]) -> None:
    if source.where is None:
        return
    if source.kind == "from_run":
        _check_sizes_of_run(run, source.where, parts)
        return
    open_folder(run, source, parts)


def _check_sizes_of_run(run: RunConfig, source: str, taken: tuple[str, ...]) -> None:
    commit = newest_readable(source)
    if commit is None and noted(source) is not None:
        return  # it is fetched, and seen to fit, when the run starts
    if commit is None:
        raise ValueError(
            f"init.from_run={source} has no finished checkpoint; train that run first, or point init.from_run at one"
        )
    theirs = from_yaml(commit.recipe).model
    if absent := [part for part in taken if part not in theirs.parts]:
        raise ValueError(f"init.from_run={source} has no {', '.join(absent)}; set init.fresh=[{','.join(absent)}]")
    wrong = [
        f"model.{part}.{key} is {getattr(theirs_part, key)} there and {getattr(ours, key)} here"
        for part, ours, theirs_part in (
            ("language", run.model.language, theirs.language),
            ("vision", run.model.vision, theirs.vision),
        )
        if part in taken and ours is not None and theirs_part is not None
        for key in _SIZES[part]
        if getattr(ours, key) != getattr(theirs_part, key)
    ]
    if wrong:
        raise ValueError(f"init.from_run={source} holds another model: {'; '.join(wrong)}")
