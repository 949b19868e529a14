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

Only forward hooks are used, by `grains.Hooks`: an edit acts in the thread or asyncio task that entered it and nowhere
else, and leaving it restores outputs bit for bit.  Edits of one place act in the order in which they were entered.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from grains_ref.data import PreferencePair
from grains_ref.files import check_listed, printable
from grains_ref.grains import DegenerateShiftsError, EarlyHook, Hook, Hooks, at_least_float32, different_numbers
from grains_ref.models import HuggingFaceModel, Item
from grains_ref.models.blocks import part_of

Site = Literal["block_input", "residual", "mlp", "heads", "attention_output"]
Positions: TypeAlias = Literal["all", "after_prompt"] | int  # see `Edit`
Sign = Literal["score", "loading", "mean"]
Change: TypeAlias = Callable[[Tensor], Tensor]  # (B, n, width) -> the same shape, in float32 or wider

LARGEST = 1e17  # of an edited value: a model's own normalisation squares it and sums over the width, in float32
NEGLIGIBLE = 1e-6  # of what is left of numbers that cancel, beside the numbers: rounding, and no direction
DRAWING = threading.Lock()  # held while torch's global random numbers are seeded and drawn


@dataclass(frozen=True, eq=False)
class Setting:
    """One point of a method's search grid: what a table calls it, its strength, and the steering it stands for.

    Two settings are never equal, whatever they are called: only their steering tells them apart.
    """

    label: str
    strength: float
    steering: Callable[[], AbstractContextManager[object]]


# -------------------------------------------------------------------------------------------- arguments
def check_pairs(pairs: Sequence[PreferencePair], *, least: int) -> None:
    """Check that there are pairs, and enough of them.

    Raises:
        TypeError: something else than a list of pairs.
        ValueError: fewer than `least`.
    """
    check_listed("pairs", pairs, "a list of preference pairs, such as read_pairs(file).pairs")
    for pair in pairs:
        if not isinstance(pair, PreferencePair):
            raise TypeError(f"pairs holds a {type(pair).__name__}; expected PreferencePair, as `read_pairs` gives them")
    if len(pairs) < least:
        raise ValueError(f"need at least {'one pair' if least == 1 else f'{least} pairs'}; got {len(pairs)}")


def check_option(name: str, value: object, options: object) -> None:
    """Check that a word is one of those that a `Literal` lists.

    Raises:
        ValueError: it is not.
    """
    words = get_args(options)
    if value not in words:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(words)}")


def whole_number(name: str, value: object, *, least: int = 0, most: float = math.inf) -> int:
    """The value as an int.

    Raises:
        TypeError: it is no whole number (True and False are none).
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or isinstance(value, Tensor):
        raise TypeError(f"{name} is {value!r}; expected a whole number")
    number = int(value.__index__())
    if not least <= number <= most:
        limit = f"at least {least}" if most == math.inf else f"from {least} to {most:g}"
        raise ValueError(f"{name} is {number}; expected a whole number {limit}")
    return number


# ------------------------------------------------------------------------------------------- reading
@torch.no_grad()
def capture(model: HuggingFaceModel, items: Sequence[Item], *, site: Site, last: int = 1) -> Tensor:
    """Activations of every block at the last tokens of prompt + response: (N, L, last, width), on the CPU.

    items: (prompt, response) or (prompt, response, image) as for `HuggingFaceModel.score`; an empty response reads
    the prompt's own last tokens.  One item at a time, unpadded; float32 or wider.

    Convention: `residual` is the block's raw output, also of the last block, before the final norm.

    Raises:
        TypeError: the items are no list.
        ValueError: an item has fewer than `last` tokens, there is no item, or no such site.
        FloatingPointError: an activation is not finite.
    """
    check_listed("items", items, "a list of (prompt, response) or (prompt, response, image)")
    check_option("site", site, Site)
    if not items or whole_number("last", last) < 1:
        raise ValueError(f"need at least one item and one token; got {len(items)} items and last = {last}")
    states = []
    for prompt, response, *image in items:
        encoded = model.encode(prompt, image[0] if image else None)
        ids = model.response_ids(prompt, response) if response else torch.zeros(0, dtype=torch.long)
        n = len(encoded.ids) + len(ids)
        if n < last:
            raise ValueError(f"{prompt!r} and its response have {n} tokens; the last {last} were asked for")
        seen: list[Tensor] = []
        after, before = at_site(model, site, dict.fromkeys(range(len(model.blocks)), seen.append))
        with Hooks(after, before=before):
            model.logits(encoded, encoded.embeds[None], torch.cat([ids, ids.new_zeros(1)]))  # the 0 is never fed
        state = torch.stack([x[0, -last:].to(at_least_float32(x)).cpu() for x in seen])  # (L, last, width)
        check_states(state, what=f"{site} at the end of {printable(repr((prompt, response)))[:80]}")
        states.append(state)
    return torch.stack(states)


def check_states(states: Tensor, *, what: str) -> None:
    """Check that the states of all blocks, (L, ...), are finite.

    Raises:
        FloatingPointError: they are not; the message names the first block.
    """
    wrong = (~states.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if wrong:
        raise FloatingPointError(
            f"block {wrong[0]}: {what}: a value is not finite: a weight of the model is NaN, or half precision "
            "overflowed. Try bfloat16 or float32."
        )


def answer_differences(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> Tensor:
    """Residual stream at the last token of the chosen answer minus that of the rejected one: (N, L, d).

    Raises:
        ValueError: no pair, or see `HuggingFaceModel.encode`.
        FloatingPointError: see `capture`.
    """
    chosen = capture(model, [(p.prompt, p.chosen, p.image) for p in pairs], site="residual")
    rejected = capture(model, [(p.prompt, p.rejected, p.image) for p in pairs], site="residual")
    return (chosen - rejected)[:, :, 0]


def n_heads(model: HuggingFaceModel) -> int:
    """K, the number of query heads; the key/value heads may be fewer."""
    return int(model.text_config.num_attention_heads)


def site_width(model: HuggingFaceModel, site: Site) -> int:
    """How wide a site is: d, or K * d_h for the heads side by side."""
    if site != "heads":
        return model.width
    projection = _module(model.blocks[0], site)
    assert isinstance(projection, nn.Linear)
    return int(projection.in_features)


# ------------------------------------------------------------------------------------------- editing
class Edit(Hooks):
    """Change one site of some decoder blocks while entered: `with Edit(model, "mlp", {3: change}):`.

    changes: block number -> function from (B, n, width) in float32 or wider to the same shape.
    positions: `all` edits every token of prompt and answer.  `after_prompt` edits the prompt's last token and
    everything after it, so that the prediction of the answer's first token is the first to change.  A number n edits
    the prompt's last n tokens and everything after: 1 is `after_prompt`; with 0 the answer's first token is predicted
    as without the edit.

    For whose calls it acts, and what copies do, is as `Hooks` says.

    Convention: `after_prompt` is what editing "the last token" of each cached generation step amounts to; the same
      edit of only the last row in a pass over prompt + answer would leave the answer's score as it was.
      It needs runs with a cache (as `score` and `generate` make them), which tell where the prompt ends: what is run
      on an empty cache is taken for the whole prompt.

    Raises:
        TypeError: a block is no whole number.
        ValueError: a block, site or way of positions does not exist; a change alters the shape; other positions than
            all in a run without a cache.
        FloatingPointError: by the model's run: a value is not finite before the edit, or too large after it.
    """

    def __init__(
        self, model: HuggingFaceModel, site: Site, changes: Mapping[int, Change], *, positions: Positions = "all"
    ) -> None:
        different_numbers("blocks", list(changes), below=len(model.blocks))
        check_option("site", site, Site)
        self._site, self._positions, self._changes = site, positions, dict(changes)
        self._of_prompt = _edited_of_prompt(positions)
        self._in_prompt: dict[int, bool] = {}  # by thread: whether its pass is over a prompt
        edits = {block: self._edit(block, change) for block, change in self._changes.items()}
        after, before = at_site(model, site, edits)
        if self._of_prompt is not None:
            before = [(model.decoder, self._look), *before]
        super().__init__(after, before=before)

    def _look(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before each pass: is it the prompt's?"""
        if kwargs.get("use_cache") is False:
            raise ValueError(
                f"positions={self._positions!r} needs a run with a cache, which tells where the prompt ends; score "
                "with `model.score` or `model.generate`, or edit all positions"
            )
        cache = kwargs.get("past_key_values")
        self._in_prompt[threading.get_ident()] = cache is None or cache.get_seq_length() == 0

    def _edit(self, block: int, change: Change) -> Callable[[Tensor], Tensor]:
        def edited(x: Tensor) -> Tensor:
            first = self._first(x.shape[1])
            if first == x.shape[1]:
                return x
            old = x[:, first:].to(at_least_float32(x))
            if not old.abs().amax().isfinite():  # NaN too
                raise FloatingPointError(f"block {block}: {self._site} is not finite before it is edited")
            new = change(old)
            if new.shape != old.shape:
                raise ValueError(f"a change must keep the shape {tuple(old.shape)}; it gave {tuple(new.shape)}")
            rounded = new.to(x)
            if not rounded.abs().amax() <= LARGEST:  # NaN too
                raise FloatingPointError(
                    f"block {block}: {self._site} is beyond {x.dtype}, or beyond what the model can normalise, after "
                    "the edit. Choose a smaller strength."
                )
            return torch.cat([x[:, :first], rounded], dim=1)

        return edited

    def _first(self, n: int) -> int:
        """The first of n tokens that is edited."""
        if self._of_prompt is None or not self._in_prompt.get(threading.get_ident(), True):
            return 0
        return max(0, n - self._of_prompt)


def _edited_of_prompt(positions: Positions) -> int | None:
    """How many of the prompt's last tokens are edited; None for all."""
    if positions == "all":
        return None
    if positions == "after_prompt":
        return 1
    if isinstance(positions, str):
        raise ValueError(f"positions is {positions!r}; expected all, after_prompt or a number of the prompt's tokens")
    return whole_number("positions", positions)


@contextmanager
def edit_pixels(model: HuggingFaceModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change a picture's processed pixel values before the vision tower sees them, in scoring and in generation.

    change: gets the pixels as the tower does (`Family.pixel_layout`): (views, 3, height, width) for LLaVA-NeXT and
    Gemma 3, (patches, values) for Qwen2.5-VL.  Several pictures generated from at once come one behind the other.

    Convention: hooked at the tower's entrance, as transformers' `generate` runs the tower before the model.

    Raises:
        ValueError: a text model, or a change alters the shape.
        FloatingPointError: by the model's run: a changed pixel is not finite.
    """
    if not model.family.marker:
        raise ValueError(f"{model.name} is a text model and takes no pictures")

    def checked(pixels: Tensor) -> Tensor:
        new = change(pixels)
        if new.shape != pixels.shape:
            raise ValueError(f"a change must keep the shape {tuple(pixels.shape)}; it gave {tuple(new.shape)}")
        if not new.isfinite().all():
            raise FloatingPointError("changed pixels are not finite")
        return new

    def edit(tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (checked(args[0]), *args[1:]), kwargs
        return args, kwargs | {"pixel_values": checked(kwargs["pixel_values"])}

    with Hooks(before=[(model.family.vision_tower(model.hf), edit)]), model.fresh_image_features():
        yield


@contextmanager
def together(*parts: AbstractContextManager[object]) -> Iterator[None]:
    """Several edits as one, entered in the order given."""
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part)
        yield


def at_site(
    model: HuggingFaceModel, site: Site, see: Mapping[int, Callable[[Tensor], Tensor | None]]
) -> tuple[list[tuple[nn.Module, Hook]], list[tuple[nn.Module, EarlyHook]]]:
    """What `Hooks` takes: `see` gets (B, n, width) of its block's site and returns what to put there, or None."""
    after: list[tuple[nn.Module, Hook]] = []
    before: list[tuple[nn.Module, EarlyHook]] = []
    for block, look in see.items():
        module = _module(model.blocks[block], site)
        if site in ("block_input", "heads"):
            before.append((module, _before(look)))
        else:
            after.append((module, _after(look)))
    return after, before


def _before(see: Callable[[Tensor], Tensor | None]) -> EarlyHook:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = see(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    return hook


def _after(see: Callable[[Tensor], Tensor | None]) -> Hook:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:  # a tensor, or before transformers 5 a tuple
        new = see(output[0] if isinstance(output, tuple) else output)
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    return hook


def _module(block: nn.Module, site: Site) -> nn.Module:
    if site in ("block_input", "residual"):
        return block
    return part_of(block, "mlp" if site == "mlp" else "self_attn.o_proj")


# ----------------------------------------------------------------------------------------- directions
def check_vectors(model: HuggingFaceModel, v: Tensor) -> None:
    """Check that vectors are one per block, as wide as the residual stream, (L, d), and finite.

    Raises:
        TypeError: they are no tensor.
        ValueError: they are not; they were fitted on another model.
    """
    if not isinstance(v, Tensor):
        raise TypeError(f"vectors are a {type(v).__name__}; expected a tensor (L, d), as `fit` makes them")
    expected = (len(model.blocks), model.width)
    if v.shape != expected:
        raise ValueError(f"{model.name} needs vectors (L, d) = {expected}; got {tuple(v.shape)}, from another model?")
    if not v.isfinite().all():
        raise ValueError(f"vectors must be finite; block {(~v.isfinite()).any(1).nonzero()[0].item()} has others")


def length(x: Tensor) -> Tensor:
    """|x| along the last axis, which stays; of numbers whose squares overflow or vanish, too."""
    exponent = torch.frexp(x.abs().amax(-1, keepdim=True)).exponent.clamp(-100, 127)  # a power of two is exact
    return torch.ldexp(torch.ldexp(x, -exponent).norm(dim=-1, keepdim=True), exponent)


def unit(x: Tensor) -> Tensor:
    """n(x) = x / max(|x|, 1e-12) along the last axis; a zero vector stays zero."""
    return x / length(x).clamp_min(1e-12)


def keep_norm(x: Tensor, y: Tensor) -> Tensor:
    r"""|x| * n(n(x) + y): move every token's direction by y, measured in units of its norm, and keep its norm."""
    return length(x) * unit(unit(x) + y)


def mean_difference(rows: Tensor, *, where: str) -> Tensor:
    """Mean over pairs, (N, D) -> (D,) in float64, of what points from the rejected to the chosen answers.

    where: what the rows belong to, for messages; "block 3".

    Raises:
        DegenerateShiftsError: it is zero, or rounding is all that is left of it.
    """
    rows = rows.double()
    mean = rows.mean(0)
    if mean.norm() <= NEGLIGIBLE * rows.norm() / math.sqrt(len(rows)):
        raise DegenerateShiftsError(
            f"{where}: the mean difference of {len(rows)} pairs is zero: both answers have the same state there, or "
            "the pairs cancel each other. Check that chosen and rejected are not mixed up, or read another token."
        )
    return mean


def first_component(rows: Tensor, *, centred: bool, sign: Sign, where: str = "the rows") -> tuple[Tensor, Tensor]:
    r"""First principal direction of (N, D) rows, unit length, and their mean: two (D,) in float64.

    sign: `score` makes the largest projection of a row positive; `loading` makes the largest entry of the direction
    positive (scikit-learn from 1.5 on); `mean` makes the projection of the mean positive.
    where: what the rows belong to, for messages; "block 3".

    Convention: centring removes the shift that all rows share; the first component is then the axis along which they
      differ. Neither `score` nor `loading` has anything to do with what the rows mean.

    Raises:
        ValueError: fewer than 3 rows (with two, `score` is a tie), or a value is not finite.
        DegenerateShiftsError: the rows do not spread, or their mean gives no sign.
    """
    check_option("sign", sign, Sign)
    if rows.ndim != 2 or len(rows) < 3 or not rows.isfinite().all():
        raise ValueError(f"{where}: need at least 3 finite rows (N, D); got {tuple(rows.shape)}")
    rows = rows.double()
    mean = rows.mean(0)
    z = rows - mean if centred else rows
    if z.norm() <= NEGLIGIBLE * rows.norm():
        raise DegenerateShiftsError(
            f"{where}: the {len(rows)} differences are all {'equal' if rows.any() else 'zero'}, so there is no "
            "principal direction. Give more varied pairs, or an estimator that takes the mean alone."
        )
    direction = torch.linalg.svd(z, full_matrices=False).Vh[0]
    scores = z @ direction
    towards = {
        "score": scores[scores.abs().argmax()],
        "loading": direction[direction.abs().argmax()],
        "mean": mean @ direction,
    }
    if sign == "mean" and towards["mean"].abs() <= NEGLIGIBLE * rows.norm() / math.sqrt(len(rows)):
        raise DegenerateShiftsError(
            f"{where}: the mean difference is zero along the principal direction, so its sign is undefined. Check that "
            "chosen and rejected are not mixed up in some pairs."
        )
    return (direction if towards[sign] >= 0 else -direction), mean
