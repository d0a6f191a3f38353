"""Codes from a model, step by step through its pattern: whole clips, continued ones, and pieces longer than a clip.

    plan = Plan(frames=300, seeds=[0, 1], samplings=[Sampling(0.7)] * 2, prompts=[(0, prompts)])
    take = Take(Player(model), plan)
    for codes in take.chunks(25):      # [B, K, t] as soon as t more frames are complete
        ...
    take.codes, take.lengths           # [B, K, T], [B]

A piece longer than `window` frames is made first in, first out: when the window is full, its first `hop` frames go, and
the model reads the rest again from its first position on, as if the piece began there. What a later frame had begun
(under the delay pattern, step s holds codebook k of frame s - k) stays; what reaches before the window's first frame is
empty, as at the start of every clip in training:

    codebook 0    0 1 2 3 4 5 6 7      slides by 4:      4 5 6 7 | 8 9 ...
    codebook 1    . 0 1 2 3 4 5 6                        . 4 5 6 | 7 8 ...
    codebook 2    . . 0 1 2 3 4 5                        . . 4 5 | 6 7 ...

A prompt that changes on the way takes the place of the first at position 0, and all that was made is read again: every
key and value depends on it. Under the delay pattern it reaches codebook k up to k frames late.

Letters: B clips, K codebooks, T frames, N frames of a window, S steps, C = 1025 classes, P prompt width.
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
from pipeline.generation.sampling import SamplingParams, all_finite, sample_token, temperature_tensor
from pipeline.models.patterns import SPECIAL_TOKEN


@dataclass(frozen=True)
class GenerationSpec:
    """What to make.

    frames: of each clip, at most. seeds: one a clip. samplings: one a clip; they may differ in temperature only.
    prompts: from which frame on which prompts [B, P] hold, the first from 0; none: without a prompt.
    given: codes [B, K, T0] that each clip begins with. window, hop: frames kept and let go, where a piece is longer
    than the model can read or was trained to.
    """

    frames: int
    seeds: Sequence[int]
    samplings: Sequence[SamplingParams]
    prompts: Sequence[tuple[int, Tensor]] = ()
    prefix_codes: Tensor | None = None
    window: int | None = None
    window_stride: int | None = None


class Generation:
    """One playing of a plan. Raises InputError for a plan that the model cannot follow.

    codes: int64 [B, K, T], 0 where not made (yet). lengths: [B], the true frames: fewer than asked for only where the
    model was trained to end its clips. complete: frames that are whole so far.
    """

    def __init__(self, player: InferenceEngine, plan: GenerationSpec) -> None:
        self.engine, self.spec, self.pattern = player, plan, player.pattern
        config, device, B = player.config, player.device, len(plan.seeds)
        self.ends = int(config.end_of_audio)  # it was trained with a frame of EMPTY after the last
        self.total_frames = plan.frames + self.ends
        self.window = self.total_frames if plan.window is None else min(plan.window, self.total_frames)
        self._check()
        self.sampling = plan.samplings[0]
        assert len(plan.samplings) == B
        assert all(replace(s, temperature=self.sampling.temperature) == self.sampling for s in plan.samplings)
        self.temperature = temperature_tensor(plan.samplings, config.codebooks).to(device)
        self.guided = self.sampling.guidance != 1 and bool(plan.prompts)
        self.rows = B * (1 + self.guided)
        self.starts = [self._start(prompts) for _, prompts in plan.prompts] or [self._start(None)]
        steps = self.pattern.num_steps(self.window)
        self.cache = player.new_cache(self.rows, steps)
        self.sequence = torch.full(
            (B, config.codebooks, steps), SPECIAL_TOKEN, device=device
        )  # of the window, as are these:
        self.active, self.keys = torch.zeros_like(self.sequence, dtype=torch.bool), self.sequence.to(torch.int32)
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)  # whether all logits so far are numbers
        self.graph = CudaGraphStep(self._advance_at, device) if player.use_cuda_graph else None
        self.tokens = torch.full((B, config.codebooks, self.total_frames), SPECIAL_TOKEN, device=device)
        if plan.prefix_codes is not None:
            assert plan.prefix_codes.shape[2] < plan.frames
            self.tokens[:, :, : plan.prefix_codes.shape[2]] = plan.prefix_codes.to(device) + 1
        self.lengths = torch.full((B,), plan.frames, device=device)
        self.complete_frames = 0 if plan.prefix_codes is None else plan.prefix_codes.shape[2]
        self._told = 0  # frames that `chunks` has yielded
        forbidden = torch.zeros(config.codebooks, config.codebook_size + 1, dtype=torch.bool, device=device)
        forbidden[self.ends :, SPECIAL_TOKEN] = (
            True  # a hole in the sound, unless it is codebook 0's way to say the end
        )
        self.forbidden = forbidden

    @property
    def codes(self) -> Tensor:
        """What is made so far: int64 [B, K, T], 0 behind a row's end."""
        tokens = self.tokens[:, :, : self.spec.frames]
        behind = torch.arange(tokens.shape[2], device=tokens.device) >= self.lengths[:, None, None]
        return (tokens - 1).masked_fill(behind, 0).clamp(min=0)

    def chunks(self, size: int | None = None) -> Iterator[Tensor]:
        """Make the clips; yield codes [B, K, t] when t >= size frames more are whole, and the rest at the end.

        Codes given in advance come first. Behind a clip's end they are 0.
        """
        for _ in self._steps(size):
            yield self.codes[:, :, self._told : self.complete_frames]
            self._told = self.complete_frames
        self.complete_frames = int(self.lengths.max())
        assert bool((self._missing() == 0).all()), "a cell that holds a code was left empty"
        if self.complete_frames > self._told:
            yield self.codes[:, :, self._told : self.complete_frames]

    @torch.inference_mode()
    def _steps(self, size: int | None) -> Iterator[None]:
        """Window after window; yields whenever `size` frames more are whole."""
        base, hop = 0, self.spec.window_stride or self.window
        while True:
            yield from self._play(base, size)
            if base + self.window == self.total_frames or int(self.lengths.max()) <= base:
                return
            base = min(base + hop, self.total_frames - self.window)

    def _play(self, base: int, size: int | None) -> Iterator[None]:
        """The steps of the window of frames base..base + window; those already known are read, not made."""
        N, last = self.window, base + self.window == self.total_frames
        self._lay(base)
        laid, active = self.sequence, self.active
        whole = self.pattern.steps(N).amax(0).tolist()  # after which step each frame is
        turns = self._turns(base)
        unknown = (active & (laid == SPECIAL_TOKEN)).any(0).any(0).tolist()
        first = unknown.index(True) if True in unknown else len(unknown)
        # the last K - 1 steps of the delay pattern only finish frames: the next window does that where it knows more
        stop = laid.shape[2] if last or self.pattern.name != "delay" else N
        try:
            for s in range(first, stop):
                if s == first or turns[s] != turns[s - 1]:
                    self._put(self._prefill(laid[:, :, :s], turns[s]), s)
                else:
                    self._advance(s)
                if self.ends and bool((ended := active[:, 0, s] & (laid[:, 0, s] == SPECIAL_TOKEN)).any()):
                    self._end(base, ended, s)
                if self.ends and not bool(active[:, :, s + 1 :].any()):
                    break
                complete = bisect.bisect_right(whole, s)
                self.complete_frames = max(self.complete_frames, min(base + complete, self.spec.frames))
                if size is not None and self.complete_frames - self._told >= size:
                    self._keep(base)
                    yield
        finally:  # interrupted, it still holds what is made
            self._keep(base)

    # ---- one window's layout -----------------------------------------------------------------------------------
    def _lay(self, base: int) -> None:
        """Tokens as laid out, which cells hold a code of the clip, and the keys of their noise."""
        lengths = self._window_lengths(base)
        held = self.pattern.frame_at_step(self.window, lengths)
        self.sequence.copy_(self.pattern.build_sequence(self.tokens[:, :, base : base + self.window], lengths))
        self.active.copy_((held >= 0) & (held < (self.lengths - base)[:, None, None]))
        self.keys.copy_(gumbel_noise.noise_keys(self.spec.seeds, held + base))

    def _keep(self, base: int) -> None:
        """Take what the window holds back into the clips. Raises InputError where logits were no numbers."""
        if not bool(self.is_finite):
            raise InputError("the model's logits are not finite: its weights are damaged, or its training diverged")
        tokens = self.pattern.revert_sequence(self.sequence, self.window, self._window_lengths(base))
        behind = torch.arange(self.window, device=tokens.device) >= (self.lengths - base)[:, None, None]
        self.tokens[:, :, base : base + self.window] = tokens.masked_fill(behind, SPECIAL_TOKEN)

    def _window_lengths(self, base: int) -> Tensor:
        return (self.lengths - base + self.ends).clamp(0, self.window)

    def _end(self, base: int, ended: Tensor, step: int) -> None:
        """Rows [B] that have said that their clip ends at this step's frame."""
        self._keep(base)
        frame = base + self.pattern.frame_at_step(self.window)[0, step]
        self.lengths = torch.where(ended, frame, self.lengths)
        behind = torch.arange(self.total_frames, device=self.tokens.device) >= self.lengths[:, None, None]
        self.tokens.masked_fill_(behind, SPECIAL_TOKEN)
        self._lay(base)

    def _turns(self, base: int) -> list[int]:
        """Which prompt each step follows: that of the frame of its first codebook with one."""
        held = self.pattern.frame_at_step(self.window)  # [K, S]
        frame = held.gather(0, (held >= 0).int().argmax(0, keepdim=True))[0] + base
        starts = torch.tensor([start for start, _ in self.spec.prompts] or [0])
        return (torch.searchsorted(starts, frame, right=True) - 1).clamp(min=0).tolist()

    # ---- one step ----------------------------------------------------------------------------------------------
    def _start(self, prompts: Tensor | None) -> Tensor:
        """Position 0: [B, 1, D], or with guidance [2 B, 1, D], the second half without a prompt."""
        B = len(self.spec.seeds)
        vector = self.engine.condition(prompts, B)
        return torch.cat([vector, self.engine.condition(None, B)]) if self.guided else vector

    def _prefill(self, laid: Tensor, turn: int) -> Tensor:
        """Read a prompt and the steps [B, K, s] after it -> logits [B, K, C] of step s."""
        return self._guide(self.engine.forward(torch.cat([self.starts[turn], self._inputs(laid)], 1), self.cache, 0))

    def _advance(self, s: int) -> None:
        """Read step s - 1, which stands at position s, and make step s."""
        if self.graph is not None:
            self.graph(s)
        else:
            self._put(self._guide(self.engine.forward(self._inputs(self.sequence[:, :, s - 1 : s]), self.cache, s)), s)

    def _advance_at(self, at: Tensor) -> None:
        """The same for a step in a tensor [1]: nothing in it depends on what is known here."""
        inputs = self._inputs(self.sequence.index_select(2, at - 1))
        logits = self._guide(self.engine.decode_step(inputs, self.cache, at))
        active, keys = self.active.index_select(2, at)[:, :, 0], self.keys.index_select(2, at)[:, :, 0]
        known = self.sequence.index_select(2, at)[:, :, 0]
        self.sequence.index_copy_(2, at, self._choose(logits, keys, active, known)[:, :, None])

    def _put(self, logits: Tensor, s: int) -> None:
        """Choose step s."""
        known = self.sequence[:, :, s]
        self.sequence[:, :, s] = self._choose(logits, self.keys[:, :, s], self.active[:, :, s], known)

    def _inputs(self, steps: Tensor) -> Tensor:
        """Steps [B, K, s] -> what the model reads [rows, s, D]."""
        found = self.engine.model.embed(steps)
        return torch.cat([found, found]) if self.guided else found

    def _guide(self, logits: Tensor) -> Tensor:
        if not self.guided:
            return logits
        prompted, without = logits.chunk(2)
        return without + self.sampling.guidance * (prompted - without)

    def _choose(self, logits: Tensor, keys: Tensor, active: Tensor, known: Tensor) -> Tensor:
        """Logits [B, K, C], keys [B, K] -> tokens [B, K]: those known already, EMPTY where not active."""
        self.is_finite &= all_finite(logits)
        drawn = gumbel_noise.gumbel_noise(keys, logits.shape[-1])
        tokens = sample_token(logits.masked_fill(self.forbidden, -torch.inf), drawn, self.temperature, self.sampling)
        return known.where(known != SPECIAL_TOKEN, tokens.where(active, SPECIAL_TOKEN))

    # ---- checks ------------------------------------------------------------------------------------------------
    def _missing(self) -> Tensor:
        """Cells of real frames that hold no code, a clip: [B]."""
        real = torch.arange(self.spec.frames, device=self.lengths.device) < self.lengths[:, None]
        return ((self.tokens[:, :, : self.spec.frames] == SPECIAL_TOKEN) & real[:, None]).sum((1, 2))

    def _check(self) -> None:
        plan, positions = self.spec, self.engine.config.positions
        for _, prompts in plan.prompts:
            odd = (~prompts.isfinite().all(1)).nonzero().flatten().tolist()
            if odd:
                raise InputError(f"prompts {odd} have values that are not finite: embed other sounds")
        steps = self.pattern.num_steps(self.window)
        if plan.frames < 1 or not 0 < steps <= positions:
            raise InputError(
                f"{self.window - self.ends} frames are {steps} steps under pattern={self.pattern.name}, and the model "
                f"reads 1..{positions}: ask for other seconds=, or train with a larger model.positions"
            )
        if self.window < self.total_frames and not 0 < (plan.window_stride or 0) < self.window:
            raise InputError(
                f"a window of {self.window} frames moves by 1..{self.window - 1} frames, not {plan.window_stride}"
            )


def generate(
    engine: InferenceEngine,
    prompts: Tensor | None,
    frames: int,
    sampling: SamplingParams | Sequence[SamplingParams],
    seeds: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Clips of one length from prompts [B, P], or none -> codes [B, K, T] and the true frames [B]. See `Take`."""
    samplings = [sampling] * len(seeds) if isinstance(sampling, SamplingParams) else sampling
    take = Generation(engine, GenerationSpec(frames, seeds, samplings, () if prompts is None else [(0, prompts)]))
    for _ in take.chunks():
        pass
    return take.codes, take.lengths
