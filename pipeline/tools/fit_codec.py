"""Fit the embedded codec's codebooks anew on notes rendered from soundfonts.

  python -m pipeline.tools.fit_codec --out DIR
  python -m pipeline.tools.fit_codec --soundfonts A.sf2 B.sf2 --out DIR --every 2 --clips 2200

Renders General MIDI notes and drum hits, mixes them (a quarter with other notes, some with drums or coloured noise, at
levels of 15 dB), and fits the codebooks one after another by k-means on what those before leave over. Writes
encodec_embedded.safetensors, which codec.weights_dir=DIR uses, and encodec_embedded.json with its figures on notes
held out. As shipped: TimGM6mb and FluidR3, --every 2 --clips 2200; about 20 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.audio import metrics
from pipeline.audio.codecs import load_codec
from pipeline.audio.codecs.embedded import EMBEDDED_FILE
from pipeline.audio.codecs.spectral import BAND_SPACING, FLOOR, HOP, WINDOW, SpectralEncoder, band_centres
from pipeline.common.console import print_error
from pipeline.common.errors import InputError
from pipeline.models.weights import save_tensors

RATE = 24_000
SECONDS, HELD = 4, 3
BOOKS, SIZE = 8, 1024
ROUNDS = 9  # of k-means
FRAMES = 50  # of 300, drawn from each clip
PEAK = 1e-4  # added to a sound's peak before it is scaled to 1
VELOCITIES = (25, 50, 75, 100, 127)
DRUMS = range(35, 82)


class Synth:
    """A soundfont's General MIDI bank and drum kit."""

    def __init__(self, soundfont: Path) -> None:
        try:
            import tinysoundfont
        except ImportError as error:
            raise InputError(f"no synthesizer ({error}): pip install --no-deps tinysoundfont") from None
        self.synth = tinysoundfont.Synth(samplerate=RATE, gain=-6)
        self.font = self.synth.sfload(str(soundfont))

    def play(self, channel: int, key: int, velocity: int, held: float, fade: float) -> np.ndarray:
        """A key of the instrument on the channel: float32 [S]."""
        self.synth.noteon(channel, key, velocity)
        parts = [self._generate(held)]
        self.synth.noteoff(channel, key)
        parts.append(self._generate(fade))
        self.synth.sounds_off(channel)
        self._generate(0.1)
        return np.concatenate(parts)

    def notes(self, every: int, random: np.random.Generator) -> list[np.ndarray]:
        """Every `every`th pitch of each program, but silent ones."""
        found = []
        for program in range(128):
            self.synth.program_select(0, self.font, 0, program)
            for pitch in range(21 + program % every, 109, every):
                wav = self.play(0, pitch, int(random.choice(VELOCITIES)), HELD, SECONDS - HELD)
                if np.abs(wav[:RATE]).max() > 3e-3:
                    found.append(unit(wav))
        return found

    def drums(self) -> list[np.ndarray]:
        """Every drum at two strengths."""
        self.synth.program_select(9, self.font, 128, 0, True)
        hits = [self.play(9, key, velocity, 2.0, 0.0) for velocity in (60, 110) for key in DRUMS]
        return [unit(hit) for hit in hits if np.abs(hit).max() > 1e-3]

    def _generate(self, seconds: float) -> np.ndarray:
        return np.frombuffer(bytes(self.synth.generate(round(seconds * RATE))), np.float32).reshape(-1, 2).mean(axis=1)


def unit(wav: np.ndarray) -> np.ndarray:
    """Scaled to a peak of 1."""
    return wav / (np.abs(wav).max() + PEAK)


def mixed(notes: list[np.ndarray], drums: list[np.ndarray], random: np.random.Generator) -> Iterator[np.ndarray]:
    """Each note once: alone, or with other notes, drums or coloured noise, at some level."""
    for note in notes:
        wav, kind = note.copy(), random.random()
        if kind < 0.25:
            for _ in range(random.integers(1, 3)):
                at = random.integers(0, 60_000)
                wav[at:] += notes[random.integers(len(notes))][: len(wav) - at] * random.uniform(0.3, 1)
        elif kind < 0.37 and drums:
            for at in random.integers(0, 80_000, random.integers(2, 8)):
                hit = drums[random.integers(len(drums))][: len(wav) - at]
                wav[at : at + len(hit)] += hit * random.uniform(0.2, 0.8)
        elif kind < 0.42:
            spectrum = np.fft.rfft(random.normal(size=len(wav)))
            spectrum *= (np.arange(len(spectrum)) + 50.0) ** -random.uniform(0, 1.2)
            noise = unit(np.fft.irfft(spectrum, len(wav)).astype(np.float32))
            wav = 0.3 * wav + noise * random.uniform(0.05, 1)
        yield unit(wav) * 0.8 * 10 ** (-random.uniform(0, 15) / 20)


def frames_of(clips: Iterator[np.ndarray]) -> Tensor:
    """FRAMES log-magnitude frames of each clip: [n, D]."""
    analysis = SpectralEncoder(torch.zeros(len(band_centres())))
    found = []
    for clip in clips:
        bands = analysis(torch.from_numpy(clip.astype(np.float32))[None, None])[0].T  # [T, D]
        found.append(bands[torch.randperm(len(bands))[:FRAMES]])
    return torch.cat(found)


def nearest(frames: Tensor, book: Tensor) -> Tensor:
    """[n, D] and [SIZE, D] -> [n] indices."""
    lengths = book.square().sum(1)
    return torch.cat([torch.addmm(lengths, part, book.T, alpha=-2).argmin(1) for part in frames.split(20_000)])


def fit(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Frames [n, D] -> codebooks [BOOKS, SIZE, D] and mean [D], both as float16 holds them.

    Raises InputError for fewer frames than codewords.
    """
    if len(frames) < SIZE:
        raise InputError(f"{len(frames)} frames to fit {SIZE} codewords on: render more notes (--every, --clips)")
    mean = frames.mean(0).half()
    rest, books = frames - mean.float(), []
    for number in range(BOOKS):
        book = rest[torch.randperm(len(rest))[:SIZE]].clone()
        for _ in range(ROUNDS):
            owner = nearest(rest, book)
            count = torch.bincount(owner, minlength=SIZE)[:, None]
            sums = torch.zeros_like(book).index_add_(0, owner, rest)
            drawn = rest[torch.randint(len(rest), (SIZE,))]  # replaces codewords that own no more than one frame
            book = torch.where(count < 2, drawn, sums / count.clamp(min=1))
        books.append(book.half())
        rest = rest - book.half().float()[nearest(rest, book.half().float())]
        print(f"codebook {number + 1}: {8.686 * rest.square().mean().sqrt():.2f} dB left", flush=True)
    return torch.stack(books), mean


def figures(folder: Path, held_out: dict[str, list[np.ndarray]]) -> list[dict[str, Any]]:
    """How the codec in `folder` does on notes that it was not fitted on, at 1, 2, 4, 8 codebooks."""
    codec = load_codec("encodec_embedded", BOOKS, weights_dir=folder)
    rows = []
    for font, notes in held_out.items():
        wav = torch.from_numpy(np.stack(notes).astype(np.float32) * 0.5)[:, None]  # [B, 1, S]
        codes, bands = codec.encode(wav), codec.model.encoder(wav)
        before = np.array([metrics.pitch(note, RATE) for note in wav[:, 0].numpy()])
        for count in (1, 2, 4, 8):
            kept, last = codes[:, :count], codes[:, count - 1]
            error = (codec.model.quantizer.decode(kept.transpose(0, 1)) - bands).square().mean().sqrt()
            share = torch.bincount(last.flatten(), minlength=SIZE) / last.numel()
            after = np.array([metrics.pitch(note, RATE) for note in codec.decode(kept)[:, 0].numpy()])
            heard = ~np.isnan(before)
            rows.append(
                {
                    "held_out_notes_of": font,
                    "codebooks": count,
                    "rms_log_magnitude_error_db": round(8.686 * error.item(), 2),
                    "codebook_perplexity": round(torch.exp(torch.special.entr(share).sum()).item()),
                    "repeat_of_previous_frame": round((last[:, 20:] == last[:, 19:-1]).float().mean().item(), 3),
                    "pitch_kept_within_half_semitone": round(float(np.mean(np.abs(after - before)[heard] < 0.5)), 3),
                }
            )
            print(rows[-1], flush=True)
    return rows


@torch.inference_mode()
def main(words: list[str] | None = None) -> None:
    """Render, fit, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--soundfonts", type=Path, nargs="+", help=".sf2 files; pretty_midi's unless given")
    parser.add_argument("--every", type=int, default=2, help="semitones from one rendered pitch to the next")
    parser.add_argument("--clips", type=int, default=2200, help="notes of each soundfont to fit on")
    parser.add_argument("--held-out", type=int, default=100, help="notes of each soundfont to measure on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    torch.manual_seed(args.seed)
    random = np.random.default_rng(args.seed)
    train: list[np.ndarray] = []
    drums: list[np.ndarray] = []
    held_out: dict[str, list[np.ndarray]] = {}
    for soundfont in args.soundfonts or [_pretty_midis()]:
        synth = Synth(soundfont)
        notes = synth.notes(args.every, random)
        random.shuffle(notes)
        held_out[soundfont.stem] = notes[: args.held_out]
        train += notes[args.held_out :][: args.clips]
        drums += synth.drums()
        print(f"{soundfont.name}: {len(notes)} notes", flush=True)
    random.shuffle(train)
    books, mean = fit(frames_of(mixed(train, drums, random)))
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "sample_rate": RATE,
        "hop": HOP,
        "n_fft": WINDOW,
        "bands": len(mean),
        "widen": BAND_SPACING,
        "floor": FLOOR,
    }
    tensors = {"codebooks": books, "mean": mean}
    save_tensors(tensors, args.out / EMBEDDED_FILE, {name: str(value) for name, value in facts.items()})
    rows = figures(args.out, held_out)
    (args.out / EMBEDDED_FILE).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


def _pretty_midis() -> Path:
    found = importlib.util.find_spec("pretty_midi")
    if found is None or found.origin is None:
        raise InputError("no soundfont: `pip install pretty_midi` ships one, or give --soundfonts FILE.sf2")
    return Path(found.origin).with_name("TimGM6mb.sf2")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print_error(str(error))
        sys.exit(2)
