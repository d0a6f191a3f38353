"""From decoded clips to codes and prompts: the encoder that owns one device, and the loop of its process.

Letters: B clips, K codebooks, T frames, S samples, N prompt vectors of a clip, D prompt width.
"""

from __future__ import annotations

import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.audio.embedders.base import pad_sounds
from pipeline.common.errors import InputError, MachineError, first_line
from pipeline.corpora import printable
from pipeline.data.manifest import skipped_row
from pipeline.data.shard import Sample
from pipeline.preprocessing.decode import DecodedBatch, DecodedClip, DecodeOptions, Skipped
from pipeline.preprocessing.decode_workers import DecodeWorkerPool, exit_with_parent

if TYPE_CHECKING:
    from pipeline.audio.codecs import CodecSettings
    from pipeline.audio.codecs.base import Codec
    from pipeline.audio.embedders import EmbedderSettings
    from pipeline.audio.embedders.base import Embedder

MAX_BATCH_SECONDS = {"cpu": 32, "cuda": 640}  # of audio in a batch, which bounds the memory
NOT_FINITE = "not finite: its embedding has NaN or infinite values"
NEXT_JOB = "next job"  # the message by which an encoder asks for a job
DONE = "done"  # its last message, after the results of all its jobs
_T = TypeVar("_T")


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded clips of a shard from number `first` on.

    Attributes:
        shard, first: The shard, and the number of its first clip in it.
        num_clips: Clips that were decoded, or skipped.
        samples: The encoded clips, in order; without codes [0, 0] where only prompts were asked for.
        adjusted: Those whose audio differs from their files, as `skipped_row` returns them.
        skipped: The others, as `skipped_row` returns them.
    """

    shard: str
    first: int
    num_clips: int
    samples: list[Sample] = field(default_factory=list)
    adjusted: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds of audio of the samples."""
        return float(sum(sample.metadata["duration"] for sample in self.samples))


class Encoder:
    """A codec and an embedder on one device."""

    def __init__(self, codec: Codec, embedder: Embedder) -> None:
        self.codec, self.embedder = codec, embedder

    def encode_async(self, batch: DecodedBatch) -> Callable[[], EncodedBatch]:
        """Start to encode a batch. The returned function waits for the result, so a GPU can start the next batch.

        Clips are encoded in groups of equal length. Which clips share a group depends on the batch alone.
        """
        clips = [clip for clip in batch.clips if isinstance(clip.audio, np.ndarray)]
        groups = self._group_by_length(clips)
        pending = [self._encode_group(group, frames, batch.embed_only) for frames, group in groups]

        def finish() -> EncodedBatch:
            samples = {sample.key: sample for finish_group in pending for sample in finish_group()}
            result = EncodedBatch(batch.shard, batch.first, len(batch.clips))
            for decoded in batch.clips:
                key, path = decoded.clip.key, printable(decoded.clip.source)
                if isinstance(decoded.audio, Skipped):
                    result.skipped.append(skipped_row(path, key, decoded.audio.reason, decoded.audio.retry))
                elif key not in samples:
                    result.skipped.append(skipped_row(path, key, NOT_FINITE))
                else:
                    result.samples.append(samples[key])
                    result.adjusted.extend([skipped_row(path, key, decoded.note)] if decoded.note else [])
            return result

        return finish

    def _group_by_length(self, clips: list[DecodedClip]) -> Iterator[tuple[int, list[DecodedClip]]]:
        """Groups of clips with the same number of frames, which is yielded first."""

        def num_frames(clip: DecodedClip) -> int:
            return self.codec.num_frames(len(samples_of(clip)))

        for frames, same in groupby(sorted(clips, key=num_frames), key=num_frames):
            group = list(same)
            seconds = MAX_BATCH_SECONDS[self.codec.device.type] / self.codec.channels
            size = max(1, int(seconds * self.codec.frame_rate / frames))
            for start in range(0, len(group), size):
                yield frames, group[start : start + size]

    def _encode_group(self, clips: list[DecodedClip], frames: int, embed_only: bool) -> Callable[[], Iterator[Sample]]:
        """Start to encode clips of `frames` frames each. No clip affects the results of another.

        The returned function yields the samples of the clips whose embedding is finite.
        """
        import torch

        wavs = [samples_of(clip) for clip in clips]
        on_gpu = self.codec.device.type == "cuda"
        size = (len(wavs), self.codec.channels, frames * self.codec.hop_length)
        batch = torch.zeros(size, pin_memory=on_gpu)  # [B, channels, S]
        for row, wav in zip(batch.numpy(), wavs, strict=True):
            row[:, : len(wav)] = wav.T
        batch = batch.to(self.codec.device, non_blocking=True)
        lengths = torch.tensor([len(wav) for wav in wavs])
        codes = None if embed_only else self.codec.encode(batch, lengths)  # [B, K, T]
        if self.embedder.sample_rate == self.codec.sample_rate and self.codec.channels == 1:
            prompts = self.embedder.embed_frames(batch[:, 0], lengths)  # [B, N, D]
        else:
            prompts = self.embedder.embed_frames(*pad_sounds(self.embedder, wavs, self.codec.sample_rate))

        def finish() -> Iterator[Sample]:
            vectors = prompts.cpu().numpy().astype(np.float16)
            vectors = vectors[:, 0] if self.embedder.frames == 1 else vectors
            if codes is None:
                codes_uint16 = np.zeros((len(wavs), 0, 0), np.uint16)
            else:
                codes_uint16 = self._validate_codes(codes.cpu().numpy(), frames)
            for clip, wav, clip_codes, vector in zip(clips, wavs, codes_uint16, vectors, strict=True):
                if np.isfinite(vector).all():
                    yield _build_sample(clip, clip_codes, vector, len(wav) / self.codec.sample_rate)

        return finish

    def _validate_codes(self, codes: np.ndarray, frames: int) -> np.ndarray:
        """int64 [B, K, T] -> uint16."""
        assert codes.shape[1:] == (self.codec.codebooks, frames), codes.shape
        assert codes.min() >= 0 and codes.max() < self.codec.codebook_size
        return codes.astype(np.uint16)


def samples_of(clip: DecodedClip) -> np.ndarray:
    """The audio of a clip that has some, float32 [S] or [S, 2]."""
    assert isinstance(clip.audio, np.ndarray)
    return clip.audio


def _build_sample(decoded: DecodedClip, codes: np.ndarray, prompt: np.ndarray, seconds: float) -> Sample:
    clip = decoded.clip
    metadata = {
        "path": printable(clip.source),
        "start": clip.start,
        "duration": round(seconds, 6),
        "split": clip.split,
        "labels": clip.labels,
        **({"gain_db": decoded.gain} if decoded.gain else {}),
    }
    return Sample(clip.key, codes, prompt, metadata)


def load_encoder(codec: CodecSettings, embedder: EmbedderSettings, device: str) -> Encoder:
    """The encoder of these settings; on a CPU it has one thread."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    return Encoder(codec.open(device), embedder.load(device))


def encoder_loop(conn: Connection, load: Callable[[], Encoder], decode_workers: int, options: DecodeOptions) -> None:
    """Decode and encode the jobs that come through `conn` until there are no more, and send back the results."""
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:  # jobs are requested by the thread that prefetches
            conn.send(message)

    pool = DecodeWorkerPool(decode_workers, options)
    try:
        encoder = load()
        finish: Callable[[], EncodedBatch] | None = None
        for batch in prefetch(pool.decode(conn, lambda: send(NEXT_JOB))):
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
        send(error)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            reason = first_line(str(error))
            send(InputError(f"the device is out of memory ({reason}): give a smaller batch= or max_seconds="))
        else:
            send(RuntimeError(f"an encoder failed: {error}\n{traceback.format_exc()}"))
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


def prefetch(items: Iterator[_T], depth: int = 2) -> Iterator[_T]:
    """The same items, read from their iterator by a thread that is up to `depth` items ahead."""
    buffer: queue.Queue[tuple[_T | None, Exception | None]] = queue.Queue(depth)

    def read_ahead() -> None:
        try:
            for item in items:
                buffer.put((item, None))
            buffer.put((None, None))
        except Exception as error:
            buffer.put((None, error))

    threading.Thread(target=read_ahead, daemon=True).start()
    while True:
        item, error = buffer.get()
        if error is not None:
            raise error
        if item is None:
            return
        yield item
