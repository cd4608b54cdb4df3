"""Arguments of the commands that make sources, `triptych index` and `triptych pack`, and of those that read one."""

import argparse
import math
from pathlib import Path

from data.store.config import OssConfig


def add_index(parser: argparse.ArgumentParser) -> None:
    """Of `triptych index`."""
    add_source(parser, "folder of *.tar, oss://BUCKET/PREFIX, or FILE.jsonl with a text a line")
    parser.add_argument("--tokenizer", type=Path, required=True, help="Hugging Face tokenizer folder")
    parser.add_argument(
        "--output", type=Path, help="folder of the index; default: SOURCE/index; of a text PREFIX, for PREFIX.bin"
    )
    parser.add_argument("--readers", type=at_least_one, help="processes; default: one for each core")
    parser.add_argument("--format", help="of the shards: triptych or webdataset; default: triptych")
    parser.add_argument(
        "--decode-pictures", action="store_true", help="decode every picture; default: parse its header alone"
    )
    parser.add_argument(
        "--skip-damaged-shards", action="store_true", help="list damaged shards and go on; default: stop at one"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare every byte of the shards, or token files, with what was indexed; 1 if they differ",
    )
    parser.set_defaults(command=_index)


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Of `triptych pack`."""
    parser.add_argument("records", type=Path, help="JSON list or JSON lines: LLaVA, ShareGPT or Qwen messages")
    parser.add_argument(
        "--media", type=Path, required=True, help="folder in which the names of pictures and clips begin"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of shards to make")
    parser.add_argument("--samples-per-shard", type=at_least_one, default=1000, help="default: 1000")
    parser.set_defaults(command=_pack)


def add_source(parser: argparse.ArgumentParser, what: str) -> None:
    """Of commands that read a source: where it lies, and how it is reached."""
    parser.add_argument("source", help=what)
    add_reach(parser)


def add_reach(parser: argparse.ArgumentParser) -> None:
    """How `oss://` is reached."""
    parser.add_argument(
        "--oss",
        nargs="+",
        metavar="KEY=VALUE",
        type=_key_value,
        default=[],
        help="how oss:// is reached, as data.oss in a recipe: region=cn-hangzhou credentials=file:keys.json",
    )


def _key_value(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE; the source comes before --oss")
    return text


def reach(options: argparse.Namespace, recipe: OssConfig | None = None) -> OssConfig:
    """What `--oss` says, or else the recipe, or else what OSS has by default. Raises RecipeError."""
    from train.resolve import oss_config

    return oss_config(options.oss) if options.oss else recipe or OssConfig()


def at_least_one(text: str) -> int:
    """A whole number, for argparse."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return number


def more_than_nothing(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def _index(options: argparse.Namespace) -> int:
    from launch.indexing import check, check_text, index, index_text

    if options.source.endswith(".jsonl"):
        of_shards = {
            "--readers": options.readers,
            "--format": options.format,
            "--decode-pictures": options.decode_pictures,
            "--skip-damaged-shards": options.skip_damaged_shards,
            "--oss": options.oss,
        }
        if given := [name for name, value in of_shards.items() if value]:
            raise ValueError(f"{options.source} holds text, for which {', '.join(given)} mean nothing; leave them out")
        of_text = check_text if options.check else index_text
        return of_text(Path(options.source), options.tokenizer, options.output)
    from data.formats.stored import OURS

    oss = reach(options)
    if options.check:
        return check(options.source, options.tokenizer, output=options.output, readers=options.readers, oss=oss)
    return index(
        options.source,
        options.tokenizer,
        output=options.output,
        readers=options.readers,
        format_name=options.format or OURS,
        decode_pictures=options.decode_pictures,
        skip_damaged=options.skip_damaged_shards,
        oss=oss,
    )


def _pack(options: argparse.Namespace) -> int:
    from launch.indexing import pack

    return pack(options.records, options.media, options.output, options.samples_per_shard)
