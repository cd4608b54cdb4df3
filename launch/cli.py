"""The `triptych` command: all that goes around a run. A run itself is `launch/torchrun.sh --config-name RECIPE`."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from launch.checkout import check_checkout
from launch.commands.checkpoint import add_checkpoint
from launch.commands.data import add_index, add_pack, add_reach, add_source, at_least_one, reach
from launch.commands.plan import add_plan
from launch.commands.slurm import add_preflight, add_slurm
from train.errors import CheckpointError

Command = Callable[[argparse.Namespace], int]
CLOSED_PIPE = 141  # what shells report for a program that SIGPIPE ended
INTERRUPTED = 130  # and for one that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit 0 when it worked, 1 when what was looked at is not in order, 2 when the command cannot be done.

    Interrupted or cut off by a closed pipe, as shells have it: 130 and 141.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positionals in one go: key=value after an option are left over.
    if rest and not (hasattr(options, "overrides") and all(_is_override(text) for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    # Reading checkpoints imports megatron-core, which warns of what is not installed and not used.
    warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex).*")
    command: Command = options.command
    try:
        check_checkout()
        status = command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone, as in `| head`: nobody is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes there at exit
        status = CLOSED_PIPE
    except KeyboardInterrupt as stop:  # with what has become of the work, where a command says it
        print("; ".join(("interrupted", *stop.args)), file=sys.stderr)
        status = INTERRUPTED
    except (ValueError, OSError, CheckpointError) as fault:  # users' to cure; anything else is ours and keeps its trace
        print(f"triptych: {fault}", file=sys.stderr)
        status = 2
    raise SystemExit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="triptych", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    resume = commands.add_parser("resume", help="go on with a run, on this layout or another")
    resume.add_argument("run", help="run folder, or oss://BUCKET/PREFIX that its checkpoints were uploaded to")
    resume.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. parallel=tp2 stop_after_steps=100")
    resume.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KEY",
        help="let overrides change this key, or what is under it: data.sources, stage, ...; without it nothing that "
        "changes the order of data or what is learned is taken. What changes under `data` begins a new segment of "
        "the plan: samples that were used in the epoch stay used",
    )
    resume.add_argument(
        "--processes",
        type=at_least_one,
        help="on this node; default: NPROC_PER_NODE, else as many as wrote the checkpoint. A step keeps its rows",
    )
    resume.add_argument("--run-dir", type=Path, metavar="RUN", help="with oss://: the run folder to make or go on in")
    add_reach(resume)
    resume.add_argument("--print", action="store_true", help="show what changes and the command, and start nothing")
    resume.set_defaults(command=_resume)

    _add_replay(commands.add_parser("replay", help="run one recorded step again, in one process, and compare"))
    add_slurm(commands.add_parser("slurm", help="render a run as a SLURM job, and submit it"))
    add_preflight(commands.add_parser("preflight", help="look at all that a run needs, and train nothing"))

    add_checkpoint(commands.add_parser("checkpoint", help="look at, check, compare, delete and convert checkpoints"))

    add_pack(commands.add_parser("pack", help="write shards from a file of conversations and a folder of pictures"))

    add_index(commands.add_parser("index", help="index a folder of shards, once before training on it"))

    _add_inspect(commands.add_parser("inspect", help="what a source of samples holds"))

    _add_chat(commands.add_parser("chat", help="talk to a trained model"))

    add_plan(
        commands.add_parser("plan", help="size a run without GPUs: memory, bubble, speed, cost; or --search layouts")
    )

    report = commands.add_parser("report", help="one page of a run: curves, throughput, data, checkpoints, samples")
    report.add_argument("run", type=Path, help="run folder; it may be training")
    report.add_argument("--out", type=Path, metavar="OUT.html", help="default: RUN/report.html")
    report.set_defaults(command=_report)

    quickstart = commands.add_parser("quickstart", help="what `make quickstart` runs")
    quickstart.add_argument("overrides", nargs="*", metavar="key=value", help="for every stage")
    quickstart.set_defaults(command=_quickstart)
    return parser


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add_source(parser, "indexed folder of shards, oss://BUCKET/PREFIX, or PREFIX of token files")
    parser.add_argument("--index", type=Path, help="folder of the index; default: SOURCE/index")
    parser.add_argument("--sample", type=int, help="show this sample as well")
    parser.add_argument("--html", type=Path, metavar="OUT.html", help="write a page of samples with their pictures")
    parser.add_argument("--samples", type=at_least_one, default=12, help="on the page, taken evenly; default: 12")
    parser.add_argument("--config-name", metavar="RECIPE", help="with --sample or --html: what a run of it is fed")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe: data.tokenizer=FOLDER")
    parser.set_defaults(command=_inspect)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="where data lies now: data.tokenizer=FOLDER")
    parser.add_argument("--step", type=at_least_one, required=True, help="counted from 1, as metrics.jsonl does")
    parser.add_argument("--tolerance", type=float, help="relative; default: 1e-4 for fp32, 2e-2 for bf16")
    parser.add_argument("--json", action="store_true", help="print data in place of lines, with every sample's loss")
    parser.set_defaults(command=_replay)


def _is_override(text: str) -> bool:
    return "=" in text and not text.startswith("-")


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("where", type=Path, help="run folder, a checkpoint in it, or a Hugging Face folder")
    for kind, text in (("image", "pictures"), ("video", "clips")):
        parser.add_argument(
            f"--{kind}",
            dest="media",
            action="extend",
            nargs="+",
            default=[],
            type=_of_kind(kind),
            metavar="FILE",
            help=f"{text} that go with the first message",
        )
    parser.add_argument("--prompt", help="say this, print the answer and end; default: take turns until the input ends")
    parser.add_argument("--system", help="system message; default: Qwen2-VL's")
    parser.add_argument("--tokens", type=at_least_one, default=512, help="the most an answer may have; default: 512")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.0, help="0, the default, takes the likeliest token"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder, if it is not where the recipe says")
    parser.set_defaults(command=_chat)


def _of_kind(kind: str) -> Callable[[str], tuple[str, Path]]:
    return lambda text: (kind, Path(text))


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 0")
    return value


def _resume(options: argparse.Namespace) -> int:
    from launch.jobs.resume import plan_resume, start

    run_dir = _fetched(options) if options.run.startswith("oss://") else Path(options.run)
    resume = plan_resume(run_dir, options.overrides, allow=options.allow, processes=options.processes)
    if not options.print:
        start(resume)
    return _tell(resume.lines)


def _replay(options: argparse.Namespace) -> int:
    from launch.replay import replay

    silent = {"tell": lambda line: print(line, file=sys.stderr, flush=True)} if options.json else {}
    found = replay(options.run, options.step, options.overrides, tolerance=options.tolerance, **silent)
    return found.tell(options.json)


def _fetched(options: argparse.Namespace) -> Path:
    """The run folder, once it has a checkpoint that was uploaded."""
    from launch.checkpoints.transfers import fetched

    if options.run_dir is None:
        raise ValueError(f"{options.run} is no run folder; say with --run-dir RUN which one goes on")
    _tell(fetched(options.run, options.run_dir, reach(options)).lines)
    return options.run_dir


def _inspect(options: argparse.Namespace) -> int:
    from launch.pages.look import open_named, sample_lines, source_lines
    from train.resolve import compose

    data = compose(options.config_name, options.overrides).data if options.config_name else None
    index = open_named(options.source, options.index, data, reach(options, data.oss if data else None))
    _tell(source_lines(options.source, index))
    if options.sample is not None:
        _tell(sample_lines(index, options.sample, data))
    if options.html is not None:
        from launch.pages.page import write_page

        write_page(options.html, options.source, index, data, options.samples)
        print(f"wrote {options.html}")
    return 0


def _chat(options: argparse.Namespace) -> int:
    from launch.answering.chat import say, talk
    from launch.answering.conversation import Conversation, check_files
    from launch.answering.loaded import load

    check_files([path for _, path in options.media])
    loaded = load(options.where, options.device, options.tokenizer)
    conversation = Conversation(loaded, system=options.system, tokens=options.tokens, temperature=options.temperature)
    for kind, path in options.media:
        conversation.show(kind, path)
    if options.prompt is None:
        return talk(conversation)
    say(conversation, options.prompt)
    return 0


def _report(options: argparse.Namespace) -> int:
    from launch.pages.report import write_run_report

    print(f"wrote {write_run_report(options.run, options.out)}")
    return 0


def _quickstart(options: argparse.Namespace) -> int:
    from launch.quickstart import main as quickstart

    quickstart(options.overrides)
    return 0


def _tell(lines: Iterable[str], good: bool = True) -> int:
    for line in lines:
        print(line)
    return 0 if good else 1


if __name__ == "__main__":
    main()
