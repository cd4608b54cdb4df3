"""Commits: whole or refused, and the same bits on every layout. One world of four processes runs the layout cases."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.harness.commits import save_commit
from tests.prove.context import Worlds
from tests.train.toy_layouts import STATE, Layout, ToyRank, differing, layouts, one, save, shapes, truth
from train.checkpoint import disk
from train.checkpoint.load import find_commit, load_optimizer, load_weights, read_tensors
from train.checkpoint.run import environment
from train.errors import CheckpointError

WORLD = 4


# --- a world of four ----------------------------------------------------------------------------------------------


def any_layout_to_any(rank: int, run: Path, groups: dict[int, dist.ProcessGroup]) -> None:
    paths: dict[Layout, Path] = {}
    for step, layout in enumerate(layouts(WORLD)):
        if rank < layout.size:
            group = groups[layout.size]
            path = save(ToyRank(layout, rank).fill(), run / "grid", step, group=group)
            paths[layout] = path
        everyone: list[dict[Layout, Path]] = [{}] * WORLD
        dist.all_gather_object(everyone, paths)
        paths = everyone[0]
    for wrote, path in paths.items():
        for reads in layouts(WORLD):
            if rank < reads.size:
                toy = ToyRank(reads, rank)
                group = groups[reads.size]
                commit = find_commit(path, group=group)
                load_weights(commit, toy.parameters, toy.boxes, group=group)  # type: ignore[arg-type]
                load_optimizer(commit, toy.boxes, toy, group=group)  # type: ignore[arg-type]
                assert not differing(toy), (wrote, reads, differing(toy))
                assert toy.steps_taken == 12
                assert commit.state["cursor"] == STATE["cursor"]


def replicas_come_from_tensor_rank_0(rank: int, run: Path, groups: dict[int, dist.ProcessGroup]) -> None:
    if rank < 2:
        toy = ToyRank(Layout(tp=2), rank).fill()
        if rank == 1:
            toy.parameters["local.merger.fc1.weight"].fill_(5.0)
        path = save(toy, run / "replicas", 1, group=groups[2])
        stored = read_tensors(path).read("merger.fc1.weight")
        assert torch.equal(stored, truth("weight", "merger.fc1.weight", torch.bfloat16))


def a_failing_rank_fails_all(rank: int, run: Path, groups: dict[int, dist.ProcessGroup]) -> None:
    toy = ToyRank(Layout(dp=4), rank).fill()
    good = save(toy, run / "failing", 1)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 2:
            patch.setattr(disk, "sync", lambda _: Path(__file__, "nowhere").stat())
        with pytest.raises(CheckpointError, match=r"rank 2: NotADirectoryError"):
            save(toy, run / "failing", 2)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 3:
            patch.setattr(disk, "write_block", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(CheckpointError, match=r"rank 3: .*No space left"):
            save(toy, run / "failing", 3)
    told: list[str] = []
    assert find_commit(run / "failing", tell=told.append).path == good
    assert not told and [path.name for path in good.parent.iterdir()] == [good.name], "what failed leaves no folder"


def a_missing_tensor_is_named_on_all(rank: int, run: Path, groups: dict[int, dist.ProcessGroup]) -> None:
    path = save(ToyRank(Layout(pp=2, dp=2), rank).fill(), run / "missing", 1)
    toy = ToyRank(Layout(pp=2, dp=2), rank, frozen=())
    commit = find_commit(path)
    load_weights(commit, toy.parameters, toy.boxes)  # type: ignore[arg-type]
    # The vision tower was frozen when this was written, and only ranks 0 and 1 have one.
    with pytest.raises(CheckpointError, match=r"missing optimizer\.master\.vision\.patch_embed\.weight"):
        load_optimizer(commit, toy.boxes, toy)  # type: ignore[arg-type]


def damage_is_found_by_whichever_rank_reads_it(rank: int, run: Path, groups: dict[int, dist.ProcessGroup]) -> None:
    toy = ToyRank(Layout(dp=4), rank).fill()
    old, new = save(toy, run / "damage", 1), save(toy, run / "damage", 2)
    if rank == 0:
        file = new / "optimizer.00003.safetensors"
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    dist.barrier()
    told: list[str] = []
    assert find_commit(run / "damage", tell=told.append).path == old
    assert rank or (len(told) == 1 and "optimizer.00003.safetensors has crc32c" in told[0])


CASES = (
    any_layout_to_any,
    replicas_come_from_tensor_rank_0,
    a_failing_rank_fails_all,
    a_missing_tensor_is_named_on_all,
    damage_is_found_by_whichever_rank_reads_it,
)


def in_world(case: Callable[..., None], run: Path) -> None:
    groups = {size: dist.new_group(list(range(size))) for size in range(1, WORLD)}
    case(dist.get_rank(), run, groups | {WORLD: dist.group.WORLD})
    dist.barrier()
    for group in groups.values():
        if group != dist.GroupMember.NON_GROUP_MEMBER:
            dist.destroy_process_group(group)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_world_of_four(case: Callable[..., None], worlds: Worlds, tmp_path: Path) -> None:
    worlds.run(WORLD, in_world, case=case, run=tmp_path)


# --- one process, without torch.distributed -----------------------------------------------------------------------


def test_one_process_needs_no_process_group(tmp_path: Path) -> None:
    path = save(one().fill(), tmp_path, 100)
    assert path.parent == tmp_path / "checkpoints"
    assert path.name.startswith("step_00000100.")
    commit = find_commit(tmp_path)
    assert commit.path == path and commit.step == 100
    assert {key: commit.state[key] for key in STATE} == STATE
    assert commit.state["steps_taken"] == 12 and commit.state["environment"]["torch"] == torch.__version__
    assert commit.recipe == "seed: 1\n"
    toy = one()
    load_weights(commit, toy.parameters, toy.boxes)  # type: ignore[arg-type]
    load_optimizer(commit, toy.boxes, toy)  # type: ignore[arg-type]
    assert not differing(toy)


def test_whole_tensors_are_read_by_name(tmp_path: Path) -> None:
    reader = read_tensors(save(one().fill(), tmp_path, 1))
    assert {name for name in reader.names() if not name.startswith("optimizer.")} == set(shapes())
    assert not any("vision" in name for name in reader.names() if name.startswith("optimizer."))
    for name, (shape, _) in shapes().items():
        assert reader.shape(name) == shape and reader.dtype(name) == torch.bfloat16
        assert torch.equal(reader.read(name), truth("weight", name, torch.bfloat16))
    name = "language.embedding.word_embeddings.weight"
    assert torch.equal(reader.read(f"optimizer.exp_avg_sq.{name}"), truth("exp_avg_sq", name))
    with pytest.raises(ValueError, match=r"missing language\.nothing"):
        reader.read("language.nothing")


def test_parts_and_precision_of_a_stage_hand_over(tmp_path: Path) -> None:
    """A new stage takes weights alone, only of the parts it asks for, into its own precision."""
    commit = find_commit(save(one().fill(), tmp_path, 1))
    toy = ToyRank(Layout(), 0, dtype=torch.float32)
    before = toy.parameters["local.merger.fc1.weight"].clone()
    load_weights(commit, toy.parameters, toy.boxes, parts=("language",))  # type: ignore[arg-type]
    assert torch.equal(toy.parameters["local.merger.fc1.weight"], before)
    name = "language.decoder.final_layernorm.weight"
    assert torch.equal(toy.parameters[f"local.{name}"], truth("weight", name, torch.bfloat16).float())


def test_another_models_shape_is_refused_with_both(tmp_path: Path) -> None:
    commit = find_commit(save(one().fill(), tmp_path, 1))
    toy = one()
    local = "local.merger.fc1.weight"
    toy.parameters[local] = torch.zeros(20)
    box = toy.boxes[local]
    toy.boxes[local] = type(box)(box.name, (5, 4), (0, 0), (5, 4))
    with pytest.raises(CheckpointError, match=r"merger\.fc1\.weight has shape \(4, 4\), \(5, 4\) is needed"):
        load_weights(commit, toy.parameters, toy.boxes)  # type: ignore[arg-type]


def test_state_that_json_cannot_hold_leaves_no_commit(tmp_path: Path) -> None:
    toy = one().fill()
    with pytest.raises(CheckpointError, match="not JSON serializable"):
        save_commit(tmp_path, 1, toy.parameters, toy.boxes, toy, {"x": torch.zeros(1)}, "", keep=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no checkpoint folder"):
        find_commit(tmp_path, tell=lambda _: None)


def test_environment_names_versions() -> None:
    assert {"python", "torch", "megatron-core", "deepspeed"} <= set(environment())
