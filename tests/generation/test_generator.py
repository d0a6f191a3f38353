"""Generation with prefix codes, changing prompts, sliding windows, interruptions and CUDA graphs.

The reference is slow: greedy search on the logits of the whole sequence so far, read again at every step.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.generation.engine import InferenceEngine
from pipeline.generation.generator import Generation, GenerationSpec, SlidingWindow
from pipeline.generation.settings import sampling_settings
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.pattern import SPECIAL_TOKEN
from pipeline.models.patterns import PATTERNS
from tests.helpers.models import step_logits, tiny

K, GREEDY = 4, sampling_settings(temperature=0)


def run_spec(model: CodecGPT, spec: GenerationSpec, size: int | None = None) -> Generation:
    generation = Generation(InferenceEngine(model), spec)
    for _ in generation.chunks(size):
        pass
    return generation


def fill_slowly(
    model: CodecGPT, tokens: Tensor, base: int, N: int, is_last: bool, prompt: Callable[[int], Tensor], kept: int = 0
) -> None:
    """Fill tokens [B, K, T] of the window of N frames from `base` on, `kept` of the first; prompt(frame) is [B, P]."""
    frames = [*range(kept), *range(base + kept, base + N)]
    sequence, frame = model.pattern.build_sequence(tokens[:, :, frames]), model.pattern.frame_at_step(N)
    steps = model.pattern.steps(N)
    for s in range(sequence.shape[2]):
        if not is_last and s >= model.pattern.steps_before_slide(N):
            break  # the next window completes these frames
        cells = [k for k in range(K) if frame[k, s] >= 0]
        for k in cells:  # the logits of a codebook may depend on the codes of those before it
            logits = model.logits(sequence, {"prompt": prompt(base + int(frame[cells[0], s]))})[:, s, k]  # [B, C]
            logits[..., SPECIAL_TOKEN] = -torch.inf
            sequence[:, k, s] = torch.where(sequence[:, k, s] == SPECIAL_TOKEN, logits.argmax(-1), sequence[:, k, s])
            tokens[:, k, frames[int(frame[k, s])]] = sequence[:, k, s]
    assert is_last or model.pattern.name == "delay" or bool((tokens[:, :, frames] != SPECIAL_TOKEN).all()), steps


@pytest.mark.parametrize("name", PATTERNS.names())
@torch.no_grad()
def test_prefix_codes_are_continued(name: str) -> None:
    model, prompts, prefix = tiny(pattern=name).eval(), torch.randn(2, 12), torch.randint(0, 1024, (2, K, 5))
    generation = run_spec(model, GenerationSpec(9, [0, 1], GREEDY, [(0, {"prompt": prompts})], prefix))
    tokens = torch.zeros(2, K, 9, dtype=torch.long)
    tokens[:, :, :5] = prefix + 1
    fill_slowly(model, tokens, 0, 9, True, lambda frame: prompts)
    assert torch.equal(generation.codes, tokens - 1) and torch.equal(generation.codes[:, :, :5], prefix)


@pytest.mark.parametrize("name", PATTERNS.names())
@torch.no_grad()
def test_changing_prompt_matches_reference(name: str) -> None:
    model, prompts = tiny(pattern=name).eval(), torch.randn(3, 1, 12) * 3
    keyframes = [(at, {"prompt": prompt}) for at, prompt in zip((0, 3, 7), prompts, strict=True)]
    generation = run_spec(model, GenerationSpec(9, [0], GREEDY, keyframes))
    tokens = torch.zeros(1, K, 9, dtype=torch.long)
    fill_slowly(model, tokens, 0, 9, True, lambda frame: prompts[(frame >= 3) + (frame >= 7)])
    assert torch.equal(generation.codes, tokens - 1)


@pytest.mark.parametrize("name", PATTERNS.names())
@pytest.mark.parametrize("kept", [0, 2])
@torch.no_grad()
def test_sliding_window_matches_reference(name: str, kept: int) -> None:
    """Cells before the window's first frame are empty again, as in training; no position is beyond the window."""
    model, prompts = tiny(pattern=name).eval(), torch.randn(2, 12)
    T, N, stride = 17, 8, 3
    generation = run_spec(
        model, GenerationSpec(T, [0, 1], GREEDY, [(0, {"prompt": prompts})], None, SlidingWindow(N, stride, kept))
    )
    tokens = torch.zeros(2, K, T, dtype=torch.long)
    for base in (0, 3, 6, 9):
        fill_slowly(model, tokens, base, N, base == 9, lambda frame: prompts, kept)
    assert torch.equal(generation.codes, tokens - 1)


@pytest.mark.parametrize("name", PATTERNS.names())
@pytest.mark.parametrize("window", [SlidingWindow(2, 1), SlidingWindow(8, 7), SlidingWindow(8, 4, 3)])
def test_no_stride_leaves_frames_incomplete(name: str, window: SlidingWindow) -> None:
    """Also where the stride, or the kept frames, drop frames whose last codebooks a delay has not reached."""
    spec = GenerationSpec(19, [4], sampling_settings(temperature=1), [], None, window)
    assert run_spec(tiny(pattern=name).eval(), spec).complete_frames == 19


@pytest.mark.parametrize("name", PATTERNS.names())
@pytest.mark.parametrize("window", [None, SlidingWindow(8, 4)])
def test_chunks_join_to_all_codes(name: str, window: SlidingWindow | None) -> None:
    spec = GenerationSpec(
        19, [4, 5], sampling_settings(temperature=0.9), [(0, {"prompt": torch.randn(2, 12)})], None, window
    )
    model = tiny(pattern=name).eval()
    generation = Generation(InferenceEngine(model), spec)
    chunks = list(generation.chunks(3))
    assert torch.equal(torch.cat(chunks, 2), generation.codes) and generation.complete_frames == 19
    assert torch.equal(run_spec(model, spec).codes, generation.codes)
    if name == "delay":
        assert all(chunk.shape[2] == 3 for chunk in chunks[:-1])


def test_windows_do_not_reuse_random_numbers() -> None:
    """With uniform logits, a window with the random numbers of the one before would repeat its codes."""
    model = tiny().eval()
    with torch.no_grad():
        model.head.weight.zero_()
    spec = GenerationSpec(200, [0], sampling_settings(temperature=1), [], None, SlidingWindow(20, 10))
    codes = run_spec(model, spec).codes[0, 0]
    assert len(codes.unique()) > 150


@pytest.mark.parametrize("name", PATTERNS.names())
def test_interruption_keeps_complete_frames(name: str) -> None:
    model, prompts = tiny(pattern=name).eval(), torch.randn(1, 12)
    spec = GenerationSpec(12, [7], sampling_settings(temperature=0.9), [(0, {"prompt": prompts})])
    engine, expected = InferenceEngine(model), run_spec(model, spec).codes
    forward, steps = engine.forward, model.pattern.num_steps(12) - 3

    def interrupted_forward(*arguments: object) -> Tensor:
        nonlocal steps
        steps -= 1
        if not steps:
            raise KeyboardInterrupt
        return forward(*arguments)  # type: ignore[arg-type]

    engine.forward = interrupted_forward  # type: ignore[method-assign]
    generation = Generation(engine, spec)
    with pytest.raises(KeyboardInterrupt):
        list(generation.chunks())
    assert 0 < generation.complete_frames < 12
    assert torch.equal(
        generation.codes[:, :, : generation.complete_frames], expected[:, :, : generation.complete_frames]
    )


@pytest.mark.parametrize("name", ["delay", "flatten"])
def test_end_of_audio_ends_a_sliding_window(name: str) -> None:
    """A model whose clips count to 12 and end stops there, also when asked for 40 frames with a window of 8."""
    torch.manual_seed(0)
    model = tiny(pattern=name, end_of_audio=True)
    melody, prompt = torch.arange(12).expand(1, K, 12) * 80, torch.ones(1, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(250):  # from every first frame, as in a sliding window
        first = step % 10
        nats, cells = model(melody[:, :, first:], None, {"prompt": prompt})
        (nats.sum() / cells.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    prefix = melody[:, :, :3]
    generation = run_spec(
        model.eval(), GenerationSpec(40, [0], GREEDY, [(0, {"prompt": prompt})], prefix, SlidingWindow(8, 4))
    )
    assert generation.lengths.tolist() == [12]
    assert torch.equal(generation.codes[:, :, :12], melody) and not generation.codes[:, :, 12:].any()


@pytest.mark.parametrize("window", [SlidingWindow(8, 0), SlidingWindow(8, 8), SlidingWindow(11, 9, 3)])
def test_invalid_window_stride_is_refused(window: SlidingWindow) -> None:
    with pytest.raises(InputError, match=r"moves by 1\.\.7 frames"):
        Generation(InferenceEngine(tiny().eval()), GenerationSpec(20, [0], GREEDY, [], None, window))


def test_temperature_per_codebook() -> None:
    """A greedy codebook is greedy whatever the others do."""
    model, prompts = tiny(pattern="parallel").eval(), torch.randn(1, 12).expand(2, -1)
    per_codebook = sampling_settings(temperature=[0.0, 1.0, 1.0, 0.0])
    mixed = run_spec(model, GenerationSpec(1, [0, 1], per_codebook, [(0, {"prompt": prompts})])).codes
    greedy = run_spec(model, GenerationSpec(1, [0], GREEDY, [(0, {"prompt": prompts[:1]})])).codes
    assert torch.equal(mixed[:, [0, 3]], greedy[:, [0, 3]].expand(2, -1, -1)) and not torch.equal(mixed[0], mixed[1])
    with pytest.raises(InputError, match="the model has 4 codebooks"):
        Generation(InferenceEngine(model), GenerationSpec(1, [0], sampling_settings(temperature=[1.0, 0.5])))


GRAPH_CASES = {
    "one prompt": {},
    "sliding window": {"window": SlidingWindow(8, 3, 1)},
    "changing prompt": {"prompts": 3},
    "guided": {"sampling": sampling_settings(temperature=0.8, top_p=0.9, min_p=0.01, guidance=2.0)},
    "ends": {"end_of_audio": True, "sampling": sampling_settings(temperature=3.0)},
}


@pytest.mark.parametrize("name", PATTERNS.names())
@pytest.mark.parametrize("case", GRAPH_CASES)
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_cuda_graph_steps_equal_plain_steps(name: str, case: str, device: str) -> None:
    """On a CPU the function that a GPU would capture is called directly."""
    changes = dict(GRAPH_CASES[case])
    sampling = changes.pop("sampling", sampling_settings(temperature=0.8, top_k=50))
    moves = changes.pop("prompts", 1)
    model = tiny(pattern=name, end_of_audio=changes.pop("end_of_audio", False)).eval().to(device)
    spec = GenerationSpec(
        13, [5, 6], sampling, [(4 * i, {"prompt": torch.randn(2, 12)}) for i in range(moves)], **changes
    )
    results = []
    for use_cuda_graph in (False, True):
        engine = InferenceEngine(model)
        engine.use_cuda_graph = use_cuda_graph
        generation = Generation(engine, spec)
        list(generation.chunks(2))
        results.append((generation.codes.tolist(), generation.lengths.tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", PATTERNS.names())
def test_engine_logits_equal_model_logits(name: str) -> None:
    model, prompts = tiny(pattern=name, width=1056, layers=1).eval(), torch.randn(3, 12)
    sequence = model.pattern.build_sequence(torch.randint(1, 1025, (3, K, 6)))
    with torch.inference_mode():
        expected = model.logits(sequence, {"prompt": prompts})
        for batch_invariant in (True, False):
            engine = InferenceEngine(model, batch_invariant)
            cache, inputs = engine.new_cache(3, sequence.shape[2]), engine.prefix({"prompt": prompts}, 3)
            for s in range(sequence.shape[2]):
                logits = step_logits(engine, engine.forward(inputs, cache, s), sequence[:, :, s])
                assert torch.allclose(logits, expected[:, s], atol=1e-4)
                inputs = model.embed(sequence[:, :, s : s + 1])


@pytest.mark.parametrize("is_quantized", [False, True])
@pytest.mark.parametrize(
    ("name", "width", "options"), [("delay", 1056, {}), ("depth", 32, {"layers": 1, "width": 264, "heads": 2})]
)
def test_engine_is_batch_and_thread_invariant(
    name: str, width: int, options: dict[str, int], is_quantized: bool
) -> None:
    """A row has the same bits alone and in a batch, also for long sums: width 1,056, inner width 4,224."""
    model = tiny(width=width, layers=1, pattern=name, pattern_options=options).eval()
    model.is_quantized = is_quantized
    engine = InferenceEngine(model)
    if not is_quantized and not engine.layers.layers[0].qkv.is_packed:
        pytest.skip("this build of torch has no oneDNN: rows agree up to rounding")
    inputs, tokens, threads = torch.randn(17, 3, width), torch.randint(1025, (17, K)), torch.get_num_threads()
    logits_by_case = {}
    for count in (1, 2):
        torch.set_num_threads(count)
        for rows in (1, 2, 5, 16, 17):
            cache = engine.new_cache(rows, 3)
            with torch.inference_mode():
                steps = [engine.forward(inputs[:rows, s : s + 1], cache, s) for s in range(3)]
                logits_by_case[count, rows] = [step_logits(engine, hidden, tokens[:rows])[0] for hidden in steps]
    torch.set_num_threads(threads)
    for logits in logits_by_case.values():
        assert all(torch.equal(a, b) for a, b in zip(logits, logits_by_case[1, 1], strict=True))
