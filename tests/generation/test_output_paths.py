"""Output paths: checked before any work, and never over other files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.generation import output_paths
from tests.helpers.trained_run import Workspace, run_command

SHORT = "seconds=0.1"


@pytest.fixture
def prompts(workspace: Workspace, tmp_path: Path) -> Path:
    """A folder with a user's own a.wav, b.wav and a.json."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, tone in zip("ab", workspace.tones, strict=False):
        shutil.copy(tone, folder / f"{name}.wav")
    (folder / "a.json").write_text('{"mine": true}')
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompt={0}", "out={0}"], "a.wav is a source of the sound"),
        (["prompt={0}/b.wav", "out={0}/b.wav"], "b.wav is a source of the sound"),
        (["prompt={0}/b.wav", "out={0}/link.wav"], "link.wav is a source of the sound"),
        (["prompt={0}/b.wav", "out={0}/a.wav"], "a.wav exists already"),
        (["prompt={0}/b.wav", "out={0}/a.flac"], "a.json exists already"),
        (["mode=interpolate", "prompt={0}", "steps=2", "out={0}/b.wav"], "b.wav is a source of the sound"),
        (["mode=extend", "audio={0}/a.wav", "prompt={0}/b.wav", "seconds=1", "out={0}/a.wav"], "a.wav is a source"),
        (
            ["mode=morph", "keyframes=[{{at: 0, prompt: {0}/b.wav}}]", "stream=true", "out={0}/b.wav"],
            "b.wav is a source",
        ),
    ],
)
def test_sources_and_other_files_are_never_replaced(
    workspace: Workspace, prompts: Path, overrides: list[str], message: str
) -> None:
    (prompts / "link.wav").symlink_to(prompts / "b.wav")
    before = contents(prompts)
    with pytest.raises(InputError, match=message):
        run_command("generate", f"run={workspace.run()}", SHORT, *[override.format(prompts) for override in overrides])
    assert contents(prompts) == before


def test_generated_files_are_replaced_if_unchanged(workspace: Workspace, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.wav"
    overrides = (f"run={workspace.run()}", SHORT, f"prompt={prompts}/a.wav", f"out={out}")
    assert run_command("generate", *overrides) == 0
    first = out.read_bytes()
    assert run_command("generate", *overrides, "seed=1") == 0 and out.read_bytes() != first
    with pytest.raises(InputError, match=r"o\.json exists already"):  # the sidecar of o.wav
        run_command("generate", *overrides[:-1], f"out={tmp_path / 'o.flac'}")
    out.write_bytes(first)
    with pytest.raises(InputError, match=r"o\.wav exists already"):
        run_command("generate", *overrides)
    assert out.read_bytes() == first


def test_prompts_with_the_same_stem_get_numbers(workspace: Workspace, prompts: Path, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(prompts / "b.flac", *soundfile.read(workspace.tones[2]))
    assert run_command("generate", f"run={workspace.run()}", SHORT, f"prompt={prompts}", f"out={tmp_path / 'o'}") == 0
    names = ["a.json", "a.wav", "b-2.json", "b-2.wav", "b.json", "b.wav"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == names


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("generate", ["out={0}/late.xyz"], r"'\.xyz' is not a supported format.* out=.*late\.xyz/"),
        ("generate", ["out={0}/late.raw", "stream=true"], r"'\.raw' is not a supported format"),
        ("generate", ["out={0}/file/b.wav"], "cannot be written to"),
        ("generate", ["out={0}/file/more"], "cannot be written to"),
        ("evaluate", ["out={0}/file", "shards=x"], "cannot be written to"),
        ("compare", ["out={0}/file", "runs=[x]", "shards=x"], "cannot be written to"),
        ("report", ["out={0}/file/r.html"], "cannot be written to"),
        ("report", ["out={0}"], "that is a folder"),
        ("reconstruct", ["out={0}/file", "audio={0}/a.wav"], "cannot be written to"),
        ("dashboard", ["dry_run=true", "out={0}/file/d.json"], "cannot be written to"),
    ],
)
def test_unwritable_output_is_refused_before_work(
    prompts: Path, monkeypatch: pytest.MonkeyPatch, name: str, overrides: list[str], message: str
) -> None:
    (prompts / "file").touch()
    before = contents(prompts)
    run = [] if name in ("compare", "reconstruct", "dashboard") else ["run=missing_run"]
    with pytest.raises(InputError, match=message):
        run_command(name, *run, *[override.format(prompts) for override in overrides])
    assert contents(prompts) == before


def test_folder_is_existing_or_has_slash_or_no_suffix(tmp_path: Path) -> None:
    (tmp_path / "exist.dir").mkdir()
    for text in ("sounds", "sounds-0.7", "b.wav/", "v1.2/", str(tmp_path / "exist.dir")):
        assert output_paths.output_files(text, ["x"]) == [Path(text) / "x.wav"]
    for text in ("b.wav", "sound-0.7.flac"):
        assert output_paths.output_files(text, ["x"]) == [Path(text)]


def test_check_leaves_no_folder_behind(tmp_path: Path) -> None:
    output_paths.check_output(str(tmp_path / "a" / "b" / "c.wav"))
    assert not list(tmp_path.iterdir())
