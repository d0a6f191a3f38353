"""Beyond whole clips from one prompt: beginnings that are given, prompts that move, windows that move, interruptions.

Each is held to a slow reference: greedy search on the logits of the whole sequence so far, read anew at every step.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import InputError
from pipeline.generation.engine import InferenceEngine
from pipeline.generation.generator import Generation, GenerationSpec
from pipeline.generation.sampling import SamplingParams
from pipeline.models.codec_gpt import CodecGPT
from pipeline.models.patterns import NAMES, SPECIAL_TOKEN
from tests.helpers.models import tiny

K, GREEDY = 4, SamplingParams(0)


def taken(model: CodecGPT, plan: GenerationSpec, size: int | None = None) -> Generation:
    take = Generation(InferenceEngine(model), plan)
    for _ in take.chunks(size):
        pass
    return take


def slow(model: CodecGPT, tokens: Tensor, base: int, N: int, last: bool, prompt: Callable[[int], Tensor]) -> None:
    """Fill tokens [B, K, T] of the window of N frames from `base` on; prompt(frame) is [B, P]."""
    laid, held = model.pattern.build_sequence(tokens[:, :, base : base + N]), model.pattern.frame_at_step(N)
    steps = model.pattern.steps(N)
    for s in range(laid.shape[2]):
        if model.pattern.name == "delay" and not last and s >= N:
            break  # what only finishes frames is left to the next window
        cells = [k for k in range(K) if held[k, s] >= 0]
        logits = model.logits(laid, prompt(base + int(held[cells[0], s])))[:, s]  # [B, K, C]
        logits[..., SPECIAL_TOKEN] = -torch.inf
        for k in cells:
            laid[:, k, s] = torch.where(laid[:, k, s] == SPECIAL_TOKEN, logits[:, k].argmax(-1), laid[:, k, s])
            tokens[:, k, base + int(held[k, s])] = laid[:, k, s]
    assert last or model.pattern.name == "delay" or bool((tokens[:, :, base : base + N] != SPECIAL_TOKEN).all()), steps


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_given_beginning_goes_on_as_if_it_had_been_made(name: str) -> None:
    model, prompts, given = tiny(pattern=name).eval(), torch.randn(2, 12), torch.randint(0, 1024, (2, K, 5))
    take = taken(model, GenerationSpec(9, [0, 1], [GREEDY] * 2, [(0, prompts)], given))
    tokens = torch.zeros(2, K, 9, dtype=torch.long)
    tokens[:, :, :5] = given + 1
    slow(model, tokens, 0, 9, True, lambda frame: prompts)
    assert torch.equal(take.codes, tokens - 1) and torch.equal(take.codes[:, :, :5], given)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_prompt_that_changes_is_exact_all_that_was_made_is_read_again(name: str) -> None:
    model, prompts = tiny(pattern=name).eval(), torch.randn(3, 1, 12) * 3
    take = taken(model, GenerationSpec(9, [0], [GREEDY], [(0, prompts[0]), (3, prompts[1]), (7, prompts[2])]))
    tokens = torch.zeros(1, K, 9, dtype=torch.long)
    slow(model, tokens, 0, 9, True, lambda frame: prompts[(frame >= 3) + (frame >= 7)])
    assert torch.equal(take.codes, tokens - 1)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_window_that_moves_reads_the_rest_as_a_clip_that_begins_there(name: str) -> None:
    """Rows before the window's first frame are empty again, as in training, and no position is beyond the window."""
    model, prompts = tiny(pattern=name).eval(), torch.randn(2, 12)
    T, N, hop = 17, 8, 3
    take = taken(model, GenerationSpec(T, [0, 1], [GREEDY] * 2, [(0, prompts)], None, N, hop))
    tokens = torch.zeros(2, K, T, dtype=torch.long)
    for base in (0, 3, 6, 9):
        slow(model, tokens, base, N, base == 9, lambda frame: prompts)
    assert torch.equal(take.codes, tokens - 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("window", [None, 8])
def test_chunks_come_in_order_and_are_the_whole(name: str, window: int | None) -> None:
    plan = GenerationSpec(19, [4, 5], [SamplingParams(0.9)] * 2, [(0, torch.randn(2, 12))], None, window, window and 4)
    model = tiny(pattern=name).eval()
    take = Generation(InferenceEngine(model), plan)
    chunks = list(take.chunks(3))
    assert torch.equal(torch.cat(chunks, 2), take.codes) and take.complete_frames == 19
    assert torch.equal(taken(model, plan).codes, take.codes)
    if name == "delay":
        assert all(chunk.shape[2] == 3 for chunk in chunks[:-1])


def test_no_random_number_is_used_twice_in_a_piece_that_moves_on() -> None:
    """Uniform logits: were a window to use the numbers of the one before, its codes would come again."""
    model = tiny().eval()
    with torch.no_grad():
        model.head.weight.zero_()
    codes = taken(model, GenerationSpec(200, [0], [SamplingParams(1)], [], None, 20, 10)).codes[0, 0]
    assert len(codes.unique()) > 150


@pytest.mark.parametrize("name", NAMES)
def test_an_interruption_keeps_what_is_made(name: str) -> None:
    model, prompts = tiny(pattern=name).eval(), torch.randn(1, 12)
    plan = GenerationSpec(12, [7], [SamplingParams(0.9)], [(0, prompts)])
    player, whole = InferenceEngine(model), taken(model, plan).codes
    read, steps = player.forward, model.pattern.num_steps(12) - 3

    def until(*arguments: object) -> Tensor:
        nonlocal steps
        steps -= 1
        if not steps:
            raise KeyboardInterrupt
        return read(*arguments)  # type: ignore[arg-type]

    player.forward = until  # type: ignore[method-assign]
    take = Generation(player, plan)
    with pytest.raises(KeyboardInterrupt):
        list(take.chunks())
    assert 0 < take.complete_frames < 12
    assert torch.equal(take.codes[:, :, : take.complete_frames], whole[:, :, : take.complete_frames])


@pytest.mark.parametrize("name", ["delay", "flatten"])
def test_an_end_is_an_end_in_a_moving_window_too(name: str) -> None:
    """A model that counts to 12 in codebook 0 of its clips and then ends, asked for 40 frames with a window of 8."""
    torch.manual_seed(0)
    model = tiny(pattern=name, end_of_audio=True)
    melody, prompt = torch.arange(12).expand(1, K, 12) * 80, torch.ones(1, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(250):  # from every frame on, as a moved window sees it
        first = step % 10
        nats, cells = model(melody[:, :, first:], None, prompt)
        (nats.sum() / cells.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    given = melody[:, :, :3]
    take = taken(model.eval(), GenerationSpec(40, [0], [GREEDY], [(0, prompt)], given, 8, 4))
    assert take.lengths.tolist() == [12]
    assert torch.equal(take.codes[:, :, :12], melody) and not take.codes[:, :, 12:].any()


@pytest.mark.parametrize("hop", [0, 8, 9])
def test_a_window_that_cannot_move_is_refused(hop: int) -> None:
    with pytest.raises(InputError, match=r"moves by 1\.\.7 frames"):
        Generation(InferenceEngine(tiny().eval()), GenerationSpec(20, [0], [GREEDY], [], None, 8, hop))


def test_temperatures_of_codebooks_and_rows() -> None:
    """Greedy in one codebook is greedy there whatever the others do, and rows of a batch have their own."""
    model, prompts = tiny(pattern="parallel").eval(), torch.randn(1, 12).expand(2, -1)
    mixed = taken(model, GenerationSpec(1, [0, 1], [SamplingParams((0.0, 1.0, 1.0, 0.0))] * 2, [(0, prompts)])).codes
    greedy = taken(model, GenerationSpec(1, [0], [GREEDY], [(0, prompts[:1])])).codes
    assert torch.equal(mixed[:, [0, 3]], greedy[:, [0, 3]].expand(2, -1, -1)) and not torch.equal(mixed[0], mixed[1])
    rows = taken(model, GenerationSpec(1, [3, 3], [SamplingParams(0.0), SamplingParams(1.0)], [(0, prompts)])).codes
    assert torch.equal(rows[:1], greedy)
    with pytest.raises(InputError, match="the model has 4 codebooks"):
        Generation(InferenceEngine(model), GenerationSpec(1, [0], [SamplingParams((1.0, 0.5))]))


CAPTURED = {
    "one prompt": {},
    "a moving window": {"window": 8, "window_stride": 3},
    "a moving prompt": {"prompts": 3},
    "guided": {"sampling": SamplingParams(0.8, top_p=0.9, min_p=0.01, guidance=2.0)},
    "ends": {"end_of_audio": True, "sampling": SamplingParams(3.0)},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CAPTURED)
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_steps_captured_as_a_graph_are_the_same_steps(name: str, case: str, device: str) -> None:
    """On a CPU the function that a GPU captures is called as it is."""
    changes = dict(CAPTURED[case])
    sampling, moves = changes.pop("sampling", SamplingParams(0.8, top_k=50)), changes.pop("prompts", 1)
    model = tiny(pattern=name, end_of_audio=changes.pop("end_of_audio", False)).eval().to(device)
    plan = GenerationSpec(13, [5, 6], [sampling] * 2, [(4 * i, torch.randn(2, 12)) for i in range(moves)], **changes)
    found = []
    for captures in (False, True):
        player = InferenceEngine(model)
        player.use_cuda_graph = captures
        take = Generation(player, plan)
        list(take.chunks(2))
        found.append((take.codes.tolist(), take.lengths.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_players_steps_are_the_models_logits(name: str) -> None:
    model, prompts = tiny(pattern=name, width=1056, layers=1).eval(), torch.randn(3, 12)
    laid = model.pattern.build_sequence(torch.randint(1, 1025, (3, K, 6)))
    with torch.inference_mode():
        expected = model.logits(laid, prompts)
        for exact in (True, False):
            player = InferenceEngine(model, exact)
            cache, inputs = player.new_cache(3, laid.shape[2]), player.condition(prompts, 3)
            for s in range(laid.shape[2]):
                assert torch.allclose(player.forward(inputs, cache, s), expected[:, s], atol=1e-4)
                inputs = model.embed(laid[:, :, s : s + 1])


def test_a_row_has_the_same_logits_alone_as_among_others_and_on_any_number_of_threads() -> None:
    """Bit for bit, also where sums are long: 1,056 wide, 4,224 inside."""
    player = InferenceEngine(tiny(width=1056, layers=1).eval())
    if not player.head.is_packed:
        pytest.skip("this build of torch has no oneDNN: rows agree but for rounding")
    inputs, threads = torch.randn(17, 3, 1056), torch.get_num_threads()
    found = {}
    for count in (1, 2):
        torch.set_num_threads(count)
        for rows in (1, 2, 5, 16, 17):
            cache = player.new_cache(rows, 3)
            with torch.inference_mode():
                found[count, rows] = [player.forward(inputs[:rows, s : s + 1], cache, s)[0] for s in range(3)]
    torch.set_num_threads(threads)
    for logits in found.values():
        assert all(torch.equal(a, b) for a, b in zip(logits, found[1, 1], strict=True))
