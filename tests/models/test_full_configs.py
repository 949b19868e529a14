"""The five full configurations on torch's meta device: exact sizes, and the decoder blocks that steering would hook.

Nothing is downloaded and no weight takes memory.  The vision towers come first in the tree of modules, and that of
Qwen2.5-VL-7B has more blocks (32) than its decoder (28): whoever goes by names or by lengths steers the wrong model.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import nn

from grains_ref.models.blocks import find_decoder
from grains_ref.models.families import UnsupportedModelError
from grains_ref.models.vision_families import LlavaNext, family_class
from grains_ref.tiny_models.full_size import CONFIGS, read_config

pytestmark = pytest.mark.cpu


class Architecture(NamedTuple):
    """What was published of a model."""

    parameters: int
    blocks: int
    width: int
    path: str  # of the decoder's blocks
    block: str  # their class
    vision_blocks: int = 0


ARCHITECTURES = {
    "llama-3.1-8b": Architecture(8_030_261_248, 32, 4096, "model.layers", "LlamaDecoderLayer"),
    "qwen2.5-7b": Architecture(7_615_616_512, 28, 3584, "model.layers", "Qwen2DecoderLayer"),
    "llava-v1.6-vicuna-7b": Architecture(
        7_063_431_168, 32, 4096, "model.language_model.layers", "LlamaDecoderLayer", vision_blocks=24
    ),
    "qwen2.5-vl-7b": Architecture(
        8_292_166_656, 28, 3584, "model.language_model.layers", "Qwen2_5_VLDecoderLayer", vision_blocks=32
    ),
    "gemma-3-12b": Architecture(
        12_187_325_040, 48, 3840, "model.language_model.layers", "Gemma3DecoderLayer", vision_blocks=27
    ),
}
VISION = [name for name, architecture in ARCHITECTURES.items() if architecture.vision_blocks]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """The five models, without memory."""
    built = {}
    for name in ARCHITECTURES:
        config = read_config(name)
        with torch.device("meta"):
            built[name] = family_class(config).auto_class.from_config(config, dtype=torch.bfloat16)
    return built


def blocks_of(hf: Any) -> list[nn.Module]:
    """What the package hooks."""
    return find_decoder(hf, hf.config.get_text_config().num_hidden_layers).blocks


def paths_of(hf: Any, modules: list[nn.Module]) -> list[str]:
    names = {id(module): name for name, module in hf.named_modules()}
    return [names[id(module)] for module in modules]


def lists_of(hf: Any) -> dict[str, nn.ModuleList]:
    return {name: module for name, module in hf.named_modules() if isinstance(module, nn.ModuleList)}


# Two plausible ways to look for the blocks, both wrong.
def first_list_by_name(hf: Any) -> list[nn.Module]:
    return next(list(found) for name, found in lists_of(hf).items() if name.rsplit(".")[-1] in ("layers", "blocks"))


def longest_list(hf: Any) -> list[nn.Module]:
    return list(max(lists_of(hf).values(), key=len))


def check_blocks(hf: Any, name: str, find: Callable[[Any], list[nn.Module]]) -> None:
    """`find` finds exactly the decoder's blocks."""
    expected = ARCHITECTURES[name]
    blocks = find(hf)
    assert paths_of(hf, blocks) == [f"{expected.path}.{i}" for i in range(expected.blocks)]
    assert {type(block).__name__ for block in blocks} == {expected.block}
    widths = {(block.input_layernorm.weight.shape, block.mlp.down_proj.out_features) for block in blocks}
    assert widths == {((expected.width,), expected.width)}
    assert [block.self_attn.layer_idx for block in blocks] == list(range(expected.blocks))


def test_every_configuration_is_checked() -> None:
    assert {file.stem for file in CONFIGS.glob("*.json")} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_as_many_as_published(models: dict[str, Any], name: str) -> None:
    if models[name].config.tie_word_embeddings and transformers.__version__.startswith("5.0."):
        pytest.skip("transformers 5.0 ties no weights of a model that is built on the meta device")
    assert sum(p.numel() for p in models[name].parameters()) == ARCHITECTURES[name].parameters


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_blocks_found_are_the_decoders_and_all_of_them(models: dict[str, Any], name: str) -> None:
    check_blocks(models[name], name, blocks_of)


@pytest.mark.parametrize("name", VISION)
def test_the_vision_towers_blocks_are_others(models: dict[str, Any], name: str) -> None:
    hf = models[name]
    decoder = {id(block) for block in blocks_of(hf)}
    lists = {path: found for path, found in lists_of(hf).items() if path.endswith(("encoder.layers", "visual.blocks"))}
    ((path, tower),) = lists.items()
    assert len(tower) == ARCHITECTURES[name].vision_blocks
    assert not decoder & {id(block) for block in tower}, path


@pytest.mark.parametrize("name", VISION)
def test_the_family_knows_where_the_tower_is_and_how_deep(models: dict[str, Any], name: str) -> None:
    hf = models[name]
    family = family_class(hf.config)(hf.config, None, "<image>")
    (path,) = (path for path in lists_of(hf) if path.endswith(("encoder.layers", "visual.blocks")))
    tower = family.vision_tower(hf)
    assert path.startswith(paths_of(hf, [tower])[0] + ".")
    assert not {id(module) for module in tower.modules()} & {id(block) for block in blocks_of(hf)}
    assert family.n_vision_blocks == ARCHITECTURES[name].vision_blocks


@pytest.mark.parametrize(
    ("name", "find"),
    [(name, first_list_by_name) for name in VISION] + [("qwen2.5-vl-7b", longest_list)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_finder_that_goes_by_names_or_lengths_would_be_noticed(
    models: dict[str, Any], name: str, find: Callable[[Any], list[nn.Module]]
) -> None:
    assert len(find(models[name])) == ARCHITECTURES[name].vision_blocks
    with pytest.raises(AssertionError):
        check_blocks(models[name], name, find)


@pytest.mark.parametrize("name", VISION)
def test_a_vision_tower_offered_as_the_decoder_is_refused(models: dict[str, Any], name: str) -> None:
    tower = first_list_by_name(models[name])
    offered = SimpleNamespace(layers=nn.ModuleList(tower))
    impostor = SimpleNamespace(get_decoder=lambda: offered, base_model=offered)
    with pytest.raises(UnsupportedModelError, match=f"{ARCHITECTURES[name].blocks} decoder blocks"):
        find_decoder(impostor, ARCHITECTURES[name].blocks)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((336, 336), 1176), ((640, 480), 2340), ((480, 640), 2352), ((1000, 300), 2182), ((1920, 1080), 1948)],
)
def test_llava_has_the_image_tokens_of_its_real_processor(size: tuple[int, int], tokens: int) -> None:
    """The numbers were measured with the released preprocessor settings."""
    assert len(LlavaNext(read_config("llava-v1.6-vicuna-7b"), None, "<image>").patches(size)) == tokens


def test_gemma_has_eight_blocks_that_attend_to_everything() -> None:
    kinds = read_config("gemma-3-12b").get_text_config().layer_types
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11, 17, 23, 29, 35, 41, 47]
