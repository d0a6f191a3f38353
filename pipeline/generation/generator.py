"""Generation of codes, step by step through the model's pattern.

    values = {"prompt": prompts}                # of the model's conditions
    spec = GenerationSpec(300, seeds=[0, 1], sampling=sampling_settings(temperature=0.7), keyframes=[(0, values)])
    generation = Generation(InferenceEngine(model), spec)
    for codes in generation.chunks(25):         # [B, K, t] whenever t >= 25 more frames are complete
        ...
    generation.codes, generation.lengths        # [B, K, T], [B]

Sounds longer than the window are generated with a sliding window. When the window of N frames is full, its first
`window_stride` frames are dropped, and the model reads the rest again from position 0 on, like a clip that starts
there. Codes that later frames already have are kept (under the delay pattern, step s holds codebook k of frame s - k).
Cells before the window's first frame are empty, as at the start of every training clip:

    codebook 0    0 1 2 3 4 5 6 7      slides by 4:      4 5 6 7 | 8 9 ...
    codebook 1    . 0 1 2 3 4 5 6                        . 4 5 6 | 7 8 ...
    codebook 2    . . 0 1 2 3 4 5                        . . 4 5 | 6 7 ...

With `kept` frames the window always begins with the first frames of the clip, followed by the most recent ones: after
the slide with 2 of them, codebook 0 is 0 1 6 7 | 8 9 10 11 ...

At a keyframe new values of conditions replace the old ones in the prefix, and all steps are read again, because every
key and value depends on the prefix. Under the delay pattern a change reaches codebook k up to k frames late.

Letters: B clips, R rows of the model (with guidance several a clip), K codebooks, T frames, N frames of a window, S
steps, L positions of the prefix, C = 1025 classes, D model width.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.generation import gumbel_noise
from pipeline.generation.cuda_graph import CudaGraphStep
from pipeline.generation.engine import InferenceEngine
from pipeline.generation.guidance import Guidance, Values, check_scale
from pipeline.generation.sampling import all_finite, sample_token
from pipeline.generation.settings import SamplingSettings
from pipeline.models.conditions import PROMPT
from pipeline.models.pattern import SPECIAL_TOKEN


@dataclass(frozen=True)
class SlidingWindow:
    """The window of a sound longer than the training clips, in frames: its length and its stride.

    `kept`: the first frames of the clip that stay in the window, at its beginning.
    """

    frames: int
    stride: int
    kept: int = 0

    def indices(self, base: int, device: torch.device) -> Tensor:
        """The frames of the clip in the window at `base`, in order: [N]."""
        frames = torch.arange(self.frames, device=device)
        return torch.where(frames < self.kept, frames, frames + base)


@dataclass(frozen=True)
class GenerationSpec:
    """What to generate.

    Attributes:
        frames: Frames of each clip, at most.
        seeds: One per clip.
        sampling: How codes are sampled.
        keyframes: Values of conditions, and the frames from which they apply, the first from 0. Empty: no values.
        prefix_codes: Codes [B, K, T0] with which each clip begins.
        window: The sliding window, for sounds longer than the model can read or was trained on.
    """

    frames: int
    seeds: Sequence[int]
    sampling: SamplingSettings
    keyframes: Sequence[tuple[int, Values]] = ()
    prefix_codes: Tensor | None = None
    window: SlidingWindow | None = None


class Generation:
    """A batch of clips that is being generated.

    Args:
        engine: The model's inference engine.
        spec: What to generate.

    Attributes:
        codes: int64 [B, K, T]; 0 where not generated (yet).
        lengths: Frames of each clip, [B]. Fewer than requested only if the model was trained to end its clips.
        complete_frames: Frames of which all codebooks are generated so far.

    Raises:
        InputError: The model cannot generate what the spec says.
    """

    def __init__(self, engine: InferenceEngine, spec: GenerationSpec) -> None:
        self.engine, self.spec, self.pattern = engine, spec, engine.pattern
        config, device, B = engine.config, engine.device, len(spec.seeds)
        self.end_frames = int(config.end_of_audio)  # the model was trained with an empty frame after the last
        self.total_frames = spec.frames + self.end_frames
        window = spec.window or SlidingWindow(self.total_frames, self.total_frames)
        self.sliding = replace(window, frames=min(window.frames, self.total_frames))
        self.window = self.sliding.frames
        self._validate()
        # what is applied to the logits of each group of codebooks that the head predicts together
        self.filters = [spec.sampling.build_filters(config.codebooks, device, group) for group in engine.head.groups]
        self.guidance = Guidance.plan(spec.sampling.guidance, {name for _, values in spec.keyframes for name in values})
        self.prefixes = [self._prefix(values) for _, values in spec.keyframes] or [self._prefix({})]
        steps = self.pattern.num_steps(self.window)
        self.offset = config.prefix_length - 1  # step s - 1 is at position s + offset
        self.cache = engine.new_cache(B * self.guidance.rows_per_clip, steps + self.offset)
        # of the current window: its tokens in the pattern's order, which cells hold a code, and their noise keys
        self.sequence = torch.full((B, config.codebooks, steps), SPECIAL_TOKEN, device=device)
        self.active, self.keys = torch.zeros_like(self.sequence, dtype=torch.bool), self.sequence.to(torch.int32)
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)  # whether all logits so far are finite
        self.cuda_graph = CudaGraphStep(self._decode_step_at, device) if engine.use_cuda_graph else None
        self.tokens = torch.full((B, config.codebooks, self.total_frames), SPECIAL_TOKEN, device=device)
        if spec.prefix_codes is not None:
            assert spec.prefix_codes.shape[2] < spec.frames
            self.tokens[:, :, : spec.prefix_codes.shape[2]] = spec.prefix_codes.to(device) + 1
        self.lengths = torch.full((B,), spec.frames, device=device)
        self.complete_frames = 0 if spec.prefix_codes is None else spec.prefix_codes.shape[2]
        self._yielded_frames = 0
        # the special token is no code; only codebook 0 may sample it, if it means the end of the clip
        self.forbidden = torch.zeros(config.codebooks, config.codebook_size + 1, dtype=torch.bool, device=device)
        self.forbidden[self.end_frames :, SPECIAL_TOKEN] = True

    @property
    def codes(self) -> Tensor:
        """The codes so far: int64 [B, K, T], 0 after the end of a clip."""
        tokens = self.tokens[:, :, : self.spec.frames]
        is_after_end = torch.arange(tokens.shape[2], device=tokens.device) >= self.lengths[:, None, None]
        return (tokens - 1).masked_fill(is_after_end, 0).clamp(min=0)

    def chunks(self, size: int | None = None) -> Iterator[Tensor]:
        """Generate the clips.

        Yields:
            Codes [B, K, t] whenever t >= size more frames are complete, and the rest at the end. The prefix codes come
            first. Codes after the end of a clip are 0.
        """
        for _ in self._run_windows(size):
            yield self.codes[:, :, self._yielded_frames : self.complete_frames]
            self._yielded_frames = self.complete_frames
        self.complete_frames = int(self.lengths.max())
        assert bool((self._count_missing() == 0).all()), "a cell that holds a code was left empty"
        if self.complete_frames > self._yielded_frames:
            yield self.codes[:, :, self._yielded_frames : self.complete_frames]

    @torch.inference_mode()
    def _run_windows(self, size: int | None) -> Iterator[None]:
        """Run window after window; yields whenever `size` more frames are complete."""
        base = 0
        while True:
            yield from self._run_window(base, size)
            if base + self.window == self.total_frames or int(self.lengths.max()) <= base:
                return
            base = self._next_base(base)

    def _next_base(self, base: int) -> int:
        return min(base + self.sliding.stride, self.total_frames - self.window)

    def _run_window(self, base: int, size: int | None) -> Iterator[None]:
        """Generate the window of frames base..base + window; steps that are known already are only read."""
        N, is_last = self.window, base + self.window == self.total_frames
        self._load_window(base)
        sequence, active = self.sequence, self.active
        last_step_of_frame = self.pattern.steps(N).amax(0).tolist()  # after it, the frame is complete
        keyframe = self._keyframe_of_steps(base)
        unknown = (active & (sequence == SPECIAL_TOKEN)).any(0).any(0).tolist()
        first = unknown.index(True) if True in unknown else len(unknown)
        stop = self.pattern.steps_before_slide(N)
        dropped = self.sliding.kept + self._next_base(base) - base  # the next window has those after it, and kept ones
        if is_last or bisect.bisect_right(last_step_of_frame, stop - 1) < dropped:
            stop = sequence.shape[2]
        try:
            for s in range(first, stop):
                if s == first or keyframe[s] != keyframe[s - 1]:
                    self._write_step(self._prefill(sequence[:, :, :s], keyframe[s]), s)
                else:
                    self._decode_step(s)
                if self.end_frames and bool((ended := active[:, 0, s] & (sequence[:, 0, s] == SPECIAL_TOKEN)).any()):
                    self._end_clips(base, ended, s)
                if self.end_frames and not bool(active[:, :, s + 1 :].any()):
                    break
                complete = bisect.bisect_right(last_step_of_frame, s)
                self.complete_frames = max(self.complete_frames, min(base + complete, self.spec.frames))
                if size is not None and self.complete_frames - self._yielded_frames >= size:
                    self._store_window(base)
                    yield
        finally:  # also after an interruption, so that `codes` has everything that was generated
            self._store_window(base)

    # ---- the sequence of one window ----------------------------------------------------------------------------
    def _load_window(self, base: int) -> None:
        """Copy the window's tokens into the sequence; compute which cells hold a code, and their noise keys."""
        lengths = self._window_lengths(base)
        frame = self.pattern.frame_at_step(self.window, lengths)
        self.sequence.copy_(
            self.pattern.build_sequence(self.tokens[:, :, self.sliding.indices(base, self.tokens.device)], lengths)
        )
        self.active.copy_((frame >= 0) & (frame < (self.lengths - base)[:, None, None]))
        self.keys.copy_(gumbel_noise.noise_keys(self.spec.seeds, frame + base))

    def _store_window(self, base: int) -> None:
        """Copy the sequence back into the clips' tokens. Raises InputError if there were logits that are not finite."""
        if not bool(self.is_finite):
            raise InputError("the model's logits are not finite: its weights are damaged, or its training diverged")
        tokens = self.pattern.revert_sequence(self.sequence, self.window, self._window_lengths(base))
        is_after_end = torch.arange(self.window, device=tokens.device) >= (self.lengths - base)[:, None, None]
        tokens = tokens.masked_fill(is_after_end, SPECIAL_TOKEN)
        kept = self.sliding.kept if base else 0  # these are known
        self.tokens[:, :, base + kept : base + self.window] = tokens[:, :, kept:]

    def _window_lengths(self, base: int) -> Tensor:
        """Frames of each clip in the window, with the end frame: [B]."""
        return (self.lengths - base + self.end_frames).clamp(0, self.window)

    def _end_clips(self, base: int, ended: Tensor, step: int) -> None:
        """End the clips [B] that sampled the special token for the frame of this step."""
        self._store_window(base)
        frame = base + self.pattern.frame_at_step(self.window)[0, step]
        self.lengths = torch.where(ended, frame, self.lengths)
        is_after_end = torch.arange(self.total_frames, device=self.tokens.device) >= self.lengths[:, None, None]
        self.tokens.masked_fill_(is_after_end, SPECIAL_TOKEN)
        self._load_window(base)

    def _keyframe_of_steps(self, base: int) -> list[int]:
        """The index of each step's keyframe: that of the frame of the step's first active codebook."""
        frames = self.pattern.frame_at_step(self.window)  # [K, S], -1 where inactive
        frame = frames.gather(0, (frames >= 0).int().argmax(0, keepdim=True))[0] + base
        starts = torch.tensor([start for start, _ in self.spec.keyframes] or [0])
        return (torch.searchsorted(starts, frame, right=True) - 1).clamp(min=0).tolist()

    # ---- one step ----------------------------------------------------------------------------------------------
    def _prefix(self, values: Values) -> Tensor:
        """The prefix of all rows: [R, L, D]."""
        B = len(self.spec.seeds)
        return torch.cat([self.engine.prefix(each, B) for each in self.guidance.list_values(values)])

    def _prefill(self, steps: Tensor, keyframe: int) -> Tensor:
        """Read a keyframe's prefix and the steps [B, K, s] after it; returns what step s is predicted from: [R, D]."""
        inputs = torch.cat([self.prefixes[keyframe], self._embed_steps(steps)], 1)
        return self.engine.forward(inputs, self.cache, 0)

    def _decode_step(self, s: int) -> None:
        """Read step s - 1, and sample step s."""
        if self.cuda_graph is not None:
            self.cuda_graph(s)
            return
        inputs = self._embed_steps(self.sequence[:, :, s - 1 : s])
        self._write_step(self.engine.forward(inputs, self.cache, s + self.offset), s)

    def _decode_step_at(self, s: Tensor) -> None:
        """`_decode_step` for a step number in a tensor [1], without control flow that depends on values."""
        inputs = self._embed_steps(self.sequence.index_select(2, s - 1))
        hidden = self.engine.decode_step(inputs, self.cache, s + self.offset)
        active, keys = self.active.index_select(2, s)[:, :, 0], self.keys.index_select(2, s)[:, :, 0]
        known = self.sequence.index_select(2, s)[:, :, 0]
        self.sequence.index_copy_(2, s, self._sample_step(hidden, keys, active, known)[:, :, None])

    def _write_step(self, hidden: Tensor, s: int) -> None:
        """Sample step s from the output of the backbone [R, D]."""
        known = self.sequence[:, :, s]
        self.sequence[:, :, s] = self._sample_step(hidden, self.keys[:, :, s], self.active[:, :, s], known)

    def _embed_steps(self, steps: Tensor) -> Tensor:
        """The model's inputs [R, s, D] for steps [B, K, s]."""
        inputs, rows = self.engine.model.embed(steps), self.guidance.rows_per_clip
        return inputs if rows == 1 else torch.cat([inputs] * rows)

    def _sample_step(self, hidden: Tensor, keys: Tensor, active: Tensor, known: Tensor) -> Tensor:
        """Tokens [B, K] of a step from the output of the backbone [R, D] and noise keys [B, K].

        Known tokens stay, and inactive cells are empty.
        """
        step = known.clone()

        def choose(i: int, logits: Tensor) -> Tensor:
            """Tokens [R, n] of the codebooks of group i, from their logits [R, n, C]."""
            group = self.engine.head.groups[i]
            sampled = self._sample_tokens(self.guidance.apply(logits), keys[:, group], i)
            step[:, group] = known[:, group].where(
                known[:, group] != SPECIAL_TOKEN, sampled.where(active[:, group], SPECIAL_TOKEN)
            )
            return torch.cat([step[:, group]] * (len(logits) // len(step)))

        self.engine.head(hidden, choose)
        return step

    def _sample_tokens(self, logits: Tensor, keys: Tensor, i: int) -> Tensor:
        """Tokens [B, n] of the codebooks of group i, from their logits [B, n, C] and noise keys [B, n]."""
        self.is_finite &= all_finite(logits)
        noise = gumbel_noise.gumbel_noise(keys, logits.shape[-1])
        forbidden = self.forbidden[self.engine.head.groups[i]]
        return sample_token(logits.masked_fill(forbidden, -torch.inf), noise, self.filters[i])

    # ---- checks ------------------------------------------------------------------------------------------------
    def _count_missing(self) -> Tensor:
        """The number of codes that each clip lacks: [B]."""
        is_real = torch.arange(self.spec.frames, device=self.lengths.device) < self.lengths[:, None]
        return ((self.tokens[:, :, : self.spec.frames] == SPECIAL_TOKEN) & is_real[:, None]).sum((1, 2))

    def _validate(self) -> None:
        spec, positions = self.spec, self.engine.config.positions
        check_scale(spec.sampling.guidance, [each.name for each in self.engine.config.condition_settings])
        for _, values in spec.keyframes:
            prompts = values.get(PROMPT, torch.zeros(len(spec.seeds), 1))
            rows = (~prompts.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
            if rows:
                raise InputError(f"prompts {rows} have values that are not finite: use other sounds")
        steps = self.pattern.num_steps(self.window)
        if spec.frames < 1 or not 0 < steps <= positions:
            raise InputError(
                f"{self.window - self.end_frames} frames are {steps} steps under pattern={self.pattern.name}, but the "
                f"model has positions for 1..{positions}: give other seconds=, or train with a larger model.positions"
            )
        free = self.window - self.sliding.kept
        if self.window < self.total_frames and not 0 < self.sliding.stride < free:
            raise InputError(f"a window of {free} frames moves by 1..{free - 1} frames, not {self.sliding.stride}")


def generate(
    engine: InferenceEngine,
    values: Values | None,
    frames: int,
    sampling: SamplingSettings,
    seeds: Sequence[int],
    window: SlidingWindow | None = None,
) -> tuple[Tensor, Tensor]:
    """Generate clips of one length.

    Args:
        engine: The model's inference engine.
        values: Values of the model's conditions; None: none has a value.
        frames: Frames of each clip.
        sampling: How codes are sampled.
        seeds: One per clip.
        window: The sliding window of long clips.

    Returns:
        Codes [B, K, T] and the frames of each clip [B]; see `Generation`.
    """
    keyframes = [(0, values)] if values else []
    generation = Generation(engine, GenerationSpec(frames, seeds, sampling, keyframes, window=window))
    for _ in generation.chunks():
        pass
    return generation.codes, generation.lengths
