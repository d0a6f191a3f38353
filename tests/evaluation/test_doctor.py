"""`python -m pipeline.shards doctor`: a dataset with a fault is named by it, a clean one by none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from pipeline.audio import audio_io
from pipeline.audio.codecs import load_codec
from pipeline.audio.embedders import load_embedder
from pipeline.common.errors import InputError
from pipeline.data.manifest import Manifest, skipped_row
from pipeline.data.shard import Sample, ShardWriter
from pipeline.data.storage import open_storage
from pipeline.evaluation.doctor import examination
from pipeline.evaluation.doctor.checks import find_faults
from pipeline.evaluation.doctor.diagnosis import Diagnosis
from pipeline.evaluation.doctor.examination import ExamineOptions, examine
from pipeline.evaluation.doctor.sound_facts import find_cliff, sound_facts
from pipeline.generation.prompts import decode_codes, embed_audio
from pipeline.shards import positional_to_overrides
from tests.helpers.caches import write_cache
from tests.helpers.preprocess_runs import HERE, args, tones
from tests.helpers.trained_run import run_command

RATE, TRAIN, VALID = 24_000, 16, 10
CODEC, EMBEDDER = load_codec("encodec_embedded", 8), load_embedder("encodecmae_tiny")
OPTIONS = ExamineOptions(clips=12, seed=2)


def sounds(count: int, seed: int, seconds: float = 0.7) -> list[np.ndarray]:
    """Bands of noise, each of another centre and width, with some of all frequencies."""
    draw = np.random.default_rng(seed)
    wavs = []
    for _ in range(count):
        noise = draw.standard_normal(round(seconds * RATE))
        spectrum, f = np.fft.rfft(noise), np.fft.rfftfreq(len(noise), 1 / RATE)
        spectrum *= 0.15 + np.exp(-(((f - draw.uniform(500, 11_000)) / draw.uniform(200, 2000)) ** 2))
        wav = np.fft.irfft(spectrum)
        wavs.append((0.3 * wav / np.abs(wav).max()).astype(np.float32))
    return wavs


@cache
def encode(wav: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The codes [K, T] of samples, and the embedding [P] of what they decode to."""
    codes = CODEC.encode(torch.frombuffer(bytearray(wav), dtype=torch.float32)[None, None])[0]
    return codes.numpy(), embed_audio(EMBEDDER, decode_codes(CODEC, [codes]), RATE)[0].numpy()


@dataclass
class Dataset:
    """What a dataset is made of."""

    splits: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {"train": sounds(TRAIN, 0), "valid": sounds(VALID, 1)}
    )
    labels: Callable[[str, int], Mapping[str, Any]] = lambda split, i: {"family": "ab"[i % 2]}
    codes: Callable[[np.ndarray], np.ndarray] = lambda codes: codes
    prompts: Callable[[np.ndarray], np.ndarray] = lambda prompts: prompts
    skipped: Sequence[dict[str, Any]] = ()
    is_long: bool = True  # ten minutes in train, in a clip that is not decoded
    codec: dict[str, Any] = field(default_factory=lambda: CODEC.identity)
    embedder: dict[str, Any] = field(default_factory=lambda: EMBEDDER.identity)

    def write(self, folder: Path) -> Path:
        infos = {}
        folder.mkdir()
        for split, wavs in self.splits.items():
            with ShardWriter(folder, f"{split}-000000.tar") as shard:
                for i, wav in enumerate(wavs):
                    codes, prompt = encode(wav.tobytes())
                    self._add(
                        shard, f"{split}-{i}", split, self.codes(codes), self.prompts(prompt), self.labels(split, i)
                    )
                if split == "train" and self.is_long:
                    codes = np.random.default_rng(5).integers(0, 1024, (8, 75 * 600))
                    self._add(
                        shard, "long", split, self.codes(codes), np.full(EMBEDDER.dim, 9.0), self.labels(split, 0)
                    )
            infos[split] = [shard.info]
        Manifest(self.codec, self.embedder, {}, infos, 0, [*self.skipped]).save(folder)
        return folder

    @staticmethod
    def _add(
        shard: ShardWriter, key: str, split: str, codes: np.ndarray, prompt: np.ndarray, labels: Mapping[str, Any]
    ) -> None:
        metadata = {"path": f"{key}.wav", "split": split, "labels": dict(labels)}
        shard.add(Sample(key, codes.astype("<u2"), prompt.astype("<f2"), metadata))


def diagnose(folder: Path, options: ExamineOptions = OPTIONS) -> Diagnosis:
    data = examine(open_storage(folder), options, lambda _: None)
    return Diagnosis(data, find_faults(data))


def changed(split: str, change: Callable[[list[np.ndarray]], list[np.ndarray]]) -> Dataset:
    """The clean dataset with a change of the sounds of a split, or of all."""
    dataset = Dataset()
    for name in dataset.splits:
        if split in (name, "all"):
            dataset.splits[name] = change(dataset.splits[name])
    return dataset


def each(change: Callable[[np.ndarray], np.ndarray]) -> Dataset:
    return changed("all", lambda wavs: [change(wav).astype(np.float32) for wav in wavs])


def twins(change: Callable[[np.ndarray], np.ndarray]) -> Dataset:
    dataset = Dataset()
    dataset.splits["valid"][0] = change(dataset.splits["train"][0]).astype(np.float32)
    return dataset


FAULTS: dict[str, tuple[Dataset, set[str]]] = {
    "none": (Dataset(), set()),
    "short": (Dataset(is_long=False), {"little sound"}),
    "few": (replace(changed("valid", lambda wavs: wavs[:3]), is_long=False), {"few clips", "little sound"}),
    "skipped": (
        Dataset(skipped=[skipped_row(f"{i}.m4a", "", "unsupported format: m4a") for i in range(9)]),
        {"skipped inputs"},
    ),
    "blips": (each(lambda wav: wav[:4000]), {"short clips"}),
    "levels": (
        changed("train", lambda wavs: [(wav * (3, 0.1)[i % 2]).astype(np.float32) for i, wav in enumerate(wavs)]),
        {"loudness"},
    ),
    "silence": (each(lambda wav: wav * (np.arange(len(wav)) < len(wav) / 2)), {"silence"}),
    "clipping": (each(lambda wav: np.clip(30 * wav, -1, 1)), {"clipping"}),
    "16 kHz": (each(lambda wav: audio_io.resample(audio_io.resample(wav, RATE, 16_000), 16_000, RATE)), {"bandwidth"}),
    "twin": (twins(lambda wav: wav), {"duplicates across splits"}),
    "shifted twin": (twins(lambda wav: np.roll(wav, 320)), {"duplicates across splits"}),
    "copies": (changed("train", lambda wavs: [*wavs[2:], wavs[2], wavs[2]]), {"copies"}),
    "unlabeled": (Dataset(labels=lambda split, i: {"family": "ab"[i % 2]} if i % 3 else {}), {"missing labels"}),
    "unbalanced": (
        Dataset(labels=lambda split, i: {"family": "b" if (split, i) == ("train", 1) else "a"}),
        {"label balance"},
    ),
    "unseen": (
        Dataset(labels=lambda split, i: {"family": "c" if (split, i) == ("valid", 1) else "ab"[i % 2]}),
        {"unseen labels"},
    ),
    "dead": (Dataset(codes=lambda codes: np.where(np.arange(8)[:, None] == 6, 7, codes)), {"codebook usage"}),
    "unlike": (
        Dataset(prompts=lambda prompt: np.random.default_rng(int(abs(prompt[0]) * 1e4)).standard_normal(192)),
        {"prompt fidelity"},
    ),
    "pitch": (Dataset(labels=lambda split, i: {"pitch": 60 + i % 2}), {"pitch"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_and_no_other(fault: str, tmp_path: Path) -> None:
    dataset, expected = FAULTS[fault]
    diagnosis = diagnose(dataset.write(tmp_path / "cache"))
    assert {finding.name for finding in diagnosis.findings} == expected
    assert all(finding.problem and finding.advice for finding in diagnosis.findings)
    assert not diagnosis.data.left_out


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Dataset().write(tmp_path_factory.mktemp("doctor") / "cache")


def doctor(folder: Path, *overrides: str) -> int:
    return run_command("shards", *positional_to_overrides(["doctor", str(folder), *overrides]))


def test_command_prints_and_writes_its_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Dataset(is_long=False, labels=lambda split, i: {"<b>&": f"<i>{i % 2}"})
    folder = dataset.write(tmp_path / "cache")
    assert doctor(folder) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines() if str(folder) not in line) <= 80
    assert out.splitlines()[-1].endswith(f"shards={folder}") and "next: python -m pipeline.learning_curve" in out
    assert "1 finding" in out and "little sound" in out and "perplexities" in out and "label <b>&" in out
    content = json.loads((folder / "doctor" / "doctor.json").read_text())
    assert [finding["name"] for finding in content["findings"]] == ["little sound"] and content["left_out"] == []
    assert content["clips"] == {"all": TRAIN + VALID, "read": TRAIN + VALID, "decoded": TRAIN + VALID}
    assert len(content["decoded"]) == TRAIN + VALID and len(content["worst"]) == 10
    for key in content["worst"]:
        wav, rate = soundfile.read(folder / "doctor" / f"{key}.codec.wav")
        assert rate == RATE and len(wav) >= 0.7 * RATE
    page = (folder / "doctor" / "doctor.html").read_text()
    assert page.count("<audio") == 10 and page.count("<svg") >= 6 and "little sound" in page
    assert "label &lt;b&gt;&amp;" in page and "<b>&" not in page and "<i>0" not in page
    assert 'src="http' not in page and page.count("href") == page.count('href="#section-')


@pytest.mark.parametrize(
    ("part", "change", "message", "is_decoded"),
    [
        ("codec", {"weights": "f" * 64}, "bandwidth and the codec's ceiling: .*codec.weights is", False),
        ("codec", {"name": "nobodys"}, "bandwidth and the codec's ceiling: .*nobodys", False),
        ("embedder", {"name": "nobodys"}, "prompt fidelity: .*nobodys", True),
    ],
)
def test_what_cannot_be_examined_is_left_out_and_named(
    part: str, change: dict[str, str], message: str, is_decoded: bool, tmp_path: Path
) -> None:
    """The findings that need neither codec nor embedder are there."""
    folder = replace(Dataset(is_long=False), **{part: {**getattr(Dataset(), part), **change}}).write(tmp_path / "cache")
    diagnosis = diagnose(folder)
    assert bool(diagnosis.data.decoded) == is_decoded and len(diagnosis.data.left_out) == 1
    assert {finding.name for finding in diagnosis.findings} == {"little sound"}
    diagnosis.write(tmp_path / "out")
    for text in ("\n".join(diagnosis.lines()), (tmp_path / "out" / "doctor.html").read_text()):
        assert re.search(message, " ".join(text.replace("&#39;", "'").split()))
    assert not list((tmp_path / "out").glob("*.wav"))


def test_settings_choose_the_clips(clean: Path) -> None:
    some = examine(open_storage(clean), ExamineOptions(clips=3, split="valid"), lambda _: None)
    assert len(some.samples) == VALID and len(some.decoded) == 3
    with pytest.raises(InputError, match="split=dev"):
        examine(open_storage(clean), ExamineOptions(split="dev"), lambda _: None)


def test_missing_and_empty_datasets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no dataset"):
        doctor(tmp_path)
    Manifest(CODEC.identity, EMBEDDER.identity, {}, {"train": []}).save(tmp_path)
    diagnosis = diagnose(tmp_path)
    diagnosis.write(tmp_path / "out")
    assert [finding.name for finding in diagnosis.findings] == ["no clips"]


def test_preprocess_ends_with_the_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once: the run that finds nothing to do does not examine the dataset again."""
    overrides = args(
        "folder", tones(tmp_path / "in", 12), tmp_path / "out", *HERE, "data.min_seconds=0.1", "examine_clips=8"
    )
    assert run_command("preprocess", *overrides) == 0
    out = capsys.readouterr().out
    assert "1. little sound: 0.1 minutes" in " ".join(out.split()) and out.index("little sound") < out.index("next:")
    assert f"python -m pipeline.shards doctor {tmp_path / 'out'}" in out
    assert run_command("preprocess", *overrides) == 0
    assert "little sound" not in capsys.readouterr().out


def test_facts_of_a_sound() -> None:
    time = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 3001 * time).astype(np.float32)
    facts = sound_facts(0.1 * tone, RATE)
    assert facts.level == pytest.approx(-23, abs=0.1) and facts.silence == facts.at_full_scale == 0
    assert facts.bandwidth == pytest.approx(3000, abs=100)
    assert sound_facts(0.1 * tone * (time < 0.25), RATE).silence == pytest.approx(0.75)
    assert sound_facts(tone, RATE).at_full_scale == pytest.approx(np.arccos(0.99) * 2 / np.pi, abs=0.01)
    silence = sound_facts(np.zeros(100, np.float32), RATE)
    assert np.isnan(silence.level) and silence.silence == 1 and silence.bandwidth == 0


def test_cliff_is_told_from_a_slope() -> None:
    f = np.linspace(0, 12, 1025)
    assert find_cliff(-4.0 * f, RATE) is None
    assert find_cliff(np.where(f < 8, -2.0 * f, -50), RATE) == pytest.approx(7650, abs=400)


def test_large_dataset_is_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each split one shard at least, and not all bytes of a dataset of any size."""
    write_cache(tmp_path, [3, 3, 3], split="train")
    write_cache(tmp_path, [3, 3], split="valid", first=9)
    assert len(examine(open_storage(tmp_path), OPTIONS, lambda _: None).samples) == 15
    monkeypatch.setattr(examination, "MAX_SHARD_BYTES", 1)
    some = examine(open_storage(tmp_path), OPTIONS, lambda _: None)
    assert some.num_clips == 15 and [sample.metadata["split"] for sample in some.samples] == [
        *["train"] * 3,
        *["valid"] * 3,
    ]
