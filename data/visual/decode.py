"""Decoding clips in child processes that can be killed: decord first, PyAV before a clip is called bad."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.errors import SampleError
from data.types import Bytes, Int64, MediaSize
from data.visual.decode_process import DecoderGone, DecoderMissing, DecoderProcess, Reply, start_decoder
from data.visual.decode_verdicts import Limits, Verdicts

log = logging.getLogger(__name__)

DECODERS = ("decord", "pyav")  # in the order in which they are asked
CLIPS_PER_CHILD = 500  # decoders leak; a new child costs 0.3 s
MEMORY_BYTES = 8 << 30
MOST_SECONDS = 3600.0  # a header may claim any duration
PROBE_SECONDS_A_BYTE = 0.5e-6  # PyAV counts frames by decoding them; how long a clip is, nobody knows yet


class Decoded(NamedTuple):
    """Frames, and who decoded them."""

    frames: Bytes  # (F, height, width, 3)
    decoder: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRequest:
    """What is wanted of a clip."""

    data: bytes
    indices: Int64  # ascending; a frame may be wanted twice
    height: int
    width: int
    seconds: float = 0.0
    """The clip's duration as indexed; it lengthens the deadline."""

    @property
    def digest(self) -> str:
        """Names the clip's bytes, which frames, and their size."""
        found = hashlib.blake2b(self.data, digest_size=16)
        found.update(repr((self.indices.tolist(), self.height, self.width, "bicubic", "rgb8")).encode())
        return found.hexdigest()


class ClipDecoder:
    """A child a decoder, started on first use. Not for use by several threads at once, but for `close`.

    A clip has one deadline for both opinions together: decord gets half of it, PyAV what is left. What a decoder could
    not decode is remembered, in the process and in `verdicts`, and not asked again with the same limits.
    """

    def __init__(
        self,
        timeout_seconds: float,
        *,
        timeout_per_second: float = 0.0,
        memory_bytes: int = MEMORY_BYTES,
        verdicts: Path | None = None,
    ) -> None:
        """
        Args:
            timeout_seconds: deadline of a clip.
            timeout_per_second: seconds that each second of a clip adds to it.
            memory_bytes: resident memory at which a child is killed.
            verdicts: folder that remembers for other processes what cannot be decoded.
        """
        self._timeout = timeout_seconds
        self._per_second = timeout_per_second
        self._memory_bytes = memory_bytes
        self._verdicts = Verdicts(verdicts)
        self._children: dict[str, DecoderProcess] = {}
        self._names: dict[str, str] = {}
        self._decoders: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """The decoder asked first: its version and that of what it is made of. Two decoders give two sets of pixels."""
        return self._name(self._order()[0])

    def deadline(self, request: ClipRequest) -> float:
        """Seconds that the clip may take, both opinions together."""
        longest = max(MOST_SECONDS, self._timeout)
        return min(self._timeout + self._per_second * request.seconds, longest)

    def expected(self, request: ClipRequest, digest: str) -> str:
        """Name of the decoder whose frames `decode` would give as far as is known; raises SampleError if none."""
        limits = Limits(seconds=self.deadline(request), memory_bytes=self._memory_bytes)
        reasons = []
        for decoder in self._order():
            reason = self._verdicts.reason(digest, self._name(decoder), limits)
            if reason is None:
                return self._name(decoder)
            reasons.append(f"{decoder}: {reason}")
        raise SampleError(f"clip of {len(request.data)} bytes cannot be decoded: {'; '.join(reasons)}")

    def probe(self, data: bytes) -> MediaSize:
        """Frames, fps and size of a clip; raises SampleError."""
        digest = hashlib.blake2b(b"probe" + data, digest_size=16).hexdigest()
        seconds = min(self._timeout + PROBE_SECONDS_A_BYTE * len(data), max(MOST_SECONDS, self._timeout))
        (reply, _), _ = self._first_answer({"do": "probe", "nbytes": len(data)}, data, digest, seconds)
        return MediaSize(
            kind="video", height=reply["height"], width=reply["width"], frames=reply["frames"], fps=reply["fps"]
        )

    def decode(self, request: ClipRequest, digest: str | None = None) -> Decoded:
        """The frames at `indices`, resized. Raises SampleError, also past the deadline.

        `digest` is the request's, for a caller who has it: it costs a second for a gigabyte.
        """
        shape = (len(request.indices), request.height, request.width, 3)
        fields = {"do": "decode", "indices": request.indices.tolist(), "height": shape[1], "width": shape[2]}
        (_, payload), name = self._first_answer(
            fields | {"nbytes": len(request.data)}, request.data, digest or request.digest, self.deadline(request)
        )
        if len(payload) != np.prod(shape):
            raise SampleError(f"{name} gave {len(payload)} bytes for frames of shape {shape}")
        return Decoded(frames=np.frombuffer(payload, dtype=np.uint8).reshape(shape), decoder=name)

    def close(self) -> None:
        """End the children, whatever they are doing."""
        for child in list(self._children.values()):
            child.close()

    def _order(self) -> tuple[str, ...]:
        """Decoders that are here, best first."""
        if self._decoders is None:
            self._decoders = DECODERS
            try:
                self._running(DECODERS[0])
            except DecoderMissing as missing:
                self._decoders = DECODERS[1:]
                log.warning("decord cannot be imported here (%s); clips are decoded by PyAV alone", missing)
        return self._decoders

    def _name(self, decoder: str) -> str:
        if decoder not in self._names:
            self._names[decoder] = self._running(decoder).name
        return self._names[decoder]

    def _running(self, decoder: str) -> DecoderProcess:
        """A child that can be asked."""
        child = self._children.get(decoder)
        if child is not None and (
            child.answered >= CLIPS_PER_CHILD or 2 * child.resident_bytes > self._memory_bytes or not child.lives
        ):
            child.close()
            child = None
        if child is None:
            child = self._children[decoder] = start_decoder(decoder, self._memory_bytes)
        return child

    def _first_answer(self, fields: dict[str, Any], data: bytes, digest: str, seconds: float) -> tuple[Reply, str]:
        """The reply of the first decoder that has one, and its name. Starting a child is not on the clip's account."""
        limits = Limits(seconds=seconds, memory_bytes=self._memory_bytes)
        left = seconds
        reasons = []
        for decoder in self._order():
            name = self._name(decoder)
            reason = self._verdicts.reason(digest, name, limits)
            if reason is None:
                share = left if decoder == DECODERS[-1] else left / 2
                try:
                    return self._ask(decoder, fields, data, share), name
                except _Refused as refused:
                    reason = str(refused)
                    left -= refused.seconds
                    self._verdicts.add(digest, name, reason, limits, shared=refused.of_the_clip)
            reasons.append(f"{decoder}: {reason}")
        raise SampleError(f"clip of {len(data)} bytes cannot be decoded: {'; '.join(reasons)}")

    def _ask(self, decoder: str, fields: dict[str, Any], data: bytes, seconds: float) -> Reply:
        """One decoder's reply, or _Refused. A child that died is tried once more: the host may have killed it."""
        spent = 0.0
        for last in (False, True):
            child = self._running(decoder)
            try:
                reply = child.ask(fields, data, seconds - spent)
            except DecoderGone as gone:
                spent += child.spent
                if gone.why == "closed":
                    raise SampleError(str(gone)) from None
                if gone.why == "died" and not last:
                    continue
                raise _Refused(str(gone), of_the_clip=gone.why != "died", seconds=spent) from None
            if "error" in reply[0]:
                spent += child.spent
                raise _Refused(reply[0]["error"], of_the_clip=True, seconds=spent)
            return reply
        raise AssertionError


class _Refused(Exception):
    """A decoder could not decode a clip."""

    def __init__(self, reason: str, *, of_the_clip: bool, seconds: float) -> None:
        super().__init__(reason)
        self.of_the_clip = of_the_clip
        self.seconds = seconds
