"""Where the commands of listening write: never over what is somebody else's, and looked at before any work."""

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
    ("words", "named"),
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
def test_sources_and_what_others_wrote_are_never_replaced(
    workspace: Workspace, prompts: Path, words: list[str], named: str
) -> None:
    (prompts / "link.wav").symlink_to(prompts / "b.wav")
    before = contents(prompts)
    with pytest.raises(InputError, match=named):
        run_command("generate", f"run={workspace.run()}", SHORT, *[word.format(prompts) for word in words])
    assert contents(prompts) == before


def test_what_it_wrote_itself_is_made_anew_unless_it_has_been_changed_since(
    workspace: Workspace, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.wav"
    words = (f"run={workspace.run()}", SHORT, f"prompt={prompts}/a.wav", f"out={out}")
    assert run_command("generate", *words) == 0
    first = out.read_bytes()
    assert run_command("generate", *words, "seed=1") == 0 and out.read_bytes() != first
    with pytest.raises(InputError, match=r"o\.json exists already"):  # which tells how o.wav was made
        run_command("generate", *words[:-1], f"out={tmp_path / 'o.flac'}")
    out.write_bytes(first)
    with pytest.raises(InputError, match=r"o\.wav exists already"):
        run_command("generate", *words)
    assert out.read_bytes() == first


def test_prompts_of_one_stem_get_sounds_and_sidecars_of_their_own(
    workspace: Workspace, prompts: Path, tmp_path: Path
) -> None:
    import soundfile

    soundfile.write(prompts / "b.flac", *soundfile.read(workspace.tones[2]))
    assert run_command("generate", f"run={workspace.run()}", SHORT, f"prompt={prompts}", f"out={tmp_path / 'o'}") == 0
    names = ["a.json", "a.wav", "b-2.json", "b-2.wav", "b.json", "b.wav"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == names


@pytest.mark.parametrize(
    ("name", "words", "message"),
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
def test_a_place_that_takes_no_file_is_refused_before_the_work(
    prompts: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str], message: str
) -> None:
    (prompts / "file").touch()
    before = contents(prompts)
    run = [] if name in ("compare", "reconstruct", "dashboard") else ["run=a_run_that_would_be_looked_for_next"]
    with pytest.raises(InputError, match=message):
        run_command(name, *run, *[word.format(prompts) for word in words])
    assert contents(prompts) == before


def test_a_folder_is_what_is_one_what_ends_in_a_slash_and_what_has_no_suffix(tmp_path: Path) -> None:
    (tmp_path / "exist.dir").mkdir()
    for text in ("heard", "heard-0.7", "b.wav/", "v1.2/", str(tmp_path / "exist.dir")):
        assert output_paths.output_files(text, ["x"]) == [Path(text) / "x.wav"]
    for text in ("b.wav", "take-0.7.flac"):
        assert output_paths.output_files(text, ["x"]) == [Path(text)]


def test_a_folder_that_is_looked_at_is_not_left_behind(tmp_path: Path) -> None:
    output_paths.check_output(str(tmp_path / "a" / "b" / "c.wav"))
    assert not list(tmp_path.iterdir())
