"""Arguments of `triptych checkpoint ACTION`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from launch.commands.data import add_reach, at_least_one, reach

Command = Callable[[argparse.Namespace], int]


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """All actions. Those that say what they found say it as data with --json."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text)
        action.add_argument("--json", action="store_true", help="print data in place of lines")
        action.set_defaults(command=command)
        return action

    for name, command, text in (
        ("list", _list, "every checkpoint of a run, newest first"),
        ("show", _show, "state and tensors of one checkpoint"),
        ("verify", _verify, "read every byte, compare digests, and weights with their fp32 masters"),
        ("repair", _repair, "write the newest one anew with weights as their fp32 masters say"),
    ):
        where = "run folder" + ("" if name == "list" else ", or a checkpoint in it")
        add(name, command, text).add_argument("where", type=Path, help=where)

    diff = add("diff", _diff, "where the tensors of two checkpoints differ; 1 if they do")
    for name in ("one", "other"):
        diff.add_argument(name, type=Path, help="run folder, or a checkpoint in it")

    prune = add("prune", _prune, "delete checkpoints that no policy keeps; the newest always stays")
    prune.add_argument("run", type=Path, help="run folder")
    prune.add_argument("--last", type=at_least_one, metavar="N", help="keep the newest N")
    prune.add_argument("--every", type=at_least_one, metavar="STEPS", help="keep those of steps that STEPS divides")
    prune.add_argument("--best", metavar="KEY[:N]", help="keep the N (1) with the lowest KEY, as show has it: loss:3")
    prune.add_argument("--keep", nargs="+", default=[], metavar="NAME", help="keep these folders")
    prune.add_argument("--dry-run", action="store_true", help="say what would go, and delete nothing")

    download = add("download", _download, "fetch the newest uploaded checkpoint that is whole into a run folder")
    download.add_argument("address", help="oss://BUCKET/PREFIX, as checkpoint.upload of the run's recipe")
    download.add_argument("run", type=Path, help="run folder")
    add_reach(download)
    upload = add("upload", _upload, "upload the newest checkpoint of a run as its recipe says, where the run did not")
    upload.add_argument("run", type=Path, help="run folder")

    average = add("average", _average, "the mean of the weights of several checkpoints, for init.from_run and export")
    average.add_argument("run", type=Path, help="run folder to make")
    average.add_argument("of", type=Path, nargs="+", help="run folders, or checkpoints in them")

    export = add("export", _export, "write a Hugging Face folder")
    export.add_argument("where", type=Path, help="run folder, or a checkpoint in it")
    export.add_argument("out", type=Path, help="folder to make")
    export.add_argument("--tokenizer", type=Path, help="tokenizer folder, if it is not where the recipe says")

    importing = add("import", _import, "turn a Hugging Face folder into a checkpoint of weights")
    importing.add_argument("folder", type=Path, help="Qwen2-VL folder with safetensors")
    importing.add_argument("overrides", nargs="*", metavar="key=value", help="run_dir=RUN is where it goes")
    importing.add_argument("--config-name", required=True, help="a recipe with this model")


def _list(options: argparse.Namespace) -> int:
    from launch.checkpoints.listing import listed

    return listed(options.where).tell(options.json)


def _show(options: argparse.Namespace) -> int:
    from launch.checkpoints.listing import shown

    return shown(options.where).tell(options.json)


def _verify(options: argparse.Namespace) -> int:
    from launch.checkpoints.listing import verified

    return verified(options.where).tell(options.json)


def _repair(options: argparse.Namespace) -> int:
    from launch.checkpoints.repair import repair
    from launch.reports import Report

    path, lines = repair(options.where)
    return Report(lines=lines, data={"path": str(path) if path else None, "said": lines}).tell(options.json)


def _diff(options: argparse.Namespace) -> int:
    from launch.checkpoints.tools import compared

    return compared(options.one, options.other).tell(options.json)


def _prune(options: argparse.Namespace) -> int:
    from launch.checkpoints.tools import pruned

    best = None
    if options.best is not None:
        key, _, count = options.best.partition(":")
        try:
            best = key, at_least_one(count or "1")
        except argparse.ArgumentTypeError as fault:
            raise ValueError(f"--best {options.best}: {fault}") from None
    report = pruned(
        options.run, last=options.last, every=options.every, best=best, names=options.keep, dry_run=options.dry_run
    )
    return report.tell(options.json)


def _download(options: argparse.Namespace) -> int:
    from launch.checkpoints.transfers import fetched

    return fetched(options.address, options.run, reach(options)).tell(options.json)


def _upload(options: argparse.Namespace) -> int:
    from launch.checkpoints.transfers import uploaded

    return uploaded(options.run).tell(options.json)


def _average(options: argparse.Namespace) -> int:
    from launch.checkpoints.tools import averaged

    return averaged(options.run, options.of).tell(options.json)


def _export(options: argparse.Namespace) -> int:
    from launch.checkpoints.export import export
    from launch.reports import Report

    path = export(options.where, options.out, tokenizer=options.tokenizer)
    return Report(lines=[f"wrote {path}"], data={"path": str(path)}).tell(options.json)


def _import(options: argparse.Namespace) -> int:
    from launch.checkpoints.listing import import_hf
    from launch.reports import Report
    from train.resolve import compose

    path = import_hf(options.folder, compose(options.config_name, options.overrides))
    return Report(lines=[f"wrote {path}"], data={"path": str(path)}).tell(options.json)
