"""models/loading.py and models/weights.py: a sentence for what cannot be loaded, and weights wherever they lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from grains_ref.models import HuggingFaceModel, UnsupportedModelError, load, weights
from grains_ref.tiny_models.random_models import random_llama, random_qwen2
from grains_ref.tiny_models.random_vision_models import random_gemma3

pytestmark = pytest.mark.cpu


def saved(model: HuggingFaceModel, folder: Path, **options: Any) -> Path:
    model.hf.save_pretrained(folder, **options)
    model.tokenizer.save_pretrained(folder)
    if model.family.marker:
        model.family.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory, llama: HuggingFaceModel) -> Path:
    return saved(llama, tmp_path_factory.mktemp("llama"))


# --- what cannot be loaded


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def a_level_too_high(folder: Path) -> None:
    inside = folder / "checkpoint-20"
    inside.mkdir()
    (folder / "config.json").rename(inside / "config.json")


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damaged_gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF")


def cut_off(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def no_tokenizer_at_all(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


SENTENCES = {
    cut_off: r"the weights in .* cannot be read: .*Get the files again",
    no_tokenizer_at_all: r"the tokenizer in .* cannot be read: .*Get the files again",
    without_config: r"has no config\.json, so it is no model of transformers; is the download complete",
    a_level_too_high: r"has no config\.json.*did you mean one of the folders in it: checkpoint-20",
    without_tokenizer: r"has no tokenizer \(none of tokenizer\.json.*tokenizer\.save_pretrained",
    without_weights: r"has no weights \(\*\.safetensors\); is the download complete",
    pickled: r"has its weights in pytorch_model\.bin, which is never read.*writes safetensors",
    damaged_gguf: r"model\.gguf cannot be read as GGUF: .*Get the file again",
}


@pytest.mark.parametrize(("change", "sentence"), SENTENCES.items())
def test_a_folder_that_is_no_model_is_refused_with_the_next_step(
    text_folder: Path, tmp_path: Path, change: Callable[[Path], None], sentence: str
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(text_folder, folder)
    change(folder)
    with pytest.raises(OSError, match=sentence):
        load(folder)


def test_a_vision_model_without_its_processor_is_refused(tmp_path: Path) -> None:
    folder = saved(random_gemma3(), tmp_path / "seeing")
    for path in list(folder.glob("*processor_config.json")):
        path.unlink()
    with pytest.raises(OSError, match=r"has no image processor \(preprocessor_config\.json or .*Copy the file"):
        load(folder)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "fp8"}, "dtype is 'fp8'; expected auto"),
        ({"dtype": "nn"}, "dtype is 'nn'; expected auto"),
        ({"device": "gpu"}, "device is 'gpu'; expected cpu, cuda.* A GPU of NVIDIA or AMD is called cuda"),
        ({"device": "cuda"}, "device is cuda, but torch .* Leave the device out"),
        ({"device": "cuda:2"}, "device is cuda:2, but the last of this machine is cuda:1"),
        ({"device": "mps"}, "device is mps, but this is no machine with Apple's GPU"),
    ],
)
def test_a_type_or_a_device_that_is_not_here_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], sentence: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: options.get("device") == "cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path / "nowhere", **options)


def test_a_file_is_no_folder(text_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"model\.safetensors is a file; give the folder that it is in"):
        load(text_folder / "model.safetensors")


def test_a_mistyped_path_is_told_with_what_lies_beside_it(text_folder: Path) -> None:
    mistyped = text_folder.with_name(text_folder.name.replace("llama", "lama"))
    with pytest.raises(FileNotFoundError, match=rf"there is no folder .*lama.* Did you mean .*{text_folder.name}.*\?"):
        load(str(mistyped))
    with pytest.raises(FileNotFoundError, match="There is no folder /no/such either"):
        load("/no/such/model")
    with pytest.raises(FileNotFoundError, match="'~' is not replaced here; write /"):
        load("~/models/llama")


def test_a_hub_id_that_cannot_be_had_is_told_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def unreachable(*args: Any, **options: Any) -> None:
        raise OSError("We couldn't connect to the hub\nCheck your internet connection")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    words = r"the configuration of 'some/model' cannot be had: there is no folder .* 'hf download some/model' elsewhere"
    with pytest.raises(OSError, match=words) as error:
        load("some/model")
    assert "Check your internet" not in str(error.value)


def test_weights_that_no_file_has_are_not_drawn_at_random(llama: HuggingFaceModel, tmp_path: Path) -> None:
    folder = saved(llama, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    words = r"lacks 1 of the model's weights \(model\.layers\.1\.mlp\.up_proj\.weight\).*random numbers"
    with pytest.raises(UnsupportedModelError, match=words):
        load(folder)


# --- weights that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_a_weight_that_is_not_finite_is_named(name: str, value: float) -> None:
    model = random_llama()
    model.hf.get_parameter(name).view(-1)[-1] = value
    with pytest.raises(ValueError, match=rf"random: 1 of \d+ values of the parameter '{name}' are NaN or infinite"):
        HuggingFaceModel(model.hf, model.tokenizer, name="random")


# --- offloaded and sharded weights


on_disk = pytest.param(
    "disk",
    marks=pytest.mark.skipif(
        transformers.__version__.startswith("5.0."),
        reason="transformers 5.0 itself runs a model that is on the disk as a whole on the meta device",
    ),
)


@pytest.mark.parametrize("where", [on_disk, "cpu", "both"])
def test_an_offloaded_model_has_the_fingerprint_and_the_scores_of_the_whole(
    llama: HuggingFaceModel, tmp_path: Path, where: str
) -> None:
    folder = saved(llama, tmp_path / "model", max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    device_map = {"model": "disk", "lm_head": "cpu"} if where == "both" else {"": where}
    loaded = load(folder, device_map=device_map, offload_folder=str(tmp_path / "offloaded"))
    assert any(parameter.is_meta for parameter in loaded.hf.parameters()) == (where != "cpu")
    assert loaded.device.type == "cpu"
    assert loaded.fingerprint() == llama.fingerprint()
    assert loaded.score([("The capital", "Paris")]) == llama.score([("The capital", "Paris")])


@pytest.mark.skipif(
    transformers.__version__.startswith(("4.", "5.0.")), reason="transformers itself cannot run such a model: KeyError"
)
def test_an_offloaded_vision_model_with_tied_embeddings_has_its_fingerprint(tmp_path: Path) -> None:
    model = random_gemma3()
    folder = saved(model, tmp_path / "model", max_shard_size="60KB")
    loaded = load(folder, device_map={"": "disk"}, offload_folder=str(tmp_path / "offloaded"))
    assert loaded.fingerprint() == model.fingerprint()


def test_weights_without_values_have_no_fingerprint(qwen2: HuggingFaceModel) -> None:
    model = random_qwen2()
    model.blocks[2].to("meta")
    with pytest.raises(UnsupportedModelError, match=r"the parameter 'weight' of a Linear is on the meta device"):
        model.fingerprint()


def test_a_sharded_parameter_is_gathered_first() -> None:
    class Sharded:
        """One device's share, as a DTensor is."""

        is_meta = False

        def full_tensor(self) -> torch.Tensor:
            return torch.arange(3.0)

    assert weights._whole(nn.Linear(1, 1), "weight", Sharded()).tolist() == [0, 1, 2]  # type: ignore[arg-type]
