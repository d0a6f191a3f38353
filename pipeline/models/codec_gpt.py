"""CodecGPT: a GPT-2 over codec tokens. A step is the sum of K code embeddings; a prefix of conditions comes first.

    position   0 ... L-2   L-1      L          L+1        ...   L+S-2
    input      prefix      prefix   step 0     step 1     ...   step S-2
    predicts               step 0   step 1     step 2     ...   step S-1

By default the prefix is one prompt vector: L = 1.

Letters: B clips, K codebooks, T frames, S steps, L positions of the prefix, D width, C classes (the special token and
the codes), P prompt width, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.common.errors import InputError
from pipeline.common.import_guards import hide_broken_packages
from pipeline.models.conditions.base import Condition, LabelCondition
from pipeline.models.inference_layers import GELU
from pipeline.models.model_config import ModelConfig
from pipeline.models.model_files import download_model, invalid_export, read_pretrained, write_pretrained
from pipeline.models.pattern import SPECIAL_TOKEN

with hide_broken_packages("torchaudio", "torchvision"):  # transformers imports both where they are installed
    from transformers import GPT2Config, GPT2Model

if TYPE_CHECKING:
    from pipeline.models.lora import Adapter


class CodecGPT(nn.Module):
    """The language model. `forward` returns the training loss; `logits` and the inference engine serve sampling."""

    prompt_mean: Tensor
    prompt_std: Tensor
    offsets: Tensor

    def __init__(self, config: ModelConfig, backbone: GPT2Model | None = None) -> None:
        """Create a model, in train mode, with new weights or around a pretrained `backbone`."""
        super().__init__()
        self.config = config
        self.pattern = config.build_pattern()
        self.backbone = backbone or GPT2Model(_gpt2_config(config))
        self.backbone.register_module("wte", None)  # GPT-2's vocabulary, 38.6 M of its 124 M parameters, is not used
        self.classes = config.codebook_size + 1
        self.codes = nn.Embedding(config.codebooks * self.classes, config.width)
        self.head = self.pattern.settings.build_head(config.head_size)
        self.conditions = nn.ModuleList([settings.build(config, self) for settings in config.condition_settings])
        self.label_smoothing = 0.0  # only in training
        self.weights_sha256 = ""  # of the file from which the model was loaded
        self.is_quantized = False  # whether that file has weights of 8 bits
        self.adapter: Adapter | None = None  # that is trained, while all other weights are frozen
        self.register_buffer("offsets", torch.arange(config.codebooks)[:, None] * self.classes, persistent=False)
        self._init_weights()
        self.train()

    def _init_weights(self) -> None:
        """Initialize everything except the backbone."""
        # the sum of K embeddings has the deviation of GPT-2's word embeddings; unit normals would drown its positions
        nn.init.normal_(self.codes.weight, std=0.14 / self.config.codebooks**0.5)
        for condition in self.condition_list:
            condition.init_weights()
        norm = torch.stack([self.backbone.ln_f.weight, self.backbone.ln_f.bias]).detach().norm()
        self.head.init_weights(float(norm))

    @property
    def condition_list(self) -> Sequence[Condition]:
        """The conditions, in the order of the prefix."""
        return cast(Sequence[Condition], self.conditions)

    @property
    def label_conditions(self) -> dict[str, LabelCondition]:
        """The conditions on labels, by name."""
        return {each.name: each for each in self.condition_list if isinstance(each, LabelCondition)}

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.codes.weight.device

    def fit_prompt_normalization(self, prompts: Tensor) -> None:
        """Set the mean and deviation of prompts from a sample [..., P]: embedders differ in scale by large factors.

        Raises:
            InputError: no prompt is finite.
        """
        prompts = prompts.flatten(0, -2)
        prompts = prompts[prompts.isfinite().all(1)]
        if not len(prompts):
            raise InputError("no prompt of the dataset is finite: preprocess it again with reembed=true")
        self.prompt_mean.copy_(prompts.float().mean(0))
        self.prompt_std.copy_(prompts.float().std(0, correction=0).clamp_min(1e-3))

    def condition_values(self, prompts: Tensor, labels: Mapping[str, Sequence[object]]) -> dict[str, Tensor]:
        """The values of the conditions of a batch, by name, on the model's device; unknown labels count as missing.

        Args:
            prompts: [B, P] or [B, N, P].
            labels: the value of each clip, by the name of the label; None where a clip has none.
        """
        values = {each.name: prompts for each in self.condition_list}
        for name, condition in self.label_conditions.items():
            clips = labels.get(name, [None] * len(prompts))
            values[name] = condition.encode_all(clips).to(self.device, non_blocking=True)
        return values

    # ---- inputs and targets ------------------------------------------------------------------------------------
    def prefix(
        self, values: Mapping[str, Tensor] | None, batch: int, drop: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The inputs before the first step.

        Args:
            values: values [B, ...] by the condition's name; without its name, a condition has its null vector.
            batch: B.
            drop: bool [B] by the condition's name, clips that get the null vector instead of their value.

        Returns:
            [B, L, D].
        """
        values, drop = values or {}, drop or {}
        assert values.keys() <= {each.name for each in self.condition_list}, [*values]
        return torch.cat([each(values.get(each.name), batch, drop.get(each.name)) for each in self.condition_list], 1)

    def draw_drops(self, values: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        """Which clips of a training batch lose a condition, together with all others or alone: bool [B] by name."""
        drops: dict[str, Tensor] = {}
        if values and self.config.prompt_dropout:
            all_conditions = torch.rand(batch, device=self.device) < self.config.prompt_dropout  # [B]
            drops = dict.fromkeys(values, all_conditions)
        for each in self.condition_list:
            if each.name in values and each.dropout:
                alone = torch.rand(batch, device=self.device) < each.dropout
                drops[each.name] = drops[each.name] | alone if each.name in drops else alone
        return drops

    def embed(self, sequence: Tensor) -> Tensor:
        """A token sequence [B, K, S] -> the sum of its embeddings over codebooks [B, S, D]."""
        embeddings: Tensor = self.codes(sequence + self.offsets)  # [B, K, S, D]
        return embeddings.sum(1)

    def targets(self, codes: Tensor, frames: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes [B, K, T] with `frames` [B] real frames each -> tokens [B, K, T'] and their lengths [B].

        Padded frames become the special token. With end_of_audio one frame of special tokens is added, which counts as
        real, so that T' = T + 1.
        """
        B, _, T = codes.shape
        lengths = torch.full((B,), T, device=codes.device) if frames is None else frames
        is_padding = torch.arange(T, device=codes.device) >= lengths[:, None, None]  # [B, 1, T]
        tokens = (codes.long() + 1).masked_fill(is_padding, SPECIAL_TOKEN)
        if self.config.end_of_audio:
            return F.pad(tokens, (0, 1), value=SPECIAL_TOKEN), lengths + 1
        return tokens, lengths

    # ---- training ----------------------------------------------------------------------------------------------
    def forward(
        self, codes: Tensor, frames: Tensor | None = None, values: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The training loss as a sum; the mean over all tokens is the first sum divided by the second.

        Args:
            codes: 0..codebook_size - 1 [B, K, T].
            frames: real frames of each clip [B]; None: all.
            values: values [B, ...] of conditions by name, see `prefix`.

        Returns:
            Summed cross-entropy in nats [K], and number of tokens [K], over active cells of real frames.
        """
        tokens, lengths = self.targets(codes, frames)  # [B, K, T], [B]
        sequence = self.pattern.build_sequence(tokens, lengths)  # [B, K, S]
        drop = self.draw_drops(values or {}, len(codes)) if self.training else None
        hidden = self.backbone_forward(self.inputs(sequence, values, drop))  # [B, S, D]
        loss_sums, num_tokens = self.token_loss(hidden, tokens, lengths)
        return loss_sums, num_tokens.expand(len(loss_sums))

    def token_loss(self, hidden: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats [K], and number of tokens per codebook [].

        Args:
            hidden: output of the backbone [B, S, D].
            tokens: the targets [B, K, T].
            lengths: real frames of each clip [B].
        """
        B, K, T = tokens.shape
        rows = self.pattern.gather_positions(hidden, T, lengths).flatten(1, 2)  # [K, B, T, D] -> [K, B*T, D]
        targets = tokens.transpose(0, 1).flatten(1)  # [K, B*T]
        logits = self.head(rows, targets).float()  # [K, B*T, C]
        smoothing = self.label_smoothing if self.training else 0.0
        losses = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
        )  # [K*B*T]
        is_real = (torch.arange(T, device=tokens.device) < lengths[:, None]).flatten()  # [B*T]
        return losses.view(K, B * T).masked_fill(~is_real, 0).sum(1), is_real.sum()  # [K], []

    def compile_parts(self) -> None:
        """Compile what dominates training: each layer, and the heads with the loss, so that logits exist only once."""
        for block in self.backbone.h:
            block.compile()
        self.token_loss = torch.compile(self.token_loss)  # type: ignore[method-assign]

    def enable_checkpointing(self) -> None:
        """Store only the inputs of layers, and compute the rest again in the backward pass."""
        self.backbone.activation_checkpointing_enable()
        self.head.enable_checkpointing()

    def inputs(
        self, sequence: Tensor, values: Mapping[str, Tensor] | None = None, drop: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Inputs of the backbone [B, L + S - 1, D] for a sequence [B, K, S]: the prefix, and all steps but the last."""
        return torch.cat([self.prefix(values, len(sequence), drop), self.embed(sequence[:, :, :-1])], 1)

    def backbone_forward(self, inputs: Tensor) -> Tensor:
        """Inputs [B, L + S - 1, D] -> output of the backbone [B, S, D], whose row s predicts step s.

        Each position attends to itself and those before it.

        It replaces `GPT2Model.forward`, in which the host waits for a GPU to find out whether there is a mask.
        """
        x: Tensor = self.backbone.drop(inputs + self.backbone.wpe(torch.arange(inputs.shape[1], device=inputs.device)))
        for block in self.backbone.h:
            x = block(x)
        normalized: Tensor = self.backbone.ln_f(x[:, self.config.prefix_length - 1 :])
        return normalized

    # ---- sampling ----------------------------------------------------------------------------------------------
    def head_logits(self, hidden: Tensor, sequence: Tensor) -> Tensor:
        """Output of the backbone [B, S, D] and the steps themselves [B, K, S] -> logits [B, S, K, C] in float32."""
        rows = hidden.flatten(0, 1).expand(self.config.codebooks, -1, -1)  # [K, B*S, D]
        logits: Tensor = self.head(rows, sequence.transpose(0, 1).flatten(1)).float()  # [K, B*S, C]
        by_step: Tensor = logits.transpose(0, 1).unflatten(0, hidden.shape[:2])
        return by_step

    def logits(self, sequence: Tensor, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """A sequence [B, K, S] -> logits [B, S, K, C] of every step, given the conditions and the steps before.

        Under some patterns the logits of a codebook also depend on the codes of those before it in the same step.
        """
        return self.head_logits(self.backbone_forward(self.inputs(sequence, values)), sequence)

    # ---- files -------------------------------------------------------------------------------------------------
    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json`: all that inference needs of the model."""
        write_pretrained(folder, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "cpu", local_only: bool = False) -> CodecGPT:
        """Load a model, in eval mode.

        Args:
            source: a folder that `save_pretrained` wrote, or a Hub repository with its files; or the folder of an
                adapter, which is merged into its base.
            device: where to put it.
            local_only: do not download a repository, only read what was downloaded before.

        Raises:
            InputError: the files do not exist, are damaged, or are not those of a CodecGPT.
        """
        from pipeline.models import lora

        folder = Path(source)
        if not folder.is_dir():
            folder = download_model(str(source), local_only)
        if lora.is_adapter(folder):
            return lora.load_merged(folder).to(device)
        files = read_pretrained(folder)
        try:
            model = cls(files.config)
            model.load_state_dict(files.state)
        except (TypeError, ValueError, RuntimeError) as error:
            raise invalid_export(folder, error) from error
        model.weights_sha256, model.is_quantized = files.weights_sha256, files.is_quantized
        return model.to(device).eval()


def _gpt2_config(config: ModelConfig) -> GPT2Config:
    return GPT2Config(
        vocab_size=1, bos_token_id=0, eos_token_id=0,
        n_positions=config.backbone_positions, n_embd=config.width, n_layer=config.layers, n_head=config.heads,
        attn_pdrop=config.dropout, resid_pdrop=config.dropout, embd_pdrop=config.dropout, activation_function=GELU,
    )  # fmt: skip
