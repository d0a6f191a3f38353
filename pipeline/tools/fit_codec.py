"""Fit the embedded codec's codebooks on notes rendered from soundfonts.

  python -m pipeline.tools.fit_codec --out DIR
  python -m pipeline.tools.fit_codec --soundfonts A.sf2 B.sf2 --out DIR --every 2 --clips 2200

Renders General MIDI notes and drum hits, mixes them (a quarter with other notes, some with drums or coloured noise, at
random levels within 15 dB), and fits the codebooks one after another by k-means on the residual of the ones before.
Writes encodec_embedded.safetensors, which codec.weights_dir=DIR uses, and encodec_embedded.json with measurements on
held-out notes. The weights in assets/ are of TimGM6mb and FluidR3, --every 2 --clips 2200: about 20 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.audio import metrics
from pipeline.audio.codecs.encodec_embedded import (
    CODEBOOK_SIZE,
    CODEBOOKS,
    EMBEDDED_FILE,
    SAMPLE_RATE,
    EncodecEmbeddedSettings,
)
from pipeline.audio.encodec.spectral import BAND_SPACING, FLOOR, HOP, WINDOW, SpectralEncoder, band_centres
from pipeline.common.console import print_error
from pipeline.common.errors import InputError
from pipeline.corpora.soundfont import Synthesizer, default_soundfont
from pipeline.models.weights import save_tensors

SECONDS, KEY_SECONDS = 4, 3  # of a note, and of its key being pressed
DRUM_SECONDS = 2
ITERATIONS = 9  # of k-means
FRAMES = 50  # of 300, sampled from each clip
EPSILON = 1e-4  # added to a clip's peak before it is scaled to 1
VELOCITIES = (25, 50, 75, 100, 127)
DRUMS = range(35, 82)


def render_notes(synth: Synthesizer, every: int, random: np.random.Generator) -> list[np.ndarray]:
    """Render every `every`th pitch of each program; drop silent notes."""
    notes = []
    for program in range(128):
        for pitch in range(21 + program % every, 109, every):
            velocity = int(random.choice(VELOCITIES))
            wav = synth.render_note(program, pitch, velocity, KEY_SECONDS, SECONDS - KEY_SECONDS)
            if np.abs(wav[:SAMPLE_RATE]).max() > 3e-3:
                notes.append(normalize_peak(wav))
    return notes


def render_drums(synth: Synthesizer) -> list[np.ndarray]:
    """Render every drum at two velocities; drop silent ones."""
    hits = [synth.render_drum(key, velocity, DRUM_SECONDS) for velocity in (60, 110) for key in DRUMS]
    return [normalize_peak(hit) for hit in hits if np.abs(hit).max() > 1e-3]


def normalize_peak(wav: np.ndarray) -> np.ndarray:
    """Scale a clip to a peak of 1."""
    scaled: np.ndarray = wav / (np.abs(wav).max() + EPSILON)
    return scaled


def mix_notes(notes: list[np.ndarray], drums: list[np.ndarray], random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield each note once: alone, or with other notes, drums or coloured noise, at a random level."""
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
            noise = normalize_peak(np.fft.irfft(spectrum, len(wav)).astype(np.float32))
            wav = 0.3 * wav + noise * random.uniform(0.05, 1)
        yield normalize_peak(wav) * 0.8 * 10 ** (-random.uniform(0, 15) / 20)


def sample_frames(clips: Iterator[np.ndarray]) -> Tensor:
    """Return FRAMES random log-magnitude frames of each clip: [N, D]."""
    encoder = SpectralEncoder(torch.zeros(len(band_centres())))
    frames = []
    for clip in clips:
        bands = encoder(torch.from_numpy(clip.astype(np.float32))[None, None])[0].T  # [T, D]
        frames.append(bands[torch.randperm(len(bands))[:FRAMES]])
    return torch.cat(frames)


def nearest(frames: Tensor, book: Tensor) -> Tensor:
    """Return the index [N] of the codeword in book [CODEBOOK_SIZE, D] that is nearest to each frame [N, D]."""
    lengths = book.square().sum(1)
    return torch.cat([torch.addmm(lengths, part, book.T, alpha=-2).argmin(1) for part in frames.split(20_000)])


def fit(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Fit codebooks [CODEBOOKS, CODEBOOK_SIZE, D] and the mean [D], both float16, to frames [N, D].

    Raises:
        InputError: There are fewer frames than codewords.
    """
    if len(frames) < CODEBOOK_SIZE:
        raise InputError(
            f"{len(frames)} frames to fit {CODEBOOK_SIZE} codewords on: render more notes (--every, --clips)"
        )
    mean = frames.mean(0).half()
    residual, books = frames - mean.float(), []
    for number in range(CODEBOOKS):
        book = residual[torch.randperm(len(residual))[:CODEBOOK_SIZE]].clone()
        for _ in range(ITERATIONS):
            owner = nearest(residual, book)
            count = torch.bincount(owner, minlength=CODEBOOK_SIZE)[:, None]
            sums = torch.zeros_like(book).index_add_(0, owner, residual)
            sampled = residual[
                torch.randint(len(residual), (CODEBOOK_SIZE,))
            ]  # replaces codewords of less than two frames
            book = torch.where(count < 2, sampled, sums / count.clamp(min=1))
        books.append(book.half())
        residual = residual - book.half().float()[nearest(residual, book.half().float())]
        print(f"codebook {number + 1}: {8.686 * residual.square().mean().sqrt():.2f} dB residual", flush=True)
    return torch.stack(books), mean


def evaluate_codec(folder: Path, held_out: dict[str, list[np.ndarray]]) -> list[dict[str, Any]]:
    """Measure the codec in `folder` on held-out notes, with 1, 2, 4 and 8 codebooks."""
    settings = EncodecEmbeddedSettings(
        name="encodec_embedded", codebooks=CODEBOOKS, channels=1, weights_dir=str(folder)
    )
    codec = settings.load("cpu")
    rows = []
    for font, notes in held_out.items():
        wav = torch.from_numpy(np.stack(notes).astype(np.float32) * 0.5)[:, None]  # [B, 1, S]
        codes, bands = codec.encode(wav), codec.model.encoder(wav)
        before = np.array([metrics.pitch(note, SAMPLE_RATE) for note in wav[:, 0].numpy()])
        for count in (1, 2, 4, 8):
            kept, last = codes[:, :count], codes[:, count - 1]
            error = (codec.model.quantizer.decode(kept.transpose(0, 1)) - bands).square().mean().sqrt()
            share = torch.bincount(last.flatten(), minlength=CODEBOOK_SIZE) / last.numel()
            after = np.array([metrics.pitch(note, SAMPLE_RATE) for note in codec.decode(kept)[:, 0].numpy()])
            is_pitched = ~np.isnan(before)
            rows.append(
                {
                    "held_out_notes_of": font,
                    "codebooks": count,
                    "rms_log_magnitude_error_db": round(8.686 * error.item(), 2),
                    "codebook_perplexity": round(torch.exp(torch.special.entr(share).sum()).item()),
                    "repeat_of_previous_frame": round((last[:, 20:] == last[:, 19:-1]).float().mean().item(), 3),
                    "pitch_kept_within_half_semitone": round(
                        float(np.mean(np.abs(after - before)[is_pitched] < 0.5)), 3
                    ),
                }
            )
            print(rows[-1], flush=True)
    return rows


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    """Render notes, fit the codebooks, save and evaluate them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--soundfonts", type=Path, nargs="+", help=".sf2 files; by default pretty_midi's")
    parser.add_argument("--every", type=int, default=2, help="semitones from one rendered pitch to the next")
    parser.add_argument("--clips", type=int, default=2200, help="notes of each soundfont to fit on")
    parser.add_argument("--held-out", type=int, default=100, help="notes of each soundfont to measure on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    random = np.random.default_rng(args.seed)
    train: list[np.ndarray] = []
    drums: list[np.ndarray] = []
    held_out: dict[str, list[np.ndarray]] = {}
    for soundfont in args.soundfonts or [default_soundfont()]:
        synth = Synthesizer(soundfont, SAMPLE_RATE)
        notes = render_notes(synth, args.every, random)
        random.shuffle(notes)
        held_out[soundfont.stem] = notes[: args.held_out]
        train += notes[args.held_out :][: args.clips]
        drums += render_drums(synth)
        print(f"{soundfont.name}: {len(notes)} notes", flush=True)
    random.shuffle(train)
    books, mean = fit(sample_frames(mix_notes(train, drums, random)))
    args.out.mkdir(parents=True, exist_ok=True)
    metadata = {
        "sample_rate": SAMPLE_RATE,
        "hop": HOP,
        "n_fft": WINDOW,
        "bands": len(mean),
        "widen": BAND_SPACING,
        "floor": FLOOR,
    }
    tensors = {"codebooks": books, "mean": mean}
    save_tensors(tensors, args.out / EMBEDDED_FILE, {name: str(value) for name, value in metadata.items()})
    rows = evaluate_codec(args.out, held_out)
    (args.out / EMBEDDED_FILE).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print_error(str(error))
        sys.exit(2)
