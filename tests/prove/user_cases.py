"""Forty ways in which users lost data or time, and what covers each that has no line in the table of faults.

Lines of the table name these numbers themselves: `Case.fault`. The others cost time, memory or pixels, not samples.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class UserCase:
    """One way to fail."""

    told: str
    covered: tuple[str, ...] = ()
    """Cases of the proof by key, tests as `file::name`; empty where the table of faults has a line."""


USER_CASES = {
    1: UserCase(told="a storm of refusals for too many requests"),
    2: UserCase(told="throttled in silence: slow answers with a header"),
    3: UserCase(told="a body that is cut or reset"),
    4: UserCase(told="a flipped bit in a body, once or for ever"),
    5: UserCase(told="a service that ignores the range asked for"),
    6: UserCase(told="a connection that stalls or drips"),
    7: UserCase(told="connections that are never answered"),
    8: UserCase(told="temporary keys that end in every worker at once"),
    9: UserCase(told="a clock that is too far off"),
    10: UserCase(told="an object overwritten since it was indexed"),
    11: UserCase(told="more threads than connections"),
    12: UserCase(told="a reader that stops early", covered=("oss/stopped reader",)),
    13: UserCase(told="text of a tool within the data"),
    14: UserCase(told="a tar that is cut, zeroed or empty"),
    15: UserCase(told="members twice or missing"),
    16: UserCase(told="a picture that is cut"),
    17: UserCase(told="a clip that is empty, garbage, or without an index"),
    18: UserCase(told="a header that tells more frames than there are"),
    19: UserCase(
        told="a decoder that tries the same again for ever",
        covered=(
            "video/hang",
            "tests/data/test_decode.py::test_a_hang_costs_one_deadline_and_then_the_second_opinion_is_taken",
        ),
    ),
    20: UserCase(told="other frames than those asked for", covered=("video/frame numbers",)),
    21: UserCase(
        told="other frames in worker processes",
        covered=("tests/data/test_workers.py::test_rows_do_not_depend_on_who_reads_them_or_who_is_killed",),
    ),
    22: UserCase(told="damage inside a clip that decoders conceal"),
    23: UserCase(
        told="a clip that takes all memory",
        covered=("tests/data/test_decode.py::test_a_decoder_above_its_memory_is_killed",),
    ),
    24: UserCase(
        told="none, one, odd or too many frames",
        covered=(
            "tests/data/test_video.py::test_frame_counts",
            "tests/data/test_decode.py::test_a_one_frame_clip_is_repeated",
        ),
    ),
    25: UserCase(told="more or fewer media than places for them"),
    26: UserCase(
        told="nothing to learn in a whole step",
        covered=("tests/train/test_step.py::test_a_step_with_nothing_to_learn_changes_no_bit_of_weights_and_state",),
    ),
    27: UserCase(
        told="ranks that run out of data one before the other",
        covered=("tests/data/test_plan.py::test_replicas_share_the_same_rows_in_counts_that_differ_by_one_at_most",),
    ),
    28: UserCase(told="a worker that is killed"),
    29: UserCase(
        told="a full /dev/shm; rows and frames are not put there, so nothing may appear in it", covered=("loader/left",)
    ),
    30: UserCase(told="file descriptors that run out", covered=("loader/memory",)),
    31: UserCase(told="memory that grows with every step", covered=("loader/memory",)),
    32: UserCase(told="processes and shared memory left after SIGKILL", covered=("loader/left", "video/killed reader")),
    33: UserCase(
        told="fork beside a living decoder",
        covered=("tests/data/test_decode.py::test_a_fork_decodes_by_a_child_of_its_own",),
    ),
    34: UserCase(
        told="the end of an epoch in the middle of a step",
        covered=("plan/runs of 1", "plan/runs of 16", "plan/resumed"),
    ),
    35: UserCase(
        told="a rank that waits so long that the others give up",
        covered=("tests/train/test_faults.py::test_a_rank_that_stalls_ends_the_job_and_is_named",),
    ),
    36: UserCase(
        told="a cache smaller than one item, or full",
        covered=("tests/data/test_cache_room.py::test_an_item_larger_than_the_cache_goes_by_it", "video/crowd"),
    ),
    37: UserCase(told="eviction of what is not the cache's", covered=("video/foreign",)),
    38: UserCase(told="SIGKILL in the middle of a write to the cache", covered=("video/crowd",)),
    39: UserCase(
        told="a cached file cut short under its reader",
        covered=("tests/data/test_decode_cache.py::test_a_file_cut_short_in_place_never_gives_frames",),
    ),
    40: UserCase(
        told="a neighbour that evicts what is still needed",
        covered=("video/next use", "tests/data/test_cache_room.py::test_what_the_plan_needs_last_goes_first"),
    ),
}
