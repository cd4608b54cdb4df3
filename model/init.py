"""First weights, drawn by canonical name: the same numbers whatever the layout."""

import hashlib

import torch

from model.canonical import Box


def fill_random(parameter: torch.nn.Parameter, box: Box, seed: int, std: float) -> None:
    """Fill one parameter: norms 1, biases 0, matrices normal with deviation `std`.

    Each tensor has a generator of its own, keyed by (seed, canonical name), and is drawn whole on the CPU before its
    box is cut out; the cost is one whole tensor of host memory at a time.
    """
    with torch.no_grad():
        parameter.zero_()
        if box.name.endswith(".bias"):
            return
        if "norm" in box.name:
            parameter.fill_(1.0)
            return
        digest = hashlib.blake2b(f"{seed}/{box.name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        whole = torch.empty(box.global_shape).normal_(0.0, std, generator=generator)
        for dim, (start, length) in enumerate(zip(box.offset, box.shape, strict=True)):
            whole = whole.narrow(dim, start, length)
        box.view(parameter).copy_(whole)
