"""Decoded clips in, codes and prompts out: what a process does that owns a device.

Letters: B clips, K codebooks, T frames, S samples, D prompt width.
"""

from __future__ import annotations

import queue
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.audio import audio_io
from pipeline.common.errors import MachineError
from pipeline.preprocessing.decode import DecodedBatch, DecodeOptions, Skipped
from pipeline.preprocessing.decode_workers import DecodeWorkerPool, exit_with_parent

if TYPE_CHECKING:
    from pipeline.audio.codecs.base import Codec
    from pipeline.audio.embedders.base import Embedder

MAX_BATCH_SECONDS = {"cpu": 32, "cuda": 640}  # of audio in a batch, whatever its count of clips: bounds the memory
NEXT_JOB = "want"  # a worker's word for: give me a job
DONE = "done"  # ... and for: all of mine are through
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """A clip as numbers. codes: uint16 [K, T], None where they were not asked for; prompt: float16 [D].

    note: how its sound is not as its file has it.
    """

    codes: np.ndarray | None
    prompt: np.ndarray
    seconds: float
    silent: bool
    note: str = ""


@dataclass(frozen=True)
class EncodedBatch:
    """Items of a shard from number `first` on, as numbers, or why they are not."""

    shard: str
    first: int
    clips: list[EncodedClip | Skipped]


@dataclass(frozen=True)
class WorkerError:
    """Why a worker stopped. kind: the name of the exception."""

    kind: str
    text: str


class Encoder:
    """A codec and an embedder on one device."""

    def __init__(self, codec: Codec, embedder: Embedder) -> None:
        self.codec, self.embedder = codec, embedder

    def encode(self, part: DecodedBatch) -> EncodedBatch:
        """Encode a part's clips in batches of equal length. Which clips share a batch follows from the part alone."""
        return self.encode_async(part)()

    def encode_async(self, part: DecodedBatch) -> Callable[[], EncodedBatch]:
        """Begin to encode a part. What is returned waits for the numbers: a GPU may have the next part by then."""
        wavs = [(i, heard) for i, heard in enumerate(part.clips) if not isinstance(heard, Skipped)]
        batches = [
            ([i for i, _ in batch], self._encode_batch([wav for _, wav in batch], frames, part.embed_only))
            for frames, batch in self._group_by_length(wavs)
        ]

        def finish() -> EncodedBatch:
            found: dict[int, EncodedClip | Skipped] = {i: h for i, h in enumerate(part.clips) if isinstance(h, Skipped)}
            for rows, finish_batch in batches:
                found |= zip(rows, finish_batch(), strict=True)
            for i, note in part.notes.items():
                if isinstance(numbers := found[i], EncodedClip):
                    found[i] = replace(numbers, note=note)
            return EncodedBatch(part.shard, part.first, [found[i] for i in range(len(part.clips))])

        return finish

    def _group_by_length(
        self, wavs: list[tuple[int, np.ndarray]]
    ) -> Iterator[tuple[int, list[tuple[int, np.ndarray]]]]:
        def frames(wav: tuple[int, np.ndarray]) -> int:
            return self.codec.num_frames(len(wav[1]))

        for count, same in groupby(sorted(wavs, key=frames), key=frames):
            group = list(same)
            most = max(1, int(MAX_BATCH_SECONDS[self.codec.device.type] * self.codec.frame_rate / count))
            for start in range(0, len(group), most):
                yield count, group[start : start + most]

    def _encode_batch(
        self, wavs: list[np.ndarray], frames: int, embed_only: bool
    ) -> Callable[[], Iterator[EncodedClip | Skipped]]:
        """Clips of as many frames each; none has a part in another's numbers, whatever it holds."""
        import torch

        on_gpu = self.codec.device.type == "cuda"
        batch = torch.zeros(len(wavs), frames * self.codec.hop_length, pin_memory=on_gpu)  # [B, S]
        for row, wav in zip(batch.numpy(), wavs, strict=True):
            row[: len(wav)] = wav
        batch = batch.to(self.codec.device, non_blocking=True)
        lengths = torch.tensor([len(wav) for wav in wavs])
        codes = None if embed_only else self.codec.encode(batch[:, None], lengths)  # [B, K, T]
        prompts = self.embedder.embed(batch, lengths)  # [B, D]

        def finish() -> Iterator[EncodedClip | Skipped]:
            vectors = prompts.cpu().numpy().astype(np.float16)
            numbers = None if codes is None else self._validate_codes(codes.cpu().numpy(), frames)
            for row, wav in enumerate(wavs):
                if not np.isfinite(vectors[row]).all():
                    yield Skipped("not finite: its embedding has NaN or infinite values")
                    continue
                seconds = len(wav) / self.codec.sample_rate
                yield EncodedClip(
                    None if numbers is None else numbers[row], vectors[row], seconds, audio_io.is_silent(wav)
                )

        return finish

    def _validate_codes(self, codes: np.ndarray, frames: int) -> np.ndarray:
        """int64 [B, K, T] -> uint16."""
        assert codes.shape[1:] == (self.codec.codebooks, frames), codes.shape
        assert codes.min() >= 0 and codes.max() < self.codec.codebook_size
        return codes.astype(np.uint16)


def load_encoder(codec: dict[str, Any], embedder: dict[str, Any], device: str, threads: int = 1) -> Encoder:
    """The encoder that the settings of `conf/codec` and `conf/embedder` describe. threads: of a CPU."""
    import torch

    from pipeline.audio.codecs import load_codec
    from pipeline.audio.embedders import load_embedder

    if device == "cpu":
        torch.set_num_threads(threads)
    return Encoder(load_codec(**codec, device=device), load_embedder(**embedder, device=device))


def encoder_loop(conn: Connection, load: Callable[[], Encoder], readers: int, how: DecodeOptions) -> None:
    """Work on the jobs that come through `conn` until there are no more; say there what comes of them."""
    speaking = threading.Lock()

    def say(message: Any) -> None:
        with speaking:  # `want` is said by the thread that reads ahead
            conn.send(message)

    crew = DecodeWorkerPool(readers, how)
    try:
        encoder = load()
        with closing(prefetch(crew.decode(conn, lambda: say(NEXT_JOB)))) as heard:
            finish: Callable[[], EncodedBatch] | None = None
            for part in heard:
                launched = encoder.encode_async(part)
                if finish:
                    say(finish())
                finish = launched
            if finish:
                say(finish())
        say(DONE)
    except (BrokenPipeError, EOFError, ConnectionResetError):
        pass  # whoever gave us the jobs is gone
    except MachineError as error:
        say(WorkerError("MachineError", str(error)))
    except Exception as error:
        say(WorkerError(type(error).__name__, f"{error}\n{traceback.format_exc()}"))
    finally:
        crew.close()
        conn.close()


def run_encoder_process(conn: Connection, load: Callable[[], Encoder], readers: int, how: DecodeOptions) -> None:
    """`serve`, in a process that ends with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the parent, which ends us
    exit_with_parent()
    encoder_loop(conn, load, readers, how)


def prefetch(items: Iterator[_T], depth: int = 2) -> Generator[_T, None, None]:
    """The same items, taken from their iterator by a thread that keeps up to `depth` in hand."""
    hand: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(row: tuple[bool, Any]) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                hand.put(row, timeout=0.1)
                return

    def take() -> None:
        try:
            for item in items:
                put((True, item))
                if stopped.is_set():
                    return
            put((False, None))
        except Exception as error:
            put((False, error))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        while True:
            more, item = hand.get()
            if more:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        stopped.set()
        thread.join(timeout=1)
