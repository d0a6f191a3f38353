"""A plan puts every clip into one shard, and a change to the corpus moves few of them."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.corpora import Clip, SkippedInput
from pipeline.data.build_state import BuildPlan
from pipeline.preprocessing.shard_planner import ClipSpool, plan_shards, tree_fingerprint

BLANK = BuildPlan({}, {}, "", [])


def clips(count: int, split: str = "train", prefix: str = "clip") -> list[Clip]:
    return [Clip(f"{prefix}-{i}", f"/corpus/{i}.wav", split, labels={"pitch": i}) for i in range(count)]


def planned(
    listed: list[Clip], most: int = 10, old: BuildPlan | None = None, skipped: list[SkippedInput] | None = None
):
    spool = ClipSpool("/corpus")
    return plan_shards(listed, spool, most, old, BLANK, lambda: skipped or []), spool


@settings(max_examples=50)
@given(splits=st.lists(st.sampled_from(["train", "valid", "test"]), min_size=1, max_size=120), most=st.integers(1, 40))
def test_every_clip_is_in_one_shard_in_order(splits: list[str], most: int) -> None:
    given_clips = [Clip(f"k{i}", f"/corpus/{i}.wav", split) for i, split in enumerate(splits)]
    plan, spool = planned(given_clips, most)
    for split in set(splits):
        shards = [shard for shard in plan.shards if shard.split == split]
        assert [shard.name for shard in shards] == [f"{split}-{i:06d}.tar" for i in range(len(shards))]
        listed = [clip for shard in shards for clip in spool.read_shard(shard.name)]
        assert listed == [clip for clip in given_clips if clip.split == split]
        assert all(shard.clips == len(spool.read_shard(shard.name)) <= most for shard in shards)
        assert all(2 * shard.clips >= most for shard in shards[:-1])


def test_added_clip_changes_only_nearby_shards() -> None:
    """The other shards keep their clips, fingerprints and names."""
    before = clips(2000)
    plan, _ = planned(before, 20)
    for index in range(0, 2000, 97):
        for after in (
            [*before[:index], Clip("new", "/corpus/new.wav", "train"), *before[index:]],
            before[:index] + before[index + 1 :],
        ):
            changed, _ = planned(after, 20, old=plan)
            fresh = {shard.inputs for shard in changed.shards} - {shard.inputs for shard in plan.shards}
            assert 1 <= len(fresh) <= 12 < len(plan.shards) / 10
            names = {shard.inputs: shard.name for shard in plan.shards}
            assert all(s.name == names[s.inputs] for s in changed.shards if s.inputs in names)
            assert len({shard.name for shard in changed.shards}) == len(changed.shards)


def test_plan_depends_on_corpus_alone() -> None:
    first, _ = planned(clips(300))
    again, _ = planned(clips(300), old=first)
    assert vars(again) == vars(first)


@pytest.mark.parametrize("name", ["start", "duration", "labels", "path"])
def test_fingerprint_covers_every_input(name: str) -> None:
    value = {"start": 1.0, "duration": 2.0, "labels": {"pitch": 1}, "path": "/corpus/b.wav"}[name]
    one, other = Clip("a", "/corpus/a.wav", "train"), Clip(**{**vars(Clip("a", "/corpus/a.wav", "train")), name: value})
    assert planned([one])[0].shards[0].inputs != planned([other])[0].shards[0].inputs


def test_fingerprint_ignores_the_corpus_location(tmp_path: Path) -> None:
    def inputs(root: Path) -> str:
        with_file = ClipSpool(root)
        return plan_shards([Clip("a", f"{root}/a.wav", "train")], with_file, 5, None, BLANK, list).shards[0].inputs

    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").write_bytes(b"1234")
        os.utime(tmp_path / name / "a.wav", (1e9, 1e9))
    first = inputs(tmp_path / "here")
    assert inputs(tmp_path / "there") == first
    os.utime(tmp_path / "here" / "a.wav", (1e9, 1e9 + 1))
    assert inputs(tmp_path / "here") != first


def test_duplicate_and_invalid_keys_are_skipped() -> None:
    listed = [*clips(3), Clip("clip-1", "/corpus/other.wav", "valid"), Clip("a.b", "/corpus/dot.wav", "train")]
    plan, _ = planned(listed, skipped=[SkippedInput("gone.wav", "gone", "in the index, not on disk")])
    assert [(row["path"], row["reason"]) for row in plan.skipped] == [
        ("/corpus/other.wav", "another clip has the same key"),
        ("/corpus/dot.wav", "no valid key"),
        ("gone.wav", "in the index, not on disk"),
    ]
    assert plan.clips == 3


def test_a_corpus_without_clips_is_refused() -> None:
    with pytest.raises(InputError, match="no clip"):
        planned([])


@pytest.mark.parametrize("name", ["é\n .wav", os.fsdecode(b"\xff.wav"), "\\x.wav"])
def test_any_file_name_survives_the_spool(name: str) -> None:
    clip = Clip("k", f"/corpus/a.tar::{name}", "train", 1.5, 2.5, {"tags": ["a", "\ud800"]}, (3, 4))
    plan, spool = planned([clip])
    assert spool.read_shard(plan.shards[0].name) == [clip]
    assert spool.read_shard(plan.shards[0].name)[0].source == f"a.tar::{name}"


def test_spool_is_thread_safe() -> None:
    """One thread creates jobs while another writes shards."""
    plan, spool = planned(clips(2000), 50)
    names = [shard.name for shard in plan.shards] * 10
    expected = {name: [item.key for item in spool.read_shard(name)] for name in set(names)}
    with ThreadPoolExecutor(4) as pool:
        for name, items in zip(names, pool.map(spool.read_shard, names), strict=True):
            assert [item.key for item in items] == expected[name]


def test_tree_fingerprint_notices_every_change(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.wav").write_bytes(b"1")
    (root / "loop").symlink_to(root)
    (root / "nowhere").symlink_to("gone")
    (tmp_path / "table.tsv").write_text("x")
    seen = [tree_fingerprint(root, tmp_path / "table.tsv")]
    assert tree_fingerprint(root, tmp_path / "table.tsv") == seen[0]
    for change in (
        lambda: (root / "b.wav").write_bytes(b""),
        lambda: (root / "sub" / "a.wav").write_bytes(b"12"),
        lambda: os.utime(root / "b.wav", (1, 1)),
        lambda: (root / "b.wav").rename(root / "c.wav"),
        lambda: (root / "c.wav").unlink(),
        lambda: (root / "empty").mkdir(),
        lambda: (tmp_path / "table.tsv").write_text("xy"),
    ):
        change()
        seen.append(tree_fingerprint(root, tmp_path / "table.tsv"))
    # the file that came and went leaves the tree as it was before it came, but for the other change
    assert len(set(seen)) == len(seen)
