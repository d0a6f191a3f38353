"""The report: self-contained, every player plays, and its numbers are those of the evaluation."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf
from PIL import Image

from pipeline.common.errors import InputError
from pipeline.config.cli import load_settings
from pipeline.evaluation import comparison, html_templates, sound_view, svg_plots
from pipeline.evaluation.axis_ticks import ticks as axis_ticks
from pipeline.evaluation.html_templates import LabeledAudio, SectionContent, render_report
from pipeline.evaluation.sections.results import render_results
from pipeline.evaluation.svg_plots import Curve
from pipeline.generation.loaded_run import load_run
from pipeline.webui import components
from pipeline.webui.examples import examples
from pipeline.webui.file_store import FileStore
from pipeline.webui.settings import DemoSettings
from tests.helpers.axe import accessibility_faults
from tests.helpers.browser import Browser, browser
from tests.helpers.trained_run import Workspace, run_command
from tests.test_secrets import leaks, served

SCRIPT_TAG = "<script>alert(1)</script>"
SMALL = ("n=2", "temperatures=[0.01,1]", "steps=3", "num_interpolations=1")
VOID = {"meta", "img", "line", "circle", "polyline", "tr", "th", "td", "dt", "dd", "i"}


@pytest.fixture(scope="module")
def report(workspace: Workspace, nsynth_folder: Path) -> Path:
    run = workspace.run("valle")
    rows = [{"step": s, "train/loss": 7 - s / 10} for s in range(1, 9)] + [{"step": 8, "val/loss": 6.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "tra')
    run_command("evaluate", f"run={run}", f"shards={workspace.dataset}", "n=3", "temperatures=[0.01,1]")
    run_command("report", f"run={run}", f"corpus_root={nsynth_folder}", f"prompts=[{workspace.tones[0]}]", *SMALL)
    return run / "report.html"


class Reader(HTMLParser):
    """The addresses in a page, and whether its tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        addresses = [value or "" for name, value in attributes if name in ("src", "href")]
        self.sources += [address for address in addresses if not address.startswith("#")]  # not of the contents list
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_page_is_self_contained_and_tags_match(report: Path) -> None:
    reader = Reader(report.read_text())
    assert not reader.open
    # each clip: its recording, and 1, 2, 4, 8 codebooks; its prompt, and two temperatures; a tone; an interpolation;
    # 3 evaluated clips at two temperatures, each beside its nearest training clip
    number = len([s for s in reader.sources if s.startswith("data:audio/wav;base64,")])
    assert number == 2 * (1 + 4) + 2 * 3 + 3 + 3 + 3 * 2 * 2
    assert all(source.startswith("data:") for source in reader.sources)


def test_sounds_and_images_decode(report: Path) -> None:
    sources = Reader(report.read_text()).sources
    lengths = []
    for source in sources:
        kind, _, content = source.partition(";base64,")
        data = base64.b64decode(content)
        if kind == "data:audio/wav":
            wav, rate = soundfile.read(io.BytesIO(data))
            assert rate == 24_000 and np.abs(wav).max() > 0
            lengths.append(len(wav))
        else:
            assert data[:8] == b"\x89PNG\r\n\x1a\n"
    interpolation = 3 * 9_600 - 2 * 1_200  # three clips, two crossfades
    assert set(lengths) == {9_600, 12_000, interpolation}  # clips, the tone, the interpolation


def test_page_shows_evaluation_results(report: Path) -> None:
    text = report.read_text()
    results = json.loads((report.parent / "evaluation" / "evaluate.json").read_text())
    for name in ("model", "unigram", "uniform"):
        assert f"<th>{name}<td>{results['loss'][name]['nats']:.3f}" in text
    for title in (
        "Loss (nats per code)",
        "prompt fidelity",
        "pitch (%)",
        "Bit rate",
        "Temperature",
        "Interpolation",
        "Nearest training clips",
    ):
        assert title in text
    assert "0.75 kbit/s, 1 codebook" in text and "1.5 kbit/s, 2 codebooks, the model&#39;s" in text
    assert "temperature 0.01" in text and "recording" in text and "generation 2" in text


def test_page_without_evaluation_names_the_command(workspace: Workspace) -> None:
    run = workspace.run("flatten")
    run_command("report", f"run={run}", "num_interpolations=0", "n=1", "temperatures=[1]", "codebooks=[1,2,4]")
    text = (run / "report.html").read_text()
    assert f"python -m pipeline.evaluate run={run} shards={workspace.dataset}" in text
    assert "recording" not in text and "Interpolation" not in text
    assert len(Reader(text).sources) == 2 * (2 + 2)  # no more codebooks than the dataset has


def test_results_of_another_export_are_left_out(
    workspace: Workspace, report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the model was trained further, older results are left out, with the command that evaluates again."""
    results = json.loads((report.parent / "evaluation" / "evaluate.json").read_text())
    stale = tmp_path / "evaluate.json"
    stale.write_text(json.dumps({**results, "export": {**results["export"], "sha256": "0" * 64}}))
    overrides = (f"run={report.parent}", "n=1", "num_interpolations=0", "temperatures=[1]", "codebooks=[1]")
    for evaluation, is_shown in ((stale, False), (report.parent / "evaluation" / "evaluate.json", True)):
        run_command("report", *overrides, f"evaluation={evaluation}", f"out={tmp_path / 'r.html'}")
        text, printed = (tmp_path / "r.html").read_text(), capsys.readouterr().out
        assert (f"<th>model<td>{results['loss']['model']['nats']:.3f}" in text) == is_shown
        for output in (text, printed):
            assert (
                "are of another export and are left out; run again: python -m pipeline.evaluate" in output
            ) != is_shown


def test_page_is_reproducible(workspace: Workspace, report: Path, nsynth_folder: Path, tmp_path: Path) -> None:
    overrides = (
        f"corpus_root={nsynth_folder}",
        f"prompts=[{workspace.tones[0]}]",
        f"out={tmp_path / 'r.html'}",
        *SMALL,
    )
    run_command("report", f"run={report.parent}", *overrides)
    assert (tmp_path / "r.html").read_bytes() == report.read_bytes()


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def test_browser_plays_every_sound_offline(window: Browser, report: Path) -> None:
    window.open(report.as_uri())
    durations = window.run("""
        Promise.all([...document.querySelectorAll("audio")].map((audio) => new Promise((resolve) => {
          audio.onloadedmetadata = () => resolve(audio.duration);
          audio.onerror = () => resolve(audio.error.message);
          audio.preload = "metadata"; audio.load();
        }))).then(done)""")
    assert len(durations) == 34 and all(isinstance(d, float) and 0.39 < d < 1.2 for d in durations), durations
    played = window.run("""
        const [first, second] = document.querySelectorAll(".sound"), audio = first.querySelector("audio");
        first.querySelector("button").click();
        audio.onended = () => {
          const at = audio.currentTime;
          second.querySelector("button").click(); first.querySelector("button").click();
          setTimeout(() => done([at, document.querySelectorAll(".playing").length,
            performance.getEntriesByType("resource").filter((r) => r.name.startsWith("http")).length]), 50);
        }""")
    assert played == [pytest.approx(0.4, abs=0.05), 1, 0]
    unseen = window.run(
        'done([...document.querySelectorAll("img")].filter((i) => !i.complete || !i.naturalWidth).length)'
    )
    assert unseen == 0


@pytest.mark.parametrize(("width", "scheme"), [(1366, "light"), (390, "dark")])
def test_report_has_no_accessibility_faults(window: Browser, report: Path, width: int, scheme: str) -> None:
    window.emulate(width, 800, scheme)
    window.open(report.as_uri())
    assert accessibility_faults(window) == []
    assert window.run("done(document.documentElement.scrollWidth <= innerWidth)")


def test_sounds_are_sought_by_click_and_by_key(window: Browser, report: Path) -> None:
    """A click in the picture plays from there; keys move the position; a second sound pauses the first."""
    window.open(report.as_uri())
    played = window.run("""
        const [first, second] = document.querySelectorAll(".sound"), audio = first.querySelector("audio");
        const picture = first.querySelector(".picture"), box = picture.getBoundingClientRect();
        const press = (key) => picture.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
        const at = () => Number(picture.getAttribute("aria-valuenow"));
        picture.dispatchEvent(new MouseEvent("click", {clientX: box.left + box.width / 2, bubbles: true}));
        audio.onseeked = () => {
          audio.onseeked = null;
          const clicked = [audio.currentTime / Number(first.dataset.seconds), first.className];
          second.querySelector(".play").click();
          setTimeout(() => {
            const paused = audio.paused, keys = ["Home", "ArrowRight", "End"].map((key) => (press(key), at()));
            done([...clicked, paused, keys, first.querySelector(".clock").textContent]);
          }, 50);
        }""")
    assert played == [pytest.approx(0.5, abs=0.2), "sound started playing", True, [0, 0.1, 0.4], "0.4 / 0.4 s"]


@pytest.mark.parametrize("seconds", [0.004, 1.5, 4.0, 60.0])
def test_ticks_of_a_sound_are_within_its_axes(seconds: float) -> None:
    for ticks in (sound_view.time_ticks(seconds), sound_view.frequency_ticks(24_000)):
        assert 2 <= len(ticks) <= 6 and all(0 <= at <= 100 for _, at in ticks)
    points = re.findall(r"([\d.]+),([\d.]+)", sound_view.outline(np.sin(np.arange(round(24_000 * seconds)))))
    assert all(0 <= float(x) <= sound_view.COLUMNS and 0 <= float(y) <= 100 for x, y in points)


def test_names_are_escaped_in_the_page() -> None:
    results = SectionContent(html=render_results([], None, "<script>"))
    text = render_report("<run>&", {"clips": "<b>"}, {"<i>": results}, 24_000)
    assert "<i>" not in text and "<run>" not in text and "<b>" not in text and text.count("<script>") == 1


def malicious(workspace: Workspace, run: Path, **changes: object) -> dict[str, Any]:
    """A valid evaluate.json of this export with a script in every text."""
    figure = {"mean": 0.5, "interval": [0.4, 0.6]}
    loss = {"nats": 1.0, "nats_codebook": [1.0, 1.0], "bits_second": 75.0}
    results: dict[str, Any] = {
        "loss": {"clips": 3, "model": loss, "unigram": loss, "uniform": loss},
        "temperatures": {"1": {"fidelity": figure}}, "ceiling": {"fidelity": figure}, "floor": {},
        "settings": {"n": 3, "split": SCRIPT_TAG, "sampling": {"guidance": 1.0}},
        "distance": {"embedding": {"name": SCRIPT_TAG}, "n": 3},
        "export": {"sha256": hashlib.sha256((run / "export/model.safetensors").read_bytes()).hexdigest()},
    }  # fmt: skip
    return {**results, **changes}


def test_texts_of_a_run_folder_are_escaped(workspace: Workspace, tmp_path: Path) -> None:
    """Texts are escaped; a text in the place of a number is refused."""
    run = workspace.run("parallel")
    file = tmp_path / "evaluate.json"
    overrides = (f"run={run}", f"evaluation={file}", f"out={tmp_path / 'r.html'}", *SMALL)
    file.write_text(json.dumps(malicious(workspace, run)))
    run_command("report", *overrides, "n=1", "num_interpolations=0", "codebooks=[1]", "temperatures=[1]")
    text = (tmp_path / "r.html").read_text()
    assert "<img" in text and SCRIPT_TAG not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    losses = {**malicious(workspace, run)["loss"], "clips": SCRIPT_TAG}
    file.write_text(json.dumps(malicious(workspace, run, loss=losses)))
    with pytest.raises(InputError, match=r"not a file that pipeline\.evaluate writes .*loss\.clips"):
        run_command("report", *overrides)


def test_names_are_escaped_in_the_demo() -> None:
    sound = LabeledAudio("<b>\"x' http://u:Hidden0Value@h", np.zeros(480, np.float32))
    for text in (
        components.row("<b>", [sound], 24_000),
        components.stream_player("<b>", 0.5),
        components.command("<b>"),
        components.note("<b>"),
    ):
        reader = Reader(text)
        assert not reader.open and type(text) is str and "<b>" not in text and "Hidden0Value" not in text


@pytest.fixture
def recording_server() -> Iterator[tuple[str, list[str]]]:
    """The address of a web server, and the paths that were requested."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/cache", paths
    server.shutdown()
    server.server_close()


def test_addresses_in_a_run_folder_are_not_opened(
    workspace: Workspace, recording_server: tuple[str, list[str]], tmp_path: Path
) -> None:
    """Report, demo and model card open no address from a run folder, but those from the command line."""
    pytest.importorskip("aiohttp")
    address, paths = recording_server
    run = tmp_path / "run"
    shutil.copytree(workspace.run(), run)
    for shards in (address, {"a": address}, "ssh://127.0.0.1:9/cache", "memory://cache", f"simplecache::{address}"):
        OmegaConf.save(OmegaConf.create({"shards": shards}), run / "config.yaml")
        with pytest.raises(InputError, match=r"shards=auto: .*a remote dataset.*give shards=ADDRESS"):
            run_command("report", f"run={run}", *SMALL)
    loaded = load_run(run, "cpu")
    store = FileStore(tmp_path / "files", 1 << 20, 1 << 20, 60)
    assert examples(load_settings(DemoSettings, [f"run={run}"]), loaded, store) == {}
    config = json.loads((run / "export/config.json").read_text())
    del config["sha256"]
    for name in ("encodecmae_base/evil/weights", "encodecmae_tiny/evil/weights", "encodecmae_package/evil/weights"):
        config["embedder"]["name"] = name
        (run / "export/config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="there is no embedder 'encodecmae_"):
            load_run(run, "cpu")
    assert paths == []
    with pytest.raises(InputError, match="there is no dataset at http"):
        run_command("report", f"run={workspace.run()}", f"shards={address}", *SMALL)
    assert paths


def test_copied_run_folder_asks_for_shards(workspace: Workspace, tmp_path: Path) -> None:
    """If the dataset stayed on the other machine, the message names it."""
    shutil.copytree(workspace.run(), tmp_path / "run")
    OmegaConf.save(OmegaConf.create({"shards": "shards/nsynth"}), tmp_path / "run" / "config.yaml")
    with pytest.raises(
        InputError, match=r"names shards/nsynth, but there is no dataset at this path on this machine.*shards=DIR"
    ):
        run_command("report", f"run={tmp_path / 'run'}", *SMALL)


def test_only_valid_rows_of_a_log_are_plotted(workspace: Workspace, tmp_path: Path) -> None:
    shutil.copytree(workspace.run(), tmp_path / "run")
    rows = ['{"step": "x", "train/loss": 1}', '{"train/loss": 1}', '{"step": 1, "train/loss": NaN}', "[" * 99_999]
    rows += ['{"step": 2, "train/loss": "<b>", "train/clips": 3}', '{"step": 1e400}', '{"step": 3, "train/loss": 7}']
    (tmp_path / "run" / "metrics.jsonl").write_bytes("\n".join(rows).encode() + b"\n\xff\xfe")
    run_command("report", f"run={tmp_path / 'run'}", "n=1", "num_interpolations=0", "codebooks=[1]", "temperatures=[1]")
    plotted = re.findall(r'points="([^"]*)"', (tmp_path / "run" / "report.html").read_text())
    assert [len(points.split()) for points in plotted] == [1]
    assert comparison.training_stats(tmp_path / "run", load_run(workspace.run(), "cpu"), 30)["training"] is None


def test_login_in_shards_is_redacted_everywhere(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("aiohttp")
    run = tmp_path / "run"
    shutil.copytree(workspace.run(), run)
    with served(workspace.dataset) as host:
        address = f"shards='http://user:Hidden0Value@{host}/cache?sig=Hidden1Value/c'"
        overrides = (f"run={run}", address, "n=2", "temperatures=[1]")
        run_command("evaluate", *overrides, "resamples=10", "pitch=false")
        run_command("report", *overrides, "num_interpolations=0", "codebooks=[1]")
        run_command(
            "compare",
            f"runs=[{run}]",
            *overrides[1:],
            f"out={run}/compare",
            "resamples=10",
            "pitch=false",
            "benchmark_batch=1",
        )
    printed = "".join(capsys.readouterr())
    assert not re.search("Hidden[01]Value", printed) and leaks(run, {"Hidden0Value", "Hidden1Value"}) == {}
    assert f"http://***@{host}/cache?sig=***" in (run / "report.html").read_text()


def test_png_has_the_pixels_of_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = base64.b64decode(html_templates.png_data_uri(image).partition(",")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image)


@pytest.mark.parametrize("points", [[(0.0, 0.0)], [(1.0, 5.0), (2.0, 5.0)], [(0.01, 1e-6), (2.0, 3e5)]])
def test_plot_points_are_inside_the_plot(points: list[tuple[float, float]]) -> None:
    text = svg_plots.plot("t", "x", [Curve("c", points, [(y, y) for _, y in points])], [("level", points[0][1])])
    coordinates = [tuple(map(float, pair.split(","))) for pair in re.findall(r'points="([^"]*)"', text)[0].split()]
    assert len(coordinates) == len(points)
    assert all(0 <= x <= svg_plots.WIDTH and 0 <= y <= svg_plots.HEIGHT for x, y in coordinates)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (1e-9, 3e-9), (0.3, 0.31), (0, 123_456)])
def test_ticks_are_few_and_within_the_range(low: float, high: float) -> None:
    ticks = axis_ticks(low, high)
    assert 3 <= len(ticks) <= 9 and low - 1e-12 <= min(ticks) and max(ticks) <= high + 1e-12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["n=1"], "an interpolation needs two clips"),
        (["codebooks=[1,0]"], r"codebooks=\[1, 0\]: expected a list, each a whole number of 1 or more"),
        (["crossfade_seconds=-0.1"], "crossfade_seconds=-0.1: expected a number of 0 or more"),
        (["prompts=[nowhere.wav]"], "prompt=nowhere.wav"),
        (["corpus_root=/nowhere"], "missing"),
        (["shards=/nowhere"], "there is no dataset at"),
    ],
)
def test_invalid_settings_are_refused(workspace: Workspace, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_command("report", f"run={workspace.run()}", *overrides)


def test_invalid_evaluation_file_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('{"loss": 3}')
    with pytest.raises(InputError, match="not a file that pipeline.evaluate writes"):
        run_command("report", f"run={workspace.run()}", f"evaluation={tmp_path / 'e.json'}", *SMALL)
