"""The command line of `triptych plan`."""

import argparse

from launch.commands.data import at_least_one, more_than_nothing


def add_plan(parser: argparse.ArgumentParser) -> None:
    """What it can be asked."""
    parser.add_argument(
        "--config-name", metavar="RECIPE", required=True, help="or a family: qwen2vl_7b plans its three stages"
    )
    parser.add_argument("--gpus", type=at_least_one, help="default: one replica of the recipe's layout")
    parser.add_argument("--gpu", default="h100", help="b200, h200, h100, h800, h20, a100 or a800; default: h100")
    parser.add_argument("--gpus-per-node", type=at_least_one, default=8)
    parser.add_argument(
        "--network", type=float, default=50.0, metavar="GB/S", help="of a GPU to other nodes; default: 50"
    )
    parser.add_argument("--efficiency", type=float, default=0.55, help="share of the GPU's FLOP/s that passes reach")
    parser.add_argument("--price", type=more_than_nothing, help="of a GPU and hour")
    parser.add_argument("--search", action="store_true", help="rank the layouts that fit")
    parser.add_argument("--parameters", action="store_true", help="tell parameters rank by rank as well")
    parser.add_argument("--json", action="store_true", help="print data in place of lines")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. parallel.tensor=4")
    parser.set_defaults(command=_plan)


def _plan(options: argparse.Namespace) -> int:
    from launch.planning.plan import Asked, machine_of, planned

    asked = Asked(
        gpus=options.gpus,
        machine=machine_of(options.gpu, options.gpus_per_node, options.network * 1e9, options.efficiency),
        price=options.price,
        search=options.search,
        parameters=options.parameters,
    )
    return planned(options.config_name, options.overrides, asked).tell(options.json)
