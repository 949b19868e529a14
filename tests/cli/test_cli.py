"""The command as a whole: its help, how it fails and what it says then, and the models it takes."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from command import SIMPLE, bad, good, parsed, run

import grains_ref
from grains_ref import grains
from grains_ref.cli import app, common
from grains_ref.cli.commands import ORDER
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu


COMMANDS = {
    "demo": "--vision --world --real --behaviour --seeds --engine --out --report --json",
    "fit": "--model --pairs --out --method --site --positions --preset --k --m --attribution --aggregation "
    "--objective --path-baseline --mask-baseline --eligible --less-random --agreeing-layers --only-side "
    "--no-signal --work --keep-work --report --engine --memory --dtype --device --device-map --base --date "
    "--skip-bad-rows --ignore --json",
    "attribute": "--model --prompt --chosen --rejected --image --overlay --html --chat --preset --k --m --method "
    "--path-baseline --eligible --engine --dtype --device --device-map --base --date --json",
    "sweep": "--model --pairs --vectors --dev --tasks --max-loss --lam --k --layers --aggregation --eligible --preset "
    "--out --no-signal --work --keep-work --report --engine --memory --dtype --device --device-map --base "
    "--date --skip-bad-rows --ignore --json",
    "eval": "--model --pairs --vectors --lam --layers --tasks --side-effects --figure --report --answers --force "
    "--engine --dtype --device --device-map --base --date --skip-bad-rows --ignore --json",
    "generate": "--model --prompt --image --vectors --lam --layers --chat --max-new-tokens --html --force --engine "
    "--dtype --device --device-map --base --date --json",
    "check": "model --dtype --device --device-map --base --date --json",
    "inspect": "vectors --json",
    "report": "folder --out",
    "serve": "--vectors --lam --host --port --allow-remote --rows --waiting --max-new-tokens --max-body --force "
    "--dtype --device --device-map --base --date",
    "export": "vectors --to --out --lam --layers --blocks --measure --pairs --force --dtype --device --device-map "
    "--base --date --ignore --json",
    "import": "file --from --model --out --lam --force --dtype --device --device-map --base --json",
}


# --- the command itself


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("grains-ref")
    if not command.exists():
        pytest.skip(f"the console script is not installed beside {sys.executable}")
    done = subprocess.run([command, "attribute", "--k", "three"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: grains-ref attribute" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str) -> None:
    text = good(command, "--help")
    assert good(command, "-h") == text
    words = text.replace("│", " ").replace("*", " ").split()
    missing = [option for option in COMMANDS[command].split() if option not in {w.strip("{,}").lower() for w in words}]
    assert missing == []


def test_help_lists_commands_in_the_order_in_which_people_need_them() -> None:
    text = good("--help")
    first_words = [line.split()[1] for line in text.splitlines() if line.startswith("│") and len(line.split()) > 2]
    in_help = [word for word in first_words if word in ORDER]
    assert in_help == [*ORDER]
    assert ORDER.index("demo") == 0
    assert ORDER.index("fit") < ORDER.index("sweep") < ORDER.index("eval") < ORDER.index("reproduce")
    assert "--debug" in text


def test_the_version_is_said_without_importing_torch() -> None:
    code = (
        "import sys, grains_ref; from grains_ref.cli import app\n"
        "try: app(['--version'])\n"
        "except SystemExit as end:\n"
        "    print(end.code, grains_ref.__version__, {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version = grains_ref.__version__
    assert done.stdout.splitlines() == [f"grains-ref {version}", f"0 {version} set()"]
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+\S*", version)
    assert good("--version", "fit") == f"grains-ref {version}\n"  # whatever else is written


def test_the_version_is_that_of_the_installed_package() -> None:
    try:
        installed = importlib.metadata.version("grains-ref")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("grains-ref is not installed")
    assert installed == grains_ref.__version__


def test_the_table_of_options_in_this_file_is_complete() -> None:
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == set(ORDER)
    elsewhere = {"conform", "datasets", "reproduce"}  # they have tests of their own
    assert set(commands) == {*COMMANDS, *elsewhere}
    for name, command in commands.items():
        if name in elsewhere:
            continue
        found = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert found - {"--help"} == {option for option in COMMANDS[name].split() if option.startswith("--")}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["fit"],
        ["fit", "--k", "three"],
        ["fit", "--model"],
        ["inspect"],
        ["inspect", "a", "b"],
        ["inspect", "a", "--lam", "1"],
        ["generate", *SIMPLE, "--prompt", "Q", "--vectors", "v", "--lam", "strong"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_an_interrupt_is_exit_code_130_and_says_what_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = grains.attribute, []

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*args)

    out = tmp_path / "v.safetensors"
    options = ["--pairs", data / "steer.jsonl", "--aggregation", "mean", "--engine", "reference"]
    command = ["fit", *SIMPLE, *options, "--out", out]
    assert run("fit", *SIMPLE, *options, "--out", tmp_path / "undisturbed").exit_code == 0
    monkeypatch.setattr(grains, "attribute", interrupted)
    result = run(*command)
    assert result.exit_code == 130
    work = tmp_path / "v.safetensors.work"
    words = f"interrupted; 3 of 4 examples are finished and kept in {work}; run the same command to go on"
    assert result.stderr.strip() == words
    assert len(list(work.glob("*.safetensors"))) == 3
    assert not out.exists()

    result = run(*command)
    assert result.exit_code == 0
    assert "3 of 4 examples had been finished earlier and were not computed again" in result.stderr
    assert len(calls) == 5
    assert out.read_bytes() == (tmp_path / "undisturbed").read_bytes()


def test_an_interrupt_where_nothing_is_kept_does_not_say_so(monkeypatch: pytest.MonkeyPatch, vectors: Path) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SteeringVectors, "load", interrupted)
    result = run("inspect", vectors)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_an_interrupted_reproduction_says_that_cells_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("grains_ref.reproduction.cells.run", interrupted)
    result = run("reproduce", "--table", "1", "--quick", "--out", tmp_path)
    assert result.exit_code == 130
    words = " ".join(result.stderr.split())
    assert "interrupted; 0 of " in words
    assert f" cells that were missing are finished and kept in {tmp_path}; run the same command to go on" in words


def test_control_characters_of_a_file_do_not_reach_the_terminal(data: Path, vectors: Path, tmp_path: Path) -> None:
    evil = "\x1b]0;title\x07\x1b[2Jred\rgone"
    loaded = SteeringVectors.load(vectors)
    path = tmp_path / "\x1b[31mv"
    replace(loaded, header=replace(loaded.header, model_name=evil)).save(path)
    shown = run("inspect", path)
    assert shown.exit_code == 0
    missing = run("inspect", tmp_path / "\x1b[31mnothing")
    assert missing.exit_code == 1
    pairs = shutil.copy(data / "test.jsonl", tmp_path / "\x1b[31mtest.jsonl")
    measured = run("eval", *SIMPLE, "--pairs", pairs)
    assert measured.exit_code == 0
    for text in (shown.stdout, missing.stderr, measured.stdout):
        assert not set(text) & {"\x1b", "\x07", "\r"}
        assert r"\x1b[31m" in text
    assert r"\x1b]0;title\x07\x1b[2Jred\rgone" in shown.stdout
    assert parsed("inspect", path)["header"]["model_name"] == evil


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    command = ["inspect", tmp_path / "nothing"]
    result = run("--debug", *command)
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "VectorFileError"
    assert result.stderr == ""
    assert isinstance(run(*command).exception, SystemExit)  # and the next command is quiet again


@pytest.mark.parametrize("error", [RuntimeError("CUDA is sulking"), KeyError("surprise"), TypeError()])
def test_an_error_that_nobody_foresaw_says_so_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr(SteeringVectors, "load", fail)
    result = run("inspect", tmp_path / "v")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error {type(error).__name__}: {error or 'no further message'}")
    assert "not an error that grains-ref foresaw; --debug (before the command) shows where" in result.stderr


# --- models


def test_an_embedded_model_that_does_not_exist_is_refused_with_those_that_do() -> None:
    message = bad("attribute", "--model", "tiny:huge", "--prompt", "Q", "--chosen", "a", "--rejected", "b")
    worlds = ("double", "graded", "graded-visual", "simple", "simple-visual")
    names = [f"tiny:{world}-seed{seed}" for world in worlds for seed in (0, 1, 2)]
    assert f"there is no embedded model 'tiny:huge'; there are {', '.join(names)}" in message


def test_loading_a_folder_draws_no_progress_bar(other_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(other_model, tmp_path / "fresh")  # no other test has loaded it
    transformers.utils.logging.enable_progress_bar()
    asked = ["--prompt", "Q", "--chosen", "a", "--rejected", "b", "--m", "1", "--chat"]
    result = run("attribute", "--model", folder, *asked)
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_download_keeps_its_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.utils

    disabled: list[tuple[bool, bool]] = []

    def load(path: str, **options: Any) -> None:
        hub = huggingface_hub.utils.are_progress_bars_disabled()
        disabled.append((hub, not transformers.utils.logging.is_progress_bar_enabled()))

    monkeypatch.setattr("grains_ref.models.load", load)
    huggingface_hub.utils.enable_progress_bars()
    common.load_model("someone/some-model", "auto", "cpu", "")
    huggingface_hub.utils.disable_progress_bars()  # by the user
    common.load_model("someone/other-model", "auto", "cpu", "")
    assert disabled == [(False, True), (True, True)]


def test_an_unsupported_model_type_is_refused(tmp_path: Path) -> None:
    transformers.T5Config(num_layers=1, d_model=4, num_heads=1).save_pretrained(tmp_path)
    message = bad("attribute", "--model", tmp_path, "--prompt", "Q", "--chosen", "a", "--rejected", "b")
    assert "UnsupportedModelError: model type 't5' has an encoder beside its decoder" in message


def test_damaged_weights_are_an_error_without_a_traceback(other_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(other_model, tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    result = run("attribute", "--model", folder, "--prompt", "Q", "--chosen", "a", "--rejected", "b")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error OSError: the weights in " in result.stderr
    assert "Get the files again" in result.stderr
    assert isinstance(result.exception, SystemExit)


# --- demo, refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--world", "flat"], "world 'flat' does not exist; the planted worlds are simple, graded"),
        (["--seeds", "0,3"], "--seeds '0,3': there is no model of training seed 3; there are 0, 1 and 2"),
        (["--seeds", "1,1"], "--seeds: 1 is named twice"),
        (["--seeds", ""], "--seeds '' cannot be read"),
        (["--real", "--world", "graded"], "--real takes --behaviour, --out, --report and --json"),
        (["--real", "--behaviour", "kind"], "--behaviour 'kind': expected one of lie, prose, caution"),
        (["--behaviour", "prose"], "--behaviour is for --real"),
    ],
)
def test_a_demo_of_what_does_not_exist_is_refused(tmp_path: Path, options: list[str], words: str) -> None:
    assert words in bad("demo", *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
