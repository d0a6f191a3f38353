"""From decoded clips to codes and prompts: the encoder that owns one device, and the loop of its process.

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
from pipeline.audio.embedders.base import embed_sounds
from pipeline.common.errors import MachineError
from pipeline.preprocessing.decode import DecodedBatch, DecodeOptions, Skipped
from pipeline.preprocessing.decode_workers import DecodeWorkerPool, exit_with_parent

if TYPE_CHECKING:
    from pipeline.audio.codecs.base import Codec
    from pipeline.audio.embedders.base import Embedder

MAX_BATCH_SECONDS = {"cpu": 32, "cuda": 640}  # of audio in a batch, which bounds the memory
NEXT_JOB = "next job"  # the message by which an encoder asks for a job
DONE = "done"  # its last message, after the results of all its jobs
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """An encoded clip.

    codes: uint16 [K, T], or None if only the prompt was asked for. prompt: float16 [D]. note: how the audio differs
    from its file.
    """

    codes: np.ndarray | None
    prompt: np.ndarray
    seconds: float
    silent: bool
    note: str = ""


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded clips of a shard from number `first` on, or why they are skipped."""

    shard: str
    first: int
    clips: list[EncodedClip | Skipped]


@dataclass(frozen=True)
class WorkerError:
    """Why an encoder stopped. kind: the name of the exception."""

    kind: str
    text: str


class Encoder:
    """A codec and an embedder on one device."""

    def __init__(self, codec: Codec, embedder: Embedder) -> None:
        self.codec, self.embedder = codec, embedder

    def encode(self, batch: DecodedBatch) -> EncodedBatch:
        """Encode clips in groups of equal length. Which clips share a group depends on the batch alone."""
        return self.encode_async(batch)()

    def encode_async(self, batch: DecodedBatch) -> Callable[[], EncodedBatch]:
        """Start to encode a batch. The returned function waits for the result, so a GPU can start the next batch."""
        wavs = [(i, clip) for i, clip in enumerate(batch.clips) if not isinstance(clip, Skipped)]
        groups = [
            ([i for i, _ in group], self._encode_group([wav for _, wav in group], frames, batch.embed_only))
            for frames, group in self._group_by_length(wavs)
        ]

        def finish() -> EncodedBatch:
            clips: dict[int, EncodedClip | Skipped] = {
                i: clip for i, clip in enumerate(batch.clips) if isinstance(clip, Skipped)
            }
            for indices, finish_group in groups:
                clips |= zip(indices, finish_group(), strict=True)
            for i, note in batch.notes.items():
                if isinstance(clip := clips[i], EncodedClip):
                    clips[i] = replace(clip, note=note)
            return EncodedBatch(batch.shard, batch.first, [clips[i] for i in range(len(batch.clips))])

        return finish

    def _group_by_length(
        self, wavs: list[tuple[int, np.ndarray]]
    ) -> Iterator[tuple[int, list[tuple[int, np.ndarray]]]]:
        """Groups of clips with the same number of frames, which is yielded first."""

        def num_frames(wav: tuple[int, np.ndarray]) -> int:
            return self.codec.num_frames(len(wav[1]))

        for frames, same in groupby(sorted(wavs, key=num_frames), key=num_frames):
            group = list(same)
            size = max(1, int(MAX_BATCH_SECONDS[self.codec.device.type] * self.codec.frame_rate / frames))
            for start in range(0, len(group), size):
                yield frames, group[start : start + size]

    def _encode_group(
        self, wavs: list[np.ndarray], frames: int, embed_only: bool
    ) -> Callable[[], Iterator[EncodedClip | Skipped]]:
        """Start to encode clips of `frames` frames each. No clip affects the results of another."""
        import torch

        on_gpu = self.codec.device.type == "cuda"
        batch = torch.zeros(len(wavs), frames * self.codec.hop_length, pin_memory=on_gpu)  # [B, S]
        for row, wav in zip(batch.numpy(), wavs, strict=True):
            row[: len(wav)] = wav
        batch = batch.to(self.codec.device, non_blocking=True)
        lengths = torch.tensor([len(wav) for wav in wavs])
        codes = None if embed_only else self.codec.encode(batch[:, None], lengths)  # [B, K, T]
        if self.embedder.sample_rate == self.codec.sample_rate:
            prompts = self.embedder.embed(batch, lengths)  # [B, D]
        else:
            prompts = embed_sounds(self.embedder, wavs, self.codec.sample_rate)

        def finish() -> Iterator[EncodedClip | Skipped]:
            vectors = prompts.cpu().numpy().astype(np.float16)
            codes_uint16 = None if codes is None else self._validate_codes(codes.cpu().numpy(), frames)
            for row, wav in enumerate(wavs):
                if not np.isfinite(vectors[row]).all():
                    yield Skipped("not finite: its embedding has NaN or infinite values")
                    continue
                seconds = len(wav) / self.codec.sample_rate
                clip_codes = None if codes_uint16 is None else codes_uint16[row]
                yield EncodedClip(clip_codes, vectors[row], seconds, audio_io.is_silent(wav))

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


def encoder_loop(conn: Connection, load: Callable[[], Encoder], decode_workers: int, options: DecodeOptions) -> None:
    """Decode and encode the jobs that come through `conn` until there are no more, and send back the results."""
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:  # jobs are requested by the thread that prefetches
            conn.send(message)

    pool = DecodeWorkerPool(decode_workers, options)
    try:
        encoder = load()
        with closing(prefetch(pool.decode(conn, lambda: send(NEXT_JOB)))) as batches:
            finish: Callable[[], EncodedBatch] | None = None
            for batch in batches:
                finish_next = encoder.encode_async(batch)
                if finish:
                    send(finish())
                finish = finish_next
            if finish:
                send(finish())
        send(DONE)
    except (BrokenPipeError, EOFError, ConnectionResetError):
        pass  # the process that sends the jobs has ended
    except MachineError as error:
        send(WorkerError("MachineError", str(error)))
    except Exception as error:
        send(WorkerError(type(error).__name__, f"{error}\n{traceback.format_exc()}"))
    finally:
        pool.close()
        conn.close()


def run_encoder_process(
    conn: Connection, load: Callable[[], Encoder], decode_workers: int, options: DecodeOptions
) -> None:
    """`encoder_loop` in a process that ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the parent, which ends this process
    exit_with_parent()
    encoder_loop(conn, load, decode_workers, options)


def prefetch(items: Iterator[_T], depth: int = 2) -> Generator[_T, None, None]:
    """The same items, read from their iterator by a thread that is up to `depth` items ahead."""
    buffer: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    is_stopped = threading.Event()

    def put(row: tuple[bool, Any]) -> None:
        while not is_stopped.is_set():
            with suppress(queue.Full):
                buffer.put(row, timeout=0.1)
                return

    def read_ahead() -> None:
        try:
            for item in items:
                put((True, item))
                if is_stopped.is_set():
                    return
            put((False, None))
        except Exception as error:
            put((False, error))

    thread = threading.Thread(target=read_ahead, daemon=True)
    thread.start()
    try:
        while True:
            is_item, item = buffer.get()
            if is_item:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        is_stopped.set()
        thread.join(timeout=1)
