"""CodecGPT: a GPT-2 that reads the sum of K code embeddings a step, after one prompt vector, and predicts K codes.

    position   0        1          2          ...   S-1
    reads      prompt   step 0     step 1     ...   step S-2
    predicts   step 0   step 1     step 2     ...   step S-1

Letters: B clips, K codebooks, T frames, S steps, D width, C = 1025 classes (*empty* and 1024 codes), P prompt width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.common.errors import InputError, one_line
from pipeline.common.files import is_intact, sha256_file, with_checksum, write_atomic
from pipeline.common.import_guards import hide_broken_packages
from pipeline.models.patterns import SPECIAL_TOKEN, Pattern
from pipeline.models.weights import save_tensors

with hide_broken_packages("torchaudio", "torchvision"):  # transformers imports both where they are installed
    import transformers
    from transformers import GPT2Config, GPT2Model

log = logging.getLogger(__name__)
WEIGHTS, CONFIG = "model.safetensors", "config.json"
GELU = "gelu_pytorch_tanh"  # GPT-2's own, which transformers writes out as eight operations, in one


@dataclass(frozen=True)
class ModelConfig:
    """All that rebuilds a model; `codec` and `embedder` are the identities of what its codes and prompts come from."""

    codebooks: int
    pattern: str
    prompt_dim: int
    width: int
    layers: int
    heads: int
    positions: int  # the longest sequence of steps it reads
    dropout: float
    prompt_dropout: float  # share of training clips whose prompt is replaced by the null vector, for guidance
    end_of_audio: bool  # class 0 in an active cell means the clip has ended
    codebook_size: int = 1024
    frames: int | None = None  # of the longest clip that it learned; None: not known
    codec: dict[str, Any] = field(default_factory=dict)
    embedder: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> ModelConfig:
        """From JSON that anybody may have written. Raises TypeError for what is no model's."""
        if not isinstance(found, dict):
            raise TypeError("its settings are no JSON object")
        known = {f.name: str(f.type) for f in fields(cls)}
        kinds: dict[str, type | tuple[type, ...]] = {
            "int": int, "int | None": (int, type(None)), "str": str, "float": (int, float), "bool": bool,
            "dict[str, Any]": dict,
        }  # fmt: skip
        for name, value in found.items():
            kind = known.get(name)
            if kind is None:
                continue
            fits, counted = isinstance(value, kinds[kind]), kind.startswith("int") and value is not None
            if not fits or (kind != "bool" and isinstance(value, bool)) or (counted and value < 1):
                raise TypeError(f"its {name} is {value!r:.40}")
        return cls(**{name: value for name, value in found.items() if name in known})

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InputError(f"model.width={self.width} does not divide into model.heads={self.heads}")


class CodebookHeads(nn.Module):
    """One linear classifier a codebook: rows [K, N, D] -> logits [K, N, C]."""

    def __init__(self, codebooks: int, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(codebooks, classes, width))
        self.bias = nn.Parameter(torch.zeros(codebooks, classes))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [K, N, D] -> logits [K, N, C]: row n of codebook k meets the k-th matrix only."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        classes = weight.shape[1]
        if rows.is_cuda:  # 1025 columns are on no boundary that a GPU's matrix units want
            spare = -classes % 64
            weight, bias = F.pad(weight, (0, 0, 0, spare)), F.pad(bias, (0, spare))
        return torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))[..., :classes]


class CodecGPT(nn.Module):
    """The language model. `forward` is the training loss; `step` and `logits` serve sampling."""

    prompt_mean: Tensor
    prompt_std: Tensor
    offsets: Tensor

    def __init__(self, config: ModelConfig, backbone: GPT2Model | None = None) -> None:
        """A model with fresh weights, or around the pretrained `backbone` (in train mode either way)."""
        super().__init__()
        self.config = config
        self.pattern = Pattern(config.pattern, config.codebooks)
        self.backbone = backbone or GPT2Model(_gpt2_config(config))
        self.backbone.register_module(
            "wte", None
        )  # GPT-2's own vocabulary is never read: 38.6 M of the 124 M parameters
        self.classes = config.codebook_size + 1
        self.codes = nn.Embedding(config.codebooks * self.classes, config.width)
        self.head = CodebookHeads(config.codebooks, config.width, self.classes)
        same = config.prompt_dim == config.width
        self.prompt = nn.Identity() if same else nn.Linear(config.prompt_dim, config.width)
        self.null_prompt = nn.Parameter(torch.empty(config.width))
        self.label_smoothing = 0.0  # of the training loss alone
        self.register_buffer("prompt_mean", torch.zeros(config.prompt_dim))
        self.register_buffer("prompt_std", torch.ones(config.prompt_dim))
        self.register_buffer("offsets", torch.arange(config.codebooks)[:, None] * self.classes, persistent=False)
        # the sum of K embeddings has the deviation of GPT-2's word embeddings; unit normals would drown its positions
        nn.init.normal_(self.codes.weight, std=0.14 / config.codebooks**0.5)
        nn.init.normal_(self.null_prompt, std=0.02)
        # logits of deviation 0.4, so that the loss starts at ln C + 0.08: smaller ones learn to repeat a code far later
        norm = torch.stack([self.backbone.ln_f.weight, self.backbone.ln_f.bias]).detach().norm()
        nn.init.normal_(self.head.weight, std=0.4 / float(norm))
        self.train()

    def fit_prompt_normalization(self, prompts: Tensor) -> None:
        """Take mean and deviation from a sample of prompts [N, P]: embedders differ in scale by large factors.

        Raises InputError where none is finite.
        """
        prompts = prompts[prompts.isfinite().all(1)]
        if not len(prompts):
            raise InputError("no prompt of the cache is finite: preprocess it again with reembed=true")
        self.prompt_mean.copy_(prompts.float().mean(0))
        self.prompt_std.copy_(prompts.float().std(0, correction=0).clamp_min(1e-3))

    # ---- what goes in ------------------------------------------------------------------------------------------
    def condition(self, prompt: Tensor | None, batch: int, drop: Tensor | None = None) -> Tensor:
        """Prompts [B, P] -> position 0 [B, 1, D]; the learned null vector where there is none or `drop` [B] says so."""
        null = self.null_prompt.expand(batch, -1)
        if prompt is None:
            return null[:, None]
        scaled = (prompt.float() - self.prompt_mean.float()) / self.prompt_std.float()
        vector = self.prompt(scaled.to(self.null_prompt.dtype))
        if drop is not None:
            vector = torch.where(drop[:, None], null, vector)
        return vector[:, None]

    def embed(self, laid: Tensor) -> Tensor:
        """Tokens as laid out [B, K, S] -> the sum of their embeddings [B, S, D]."""
        return self.codes(laid + self.offsets).sum(1)

    def targets(self, codes: Tensor, frames: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes [B, K, T] of `frames` [B] real frames each -> tokens [B, K, T'] and their lengths [B].

        Padded frames become EMPTY; with end_of_audio one frame of EMPTY is added that counts as real.
        """
        B, _, T = codes.shape
        lengths = torch.full((B,), T, device=codes.device) if frames is None else frames
        padded = torch.arange(T, device=codes.device) >= lengths[:, None, None]
        tokens = (codes.long() + 1).masked_fill(padded, SPECIAL_TOKEN)
        if self.config.end_of_audio:
            return F.pad(tokens, (0, 1), value=SPECIAL_TOKEN), lengths + 1
        return tokens, lengths

    # ---- training ----------------------------------------------------------------------------------------------
    def forward(
        self, codes: Tensor, frames: Tensor | None = None, prompt: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes [B, K, T] (0..1023), real frames [B], prompts [B, P] -> cross-entropy summed in nats [K], cells [K].

        The loss of training is the first's sum over the second's: the mean over active cells of real frames.
        """
        tokens, lengths = self.targets(codes, frames)
        laid = self.pattern.build_sequence(tokens, lengths)
        drop = None
        if self.training and prompt is not None and self.config.prompt_dropout:
            drop = torch.rand(len(codes), device=codes.device) < self.config.prompt_dropout
        inputs = torch.cat([self.condition(prompt, len(codes), drop), self.embed(laid[:, :, :-1])], 1)
        nats, cells = self.token_loss(self.backbone_forward(inputs), tokens, lengths)
        return nats, cells.expand(len(nats))

    def token_loss(self, hidden: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats [K] of tokens [B, K, T] under hidden states [B, S, D]; number of cells []."""
        B, K, T = tokens.shape
        logits = self.head(self.pattern.gather_positions(hidden, T, lengths).flatten(1, 2)).float()  # [K, B*T, C]
        wanted = tokens.transpose(0, 1).flatten()
        smoothing = self.label_smoothing if self.training else 0.0
        nats = F.cross_entropy(logits.flatten(0, 1), wanted, reduction="none", label_smoothing=smoothing)
        real = (torch.arange(T, device=tokens.device) < lengths[:, None]).flatten()  # [B*T]
        return nats.view(K, B * T).masked_fill(~real, 0).sum(1), real.sum()

    def compile_parts(self) -> None:
        """Compile what training spends its time in: each layer, and head and loss, whose logits are then made once."""
        for block in self.backbone.h:
            block.compile()
        self.token_loss = torch.compile(self.token_loss)  # type: ignore[method-assign]

    def backbone_forward(self, inputs: Tensor) -> Tensor:
        """Inputs [B, S, D] -> the backbone's output [B, S, D], each position seeing those before it.

        As `GPT2Model.forward`, which on a GPU makes the host wait while it looks whether there is a mask.
        """
        x = self.backbone.drop(inputs + self.backbone.wpe(torch.arange(inputs.shape[1], device=inputs.device)))
        for block in self.backbone.h:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x  # as of transformers 5.0, which gives one
        return self.backbone.ln_f(x)

    # ---- sampling ----------------------------------------------------------------------------------------------
    def head_logits(self, hidden: Tensor) -> Tensor:
        """The backbone's output [B, S, D] -> logits [B, S, K, C] in float32."""
        rows = hidden.flatten(0, 1).expand(self.config.codebooks, -1, -1)
        return self.head(rows).float().transpose(0, 1).unflatten(0, hidden.shape[:2])

    def logits(self, laid: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Logits [B, S, K, C] of every step of tokens [B, K, S], each seeing the prompt and the steps before it."""
        inputs = torch.cat([self.condition(prompt, len(laid)), self.embed(laid[:, :, :-1])], 1)
        return self.head_logits(self.backbone_forward(inputs))

    # ---- files -------------------------------------------------------------------------------------------------
    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json`: all that inference needs of the model."""
        write_pretrained(folder, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "cpu") -> CodecGPT:
        """A model in eval mode from a folder that `save_pretrained` wrote, or from such a repository on the hub.

        Raises InputError where neither exists or the files are not a CodecGPT's.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(source)
        if not folder.is_dir():
            folder = _from_hub(str(source))
        try:
            found = json.loads((folder / CONFIG).read_text())
            config = ModelConfig.parse(found)
            _check_export(folder, found)
            state = load_file(folder / WEIGHTS)
            _refuse_other_sizes(config, state)
            model = cls(config)
            model.load_state_dict(state)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, RecursionError, SafetensorError) as error:
            why = one_line(error)
            raise InputError(
                f"{folder}: no exported CodecGPT ({why:.300}); `python -m pipeline.export run=RUN` writes one"
            ) from error
        return model.to(device).eval()


def write_pretrained(folder: str | Path, config: ModelConfig, state: dict[str, Tensor]) -> None:
    """Write a model's weights and its config, which holds the sha256 of the weights' file and its own.

    The config is written last: until then the folder has none, or one that does not match the new weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(state, folder / WEIGHTS)
    content = with_checksum({**asdict(config), "files": {WEIGHTS: sha256_file(folder / WEIGHTS)}})
    write_atomic(folder / CONFIG, json.dumps(content, indent=2) + "\n")


def _check_export(folder: Path, content: Mapping[str, Any]) -> None:
    """Raises ValueError where an export's config or weights are not what was written; older ones have no checksums."""
    if not is_intact(content):
        raise ValueError(f"{CONFIG} has changed since it was written: its sha256 differs")
    files = content.get("files")
    if isinstance(files, dict) and WEIGHTS in files and sha256_file(folder / WEIGHTS) != files[WEIGHTS]:
        raise ValueError(f"{WEIGHTS} has changed since it was written: its sha256 differs")


def build_model(config: ModelConfig, pretrained: str | None = None) -> CodecGPT:
    """A CodecGPT from scratch, or around GPT-2 weights from the hub or a local folder.

    A longer sequence than the pretrained position table extends it with new rows. Raises InputError as `load_gpt2`.
    """
    if pretrained is None:
        return CodecGPT(config)
    backbone = load_gpt2(pretrained, config)
    known = backbone.config.n_positions
    if config.positions > known:
        log.info("position table extended from %d to %d rows; the new ones start untrained", known, config.positions)
        table = nn.Embedding(config.positions, config.width)
        nn.init.normal_(table.weight, std=backbone.config.initializer_range)
        table.weight.data[:known] = backbone.wpe.weight.data
        backbone.wpe, backbone.config.n_positions = table, config.positions
    return CodecGPT(config, backbone)


def load_gpt2(pretrained: str, config: ModelConfig) -> GPT2Model:
    """GPT-2's weights from the hub or a local folder, in a backbone for a model of this config.

    Raises InputError where they are not available, are damaged, are not of the config's size, or leave a weight unset.
    """
    where = f"model.pretrained={pretrained}"
    folder = Path(pretrained)
    if folder.is_dir() and not (folder / CONFIG).is_file():
        raise InputError(f"{where}: the folder has no {CONFIG}; give one that holds GPT-2's {CONFIG} and {WEIGHTS}")
    dropouts: dict[str, Any] = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), config.dropout)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report of the weights that it does not find: ours is one line
    try:
        settings = GPT2Config.from_pretrained(pretrained, **dropouts, activation_function=GELU)
        _check_gpt2_config(where, settings, config)
        loaded: Any = GPT2Model.from_pretrained(pretrained, config=settings, output_loading_info=True)
        backbone, info = loaded
    except InputError:
        raise
    except Exception as error:  # transformers, safetensors, pickle and the hub's client have errors of their own
        if isinstance(error, OSError) and not folder.is_dir():
            raise InputError(
                f"{where}: not on this machine, and the hub did not give it. Run `hf download {pretrained}` where "
                "there is a network, give a folder by model.pretrained=DIR, or start from scratch with model=small"
            ) from error
        why = one_line(error)
        raise InputError(f"{where}: its files are damaged or not GPT-2's ({why:.200}); fetch them again") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    unset = sorted({*info["missing_keys"]} - {"wte.weight"})  # a vocabulary that is never read
    if unset:
        raise InputError(f"{where} leaves weights unset ({unset[0]}, {len(unset)} in all): give all of GPT-2's weights")
    if odd := [name for name, value in backbone.named_parameters() if not value.isfinite().all()]:
        raise InputError(f"{where}: {odd[0]} holds numbers that are not finite; fetch the files again")
    return backbone


def _check_gpt2_config(where: str, found: GPT2Config, config: ModelConfig) -> None:
    """Raises InputError unless GPT-2's config is of the size of the model's."""
    if hasattr(found, "codebooks"):
        raise InputError(
            f"{where} is an export of this program, and GPT-2's weights are expected: give gpt2 or a folder with its "
            "files; to continue a run give resume=RUN"
        )
    size = (found.n_embd, found.n_layer, found.n_head)
    if size != (config.width, config.layers, config.heads):
        raise InputError(
            f"{where} is {size[0]} wide with {size[1]} layers and {size[2]} heads, but the settings model.width, "
            f"layers, heads say {config.width}, {config.layers}, {config.heads}"
        )


def _refuse_other_sizes(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Raises ValueError where the weights are not of the config's sizes: before memory is asked for by the latter."""
    layers = len({name.split(".")[2] for name in state if name.startswith("backbone.h.")})
    sizes = {
        "codes.weight": (config.codebooks * (config.codebook_size + 1), config.width),
        "backbone.wpe.weight": (config.positions, config.width),
        "prompt_mean": (config.prompt_dim,),
    }
    wrong = [
        f"{name} {list(state[name].shape)} is not {list(size)}"
        for name, size in sizes.items()
        if state[name].shape != size
    ]
    if layers != config.layers:
        wrong.append(f"{layers} layers are not {config.layers}")
    if wrong:
        raise ValueError("; ".join(wrong))


def _gpt2_config(config: ModelConfig) -> GPT2Config:
    return GPT2Config(
        vocab_size=1, bos_token_id=0, eos_token_id=0,
        n_positions=config.positions, n_embd=config.width, n_layer=config.layers, n_head=config.heads,
        attn_pdrop=config.dropout, resid_pdrop=config.dropout, embd_pdrop=config.dropout, activation_function=GELU,
    )  # fmt: skip


def _from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=[WEIGHTS, CONFIG]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{source}: neither a folder here nor a model that the hub gives ({type(error).__name__})"
        ) from error
