"""What the baselines share: reading activations at a site, editing them there, and one principal direction.

A site is a place in every decoder block where a method reads or writes:

| site | what it is | width |
|---|---|---|
| `block_input` | residual stream that enters the block (block 0: the embeddings) | d |
| `residual` | residual stream that leaves the block | d |
| `mlp` | output of the MLP, before it is added to the residual stream | d |
| `heads` | attention heads' outputs side by side, the input of the output projection | K * d_h |
| `attention_output` | output of the output projection | d |

K is the number of query heads and d_h the width of one; K * d_h need not be d.

Only forward hooks are used; leaving an edit removes them and restores outputs bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from grains_ref.data import PreferencePair
from grains_ref.models import HuggingFaceModel, Item

Site = Literal["block_input", "residual", "mlp", "heads", "attention_output"]
Positions = Literal["all", "after_prompt"]
Sign = Literal["score", "loading", "mean"]
Change: TypeAlias = Callable[[Tensor], Tensor]  # (B, n, width) -> the same shape, in float32 or wider


@dataclass(frozen=True, eq=False)
class Setting:
    """One point of a method's search grid: what a table calls it, its strength, and the steering it stands for.

    Two settings are never equal, whatever they are called: only their steering tells them apart.
    """

    label: str
    strength: float
    steering: Callable[[], AbstractContextManager[object]]


# ------------------------------------------------------------------------------------------- reading
@torch.no_grad()
def capture(model: HuggingFaceModel, items: Sequence[Item], *, site: Site, last: int = 1) -> Tensor:
    """Activations of every block at the last tokens of prompt + response: (N, L, last, width), on the CPU.

    items: (prompt, response) or (prompt, response, image) as for `HuggingFaceModel.score`; an empty response reads
    the prompt's own last tokens.  One item at a time, unpadded; float32 or wider.

    Convention: `residual` is the block's raw output, also of the last block, before the final norm.

    Raises:
        ValueError: an item has fewer than `last` tokens, or there is no item.
    """
    if not items or last < 1:
        raise ValueError(f"need at least one item and one token; got {len(items)} items and last = {last}")
    states = []
    for prompt, response, *image in items:
        encoded = model.encode(prompt, image[0] if image else None)
        ids = model.response_ids(prompt, response) if response else torch.zeros(0, dtype=torch.long)
        n = len(encoded.ids) + len(ids)
        if n < last:
            raise ValueError(f"{prompt!r} and its response have {n} tokens; the last {last} were asked for")
        seen: list[Tensor] = []
        with ExitStack() as stack:
            for block in model.blocks:
                stack.enter_context(_hook(block, site, seen.append))
            model.logits(encoded, encoded.embeds[None], torch.cat([ids, ids.new_zeros(1)]))  # the 0 is never fed
        states.append(torch.stack([_wide(x[0, -last:]).cpu() for x in seen]))  # (L, last, width)
    return torch.stack(states)


def answer_differences(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> Tensor:
    """Residual stream at the last token of the chosen answer minus that of the rejected one: (N, L, d).

    Raises:
        ValueError: no pair, or see `HuggingFaceModel.encode`.
    """
    chosen = capture(model, [(p.prompt, p.chosen, p.image) for p in pairs], site="residual")
    rejected = capture(model, [(p.prompt, p.rejected, p.image) for p in pairs], site="residual")
    return (chosen - rejected)[:, :, 0]


def n_heads(model: HuggingFaceModel) -> int:
    """K, the number of query heads; the key/value heads may be fewer."""
    return int(model.text_config.num_attention_heads)


# ------------------------------------------------------------------------------------------- editing
class Edit:
    """Change one site of some decoder blocks while entered: `with Edit(model, "mlp", {3: change}):`.

    changes: block number -> function from (B, n, width) in float32 or wider to the same shape.
    positions: `all` edits every token of prompt and answer.  `after_prompt` edits the prompt's last token and
    everything after it, so that the prediction of the answer's first token is the first to change.

    Convention: `after_prompt` is what editing "the last token" of each cached generation step amounts to; the same
      edit of only the last row in a pass over prompt + answer would leave the answer's score as it was.
      It needs runs with a cache (as `score` and `generate` make them), which tell where the prompt ends: what is run
      on an empty cache is taken for the whole prompt.

    Raises:
        ValueError: a block does not exist; a change alters the shape; `after_prompt` in a run without a cache.
    """

    def __init__(
        self, model: HuggingFaceModel, site: Site, changes: Mapping[int, Change], *, positions: Positions = "all"
    ) -> None:
        unknown = set(changes) - set(range(len(model.blocks)))
        if unknown:
            raise ValueError(f"blocks {sorted(unknown)} do not exist; the model has 0 to {len(model.blocks) - 1}")
        self._model, self._site, self._changes, self._positions = model, site, dict(changes), positions
        self._entered: list[ExitStack] = []
        self._in_prompt = True

    def __enter__(self) -> Edit:
        with ExitStack() as stack:
            if self._positions == "after_prompt":
                decoder = self._model.hf.get_decoder()
                handle = decoder.register_forward_pre_hook(self._look, with_kwargs=True)
                stack.callback(handle.remove)
            for block, change in self._changes.items():
                stack.enter_context(_hook(self._model.blocks[block], self._site, self._edit(change)))
            self._entered.append(stack.pop_all())
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered.pop().close()

    def _look(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before each pass: is it the prompt's?"""
        if kwargs.get("use_cache") is False:
            raise ValueError(
                "positions='after_prompt' needs a run with a cache, which tells where the prompt ends; score with "
                "`model.score` or `model.generate`, or edit all positions"
            )
        cache = kwargs.get("past_key_values")
        self._in_prompt = cache is None or cache.get_seq_length() == 0

    def _edit(self, change: Change) -> Callable[[Tensor], Tensor]:
        def edited(x: Tensor) -> Tensor:
            first = x.shape[1] - 1 if self._positions == "after_prompt" and self._in_prompt else 0
            new = change(_wide(x[:, first:])).to(x)
            if new.shape != x[:, first:].shape:
                raise ValueError(
                    f"a change must keep the shape {tuple(x[:, first:].shape)}; it gave {tuple(new.shape)}"
                )
            return torch.cat([x[:, :first], new], dim=1)

        return edited


@contextmanager
def edit_pixels(model: HuggingFaceModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change a picture's processed pixel values before the vision tower sees them, in scoring and in generation.

    change: gets the pixels as the tower does (`Family.pixel_layout`): (views, 3, height, width) for LLaVA-NeXT and
    Gemma 3, (patches, values) for Qwen2.5-VL.  Several pictures generated from at once come one behind the other.

    Convention: hooked at the tower's entrance, as transformers' `generate` runs the tower before the model.

    Raises:
        ValueError: a text model.
    """
    if not model.family.marker:
        raise ValueError(f"{model.name} is a text model and takes no pictures")

    def edit(tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"pixel_values": change(kwargs["pixel_values"])}

    tower = model.family.vision_tower(model.hf)
    handle = tower.register_forward_pre_hook(edit, with_kwargs=True)
    try:
        with model.fresh_image_features():
            yield
    finally:
        handle.remove()


@contextmanager
def together(*parts: AbstractContextManager[object]) -> Iterator[None]:
    """Several edits as one, entered in the order given."""
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part)
        yield


def _hook(block: nn.Module, site: Site, see: Callable[[Tensor], Tensor | None]) -> AbstractContextManager[None]:
    """Hook one site: `see` gets (B, n, width) and returns what to put there, or None to leave it."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
        new = see(args[0])
        return None if new is None else (new, *args[1:])

    def after(module: nn.Module, args: Any, output: Any) -> Any:  # a tensor, or before transformers 5 a tuple
        new = see(output[0] if isinstance(output, tuple) else output)
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    @contextmanager
    def hooked() -> Iterator[None]:
        module = _module(block, site)
        early = site in ("block_input", "heads")
        handle = module.register_forward_pre_hook(before) if early else module.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()

    return hooked()


def _module(block: nn.Module, site: Site) -> nn.Module:
    if site in ("block_input", "residual"):
        return block
    return block.get_submodule("mlp" if site == "mlp" else "self_attn.o_proj")


# ----------------------------------------------------------------------------------------- directions
def check_vectors(model: HuggingFaceModel, v: Tensor) -> None:
    """Check that vectors are one per block and as wide as the residual stream, (L, d).

    Raises:
        ValueError: they are not; they were fitted on another model.
    """
    expected = (len(model.blocks), model.width)
    if v.shape != expected:
        raise ValueError(f"{model.name} needs vectors (L, d) = {expected}; got {tuple(v.shape)}, from another model?")


def unit(x: Tensor) -> Tensor:
    """n(x) = x / max(|x|, 1e-12) along the last axis; a zero vector stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def keep_norm(x: Tensor, y: Tensor) -> Tensor:
    r"""|x| * n(n(x) + y): move every token's direction by y, measured in units of its norm, and keep its norm."""
    return x.norm(dim=-1, keepdim=True) * unit(unit(x) + y)


def first_component(rows: Tensor, *, centred: bool, sign: Sign) -> tuple[Tensor, Tensor]:
    r"""First principal direction of (N, D) rows, unit length, and their mean: two (D,) in float64.

    sign: `score` makes the largest projection of a row positive; `loading` makes the largest entry of the direction
    positive (scikit-learn from 1.5 on); `mean` makes the projection of the mean positive.
    Rows without any spread give the direction 0.

    Convention: centring removes the shift that all rows share; the first component is then the axis along which they
      differ. Neither `score` nor `loading` has anything to do with what the rows mean.

    Raises:
        ValueError: fewer than 3 rows (with two, `score` is a tie), or a value is not finite.
    """
    if rows.ndim != 2 or len(rows) < 3 or not rows.isfinite().all():
        raise ValueError(f"need at least 3 finite rows (N, D); got {tuple(rows.shape)}")
    rows = rows.double()
    mean = rows.mean(0)
    z = rows - mean if centred else rows
    if z.norm() <= 1e-12 * max(1.0, rows.norm().item()):
        return torch.zeros_like(mean), mean
    direction = torch.linalg.svd(z, full_matrices=False).Vh[0]
    scores = z @ direction
    towards = {
        "score": scores[scores.abs().argmax()],
        "loading": direction[direction.abs().argmax()],
        "mean": mean @ direction,
    }
    return (direction if towards[sign] >= 0 else -direction), mean


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
