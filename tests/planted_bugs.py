"""Plant bugs one at a time and show that the suite notices each: `python tests/planted_bugs.py`.

Each bug replaces one snippet of `grains.py`, `models.py` or `families.py` in a temporary copy of the checkout, never
in the checkout itself, and runs the tests on the copy until the first failure. The unchanged copy is run first: a
suite that is red anyway would catch everything. Prints a Markdown table; exits with 1 if a bug survives.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SUITE = ("test_1_objective", "test_2_attribution", "test_3_selection", "test_4_contrast", "test_5_aggregation",
         "test_6_steering", "test_7_generation", "test_fit", "test_models", "test_families", "test_vision")  # fmt: skip
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo_out", "*-seed[12]", "shared")


class Bug(NamedTuple):
    """One planted bug. `tests` says where to look first, only to be quick; None is the whole suite."""

    name: str
    stage: str
    what: str
    file: str
    snippet: str
    replacement: str
    tests: str


G, M, F = "grains_ref/grains.py", "grains_ref/models.py", "grains_ref/families.py"
BUGS = (
    Bug("off_by_one_logits", "objective", "the row of a token scores the token itself, not the next",
        M, "logits_to_keep=len(response_ids),\n            use_cache",
        "logits_to_keep=len(response_ids) + 1,\n            use_cache", "test_1_objective"),
    Bug("logits_one_late", "objective", "the row after the right one scores each response token",
        G, "log_p[:, torch.arange(len(y)), y.to(log_p.device)]",
        "log_p[:, (torch.arange(len(y)) + 1).clamp(max=len(y) - 1), y.to(log_p.device)]", "test_1_objective"),
    Bug("mean_over_tokens", "objective", "the mean of the response tokens' log-probabilities, not the sum",
        G, "y.to(log_p.device)].sum(-1)", "y.to(log_p.device)].mean(-1)", "test_1_objective"),
    Bug("last_token_only", "objective", "only the last response token is scored",
        G, "y.to(log_p.device)].sum(-1)", "y.to(log_p.device)][:, -1]", "test_1_objective"),
    Bug("mask_dropped", "objective", "padding is attended, also during attribution",
        M, "replay={name: nn.functional.pad(tensor, (left_padding, 0)) for name",
        'replay={name: nn.functional.pad(tensor, (left_padding, 0), value=int(name == "attention_mask")) for name',
        "test_models"),
    Bug("left_riemann", "attribution", "nodes 0/m .. (m-1)/m: one lies at alpha = 0",
        G, "return [j / m for j in range(1, m + 1)]", "return [j / m for j in range(m)]", "test_2_attribution"),
    Bug("no_input_factor", "attribution", "the averaged gradient is not multiplied by x minus baseline",
        G, "return _attribution(f, x, baseline, (x - baseline) * total)\n\n\ndef gradient_times_input",
        "return _attribution(f, x, baseline, total)\n\n\ndef gradient_times_input", "test_2_attribution"),
    Bug("gauss_not_rescaled", "attribution", "Gauss-Legendre weights of [-1, 1] are used on [0, 1]",
        G, "(weights / 2).tolist()", "weights.tolist()", "test_2_attribution"),
    Bug("response_interpolated", "attribution", "the response's embeddings move along the path with the prompt's",
        M, "fed = self.embed(response_ids[:-1].to(self.device)).to(embeds)",
        "fed = self.embed(response_ids[:-1].to(self.device)).to(embeds) * (embeds.norm() / encoded.embeds.norm())",
        "test_2_attribution"),
    Bug("half_precision_sums", "attribution", "bfloat16 gradients are added up in bfloat16",
        G, "total = torch.zeros_like(x, dtype=_wide(x))\n    for alpha", "total = torch.zeros_like(x)\n    for alpha",
        "test_2_attribution"),
    Bug("no_sign_filter", "selection", "the k highest scores, whatever their sign",
        G, "(j for j in candidates if score[j] > 0)", "(j for j in candidates)", "test_3_selection"),
    Bug("zero_counts", "selection", "scores of zero are filled in on the negative side",
        G, "(j for j in candidates if score[j] < 0)", "(j for j in candidates if score[j] <= 0)", "test_3_selection"),
    Bug("ties_to_the_higher", "selection", "among equal scores the later token wins",
        G, "key=lambda j: (-score[j], j)", "key=lambda j: (-score[j], -j)", "test_3_selection"),
    Bug("padding_eligible", "selection", "padding can be selected",
        G, 'keep = [kind != "pad" and not any', "keep = [not any", "test_3_selection"),
    Bug("template_is_content", "selection", "the rule `content` keeps the template's own words",
        G, '"content": ("template", "special")', '"content": ("special",)', "test_3_selection"),
    Bug("post_norm_last_layer", "contrast", "the last layer's state is read after the final norm",
        M, "return torch.stack(last, dim=1)  # (B, L, d)",
        "return torch.stack([*last[:-1], self.hf.get_decoder().norm(last[-1])], dim=1)", "test_4_contrast"),
    Bug("first_token_state", "contrast", "the state is read at the first position, not the last",
        M, "last.append(h[:, -1]", "last.append(h[:, 0]", "test_4_contrast"),
    Bug("everything_else_masked", "contrast", "the complement of the set is masked",
        G, "masked[list(tokens)] = baseline[list(tokens)]",
        "keep = list(tokens)\n    masked = baseline.clone()\n    masked[keep] = x[keep]", "test_4_contrast"),
    Bug("rounding_as_shift", "contrast", "an empty set leaves rounding errors as its shift",
        G, "(h - h_without_neg) * bool(selection.neg)", "h - h_without_neg", "test_4_contrast"),
    Bug("unsigned_pca", "aggregation", "the principal component keeps the solver's sign",
        G, "v = (u @ mean) @ u  #", "v = u[0]  #", "test_5_aggregation"),
    Bug("uncentred_pca", "aggregation", "the mean is not subtracted",
        G, "D if method == \"uncentred\" else D - mean", "D", "test_5_aggregation"),
    Bug("random_direction_of_noise", "aggregation", "equal shifts give a direction made of rounding errors",
        G, "if s[0] <= negligible:", "if s[0] < 0:", "test_5_aggregation"),
    Bug("sum_of_sides", "aggregation", "v_pos + v_neg",
        G, "    return v_pos - v_neg\n", "    return v_pos + v_neg\n", "test_5_aggregation"),
    Bug("norm_over_tokens", "steering", "norms are taken over the sequence, not the width",
        G, "z.norm(dim=-1, keepdim=True)", "z.norm(dim=-2 if z.ndim > 1 else -1, keepdim=True)", "test_6_steering"),
    Bug("norm_not_restored", "steering", "equation (8) is left out",
        G, "restored = shifted * (norm / shifted_norm)", "restored = shifted", "test_6_steering"),
    Bug("norm_in_half_precision", "steering", "norms are computed in the stream's own type, where float16 overflows",
        G, "wide = h.to(_wide(h))", "wide = h", "test_6_steering"),
    Bug("last_position_only", "steering", "only the last position of the sequence is steered",
        G, "            return (h, *output[1:]) if isinstance(output, tuple) else h",
        "            raw = output[0] if isinstance(output, tuple) else output\n"
        "            h = torch.cat([raw[:, :-1], h[:, -1:]], 1)\n"
        "            return (h, *output[1:]) if isinstance(output, tuple) else h", "test_6_steering"),
    Bug("batch_row_0_only", "steering", "only row 0 of a batch is steered",
        G, "            return (h, *output[1:]) if isinstance(output, tuple) else h",
        "            raw = output[0] if isinstance(output, tuple) else output\n"
        "            h = torch.cat([h[:1], raw[1:]])\n"
        "            return (h, *output[1:]) if isinstance(output, tuple) else h", "test_6_steering"),
    Bug("one_layers_vector", "steering", "every layer gets the last layer's vector",
        G, "self._hook(self._v[i])", "self._hook(self._v[-1])", "test_6_steering"),
    Bug("hooks_left_by_exceptions", "steering", "hooks stay when the `with` block ends by an exception",
        G, "        for handle in self._entered.pop():\n",
        "        for handle in self._entered.pop() if exception[:1] == (None,) else ():\n", "test_6_steering"),
    Bug("prefill_only", "generation", "single tokens, as cached decoding feeds them, are not steered",
        G, "            return (h, *output[1:]) if isinstance(output, tuple) else h",
        "            if h.shape[1] == 1:\n                return None\n"
        "            return (h, *output[1:]) if isinstance(output, tuple) else h", "test_7_generation"),
    Bug("greedy_one_behind", "generation", "greedy decoding reads the row before the last",
        G, "torch.tensor([*ids, 0]))[0, -1]", "torch.tensor([*ids, 0]))[0, max(-2, -1 - len(ids))]",
        "test_7_generation"),
    Bug("response_positions_one_early", "generation", "scored responses repeat the last prompt position",
        M, "steps = torch.arange(1, longest, device=self.device)",
        "steps = torch.arange(0, longest - 1, device=self.device)", "test_7_generation"),
    Bug("cache_of_another_prompt", "generation", "a response is scored on the cache of another prompt",
        M, "cache.batch_select_indices(which)", "cache.batch_select_indices(which.flip(0))", "test_7_generation"),
    Bug("batch_mask_dropped", "generation", "shorter rows of a batch attend to their padding",
        M, "_left_pad([one[name] for one in replays], 0)",
        '_left_pad([one[name] for one in replays], int(name == "attention_mask"))', "test_7_generation"),
    Bug("sides_not_exchanged", "fit", "both sides use the shifts of the positive set",
        G, 'getattr(s, f"delta_{sign}") for s in shifts', 's.delta_pos for s in shifts', "test_fit"),
    Bug("bos_doubled", "text", "a prompt that brings BOS gets a second one",
        M, "if bos is not None and ids[:2] == [bos, bos]:", "if False:", "test_models"),
    Bug("system_is_content", "text", "the system message counts as the user's own words",
        M, 'if message["role"] == "user"]', 'if message["role"] in ("user", "system")]', "test_models"),
    Bug("newline_forgotten", "picture", "LLaVA's rows of tiles are not closed by newline tokens",
        F, "return base + tiles", 'return base + [patch for patch in tiles if patch.view != "newline"]',
        "test_families"),
    Bug("tiles_column_by_column", "picture", "LLaVA's tiles are counted from top to bottom",
        F, "tile = 1 + row // n * (columns // n) + column // n", "tile = 1 + column // n * (rows // n) + row // n",
        "test_families"),
    Bug("tile_box_turned", "picture", "x and y are exchanged in the boxes of LLaVA's tiles",
        F, "column % n, _clip(edges_x, edges_y, size)", "column % n, _clip(edges_y, edges_x, size)", "test_families"),
    Bug("grid_box_turned", "picture", "x and y are exchanged in the boxes of a grid",
        F, "(left + c * across, top + r * down, left + (c + 1) * across, top + (r + 1) * down)",
        "(left + r * across, top + c * down, left + (r + 1) * across, top + (c + 1) * down)", "test_families"),
    Bug("grid_column_by_column", "picture", "the tokens of a grid are listed column by column",
        F, "        for r in range(rows)\n        for c in range(columns)\n",
        "        for c in range(columns)\n        for r in range(rows)\n", "test_families"),
    Bug("unpadding_offset_dropped", "picture", "LLaVA's first kept row is taken for the first row with padding",
        F, "for row in range(skip_rows, rows - skip_rows):", "for row in range(rows - 2 * skip_rows):",
        "test_families"),
    Bug("letterbox_offset_dropped", "picture", "boxes are measured from the padded picture's edge",
        F, "edges_y = [(y - top) * height", "edges_y = [y * height", "test_families"),
    Bug("crops_across_the_long_side", "picture", "Gemma's crops are laid out along the short side",
        F, "(x + across, y) if width >= height else (x, y + down)",
        "(x + across, y) if width < height else (x, y + down)", "test_families"),
    Bug("qwen_text_after_all_tokens", "replay", "after an image of n tokens Qwen's positions go on at +n",
        F, "positions[:, start + n :] += max(rows, columns) - n", "pass", "test_families"),
    Bug("qwen_axes_exchanged", "replay", "rows and columns of Qwen's positions are exchanged",
        F, "torch.zeros(n).long(), token // columns, token % columns",
        "torch.zeros(n).long(), token % columns, token // columns", "test_families"),
    Bug("qwen_generates_in_one_dimension", "replay", "`generate` is not told where Qwen's images are",
        F, '{"mm_token_type_ids": is_image.int()} if', '{"mm_token_type_ids": 0 * is_image.int()} if', "test_vision"),
    Bug("gemma_replays_causally", "replay", "Gemma's image tokens do not attend to each other both ways",
        F, '| {"token_type_ids": is_image.long()}', '| {"token_type_ids": 0 * is_image.long()}', "test_families"),
    Bug("gemma_generates_causally", "replay", "the same in `generate` only",
        F, 'return {"token_type_ids": is_image.long()}', 'return {"token_type_ids": 0 * is_image.long()}',
        "test_vision"),
    Bug("response_positions_restart", "replay", "the positions of response tokens start at 0",
        M, 'after = int(replay["position_ids"].max()) + 1', "after = 0", "test_families"),
    Bug("response_positions_by_count", "replay", "response tokens go on at the number of prompt tokens",
        M, 'after = int(replay["position_ids"].max()) + 1', 'after = replay["position_ids"].shape[-1]',
        "test_families"),
    Bug("scored_positions_by_count", "replay", "the same in scoring only",
        M, "after = positions.movedim(-2, 0).flatten(1).max(1).values + 1", "after = mask.sum(1)", "test_vision"),
    Bug("padding_counts_in_positions", "replay", "padded positions are larger than all others",
        M, "_left_pad([one[name] for one in replays], 0)",
        '_left_pad([one[name] for one in replays], 99 * (name == "position_ids"))', "test_vision"),
    Bug("features_by_size", "features", "pictures of one size share their features",
        F, "cls(picture_digest(pixels), pixels.size, source)", "cls(str(pixels.size), pixels.size, source)",
        "test_families"),
    Bug("pictures_equal_by_size", "features", "a prompt is scored with another picture of the same size",
        F, "    digest: str\n", "    digest: str = field(compare=False)\n", "test_vision"),
    Bug("placeholder_scored", "features", "scoring keeps the embedding of the placeholder",
        M, "rows = [self._embed_prompt(one, picture) for", "rows = [self._embed_prompt(one, None) for", "test_vision"),
    Bug("spans_not_moved", "text", "the user's words are looked for where they were before the picture went in",
        M, "moved += [(max(a, stop) + shift, b + shift)]", "moved += [(max(a, stop), b)]", "test_families"),
    Bug("chat_without_bos", "text", "a vision-language model's chat lacks the BOS its processor adds",
        M, "isinstance(prompt, str) or bool(self.family.marker)", "isinstance(prompt, str)", "test_families"),
    Bug("space_doubled", "text", "a SentencePiece-like tokenizer puts its own space before a response",
        M, 'if not str(self.tokenizer.convert_ids_to_tokens(tokenise("x")[0])).startswith("\\u2581"):', "if True:",
        "test_families"),
    Bug("mean_of_words_for_pictures", "attribution", "the mean baseline of image tokens is that of words",
        M, "            if image:\n", "            if False:\n", "test_families"),
    Bug("seed_without_picture", "attribution", "the same words draw the same numbers whatever the picture",
        G, "{[i.tolist() for i in ids]}{example.encoded.picture}", "{[i.tolist() for i in ids]}", "test_families"),
    Bug("fingerprint_blind", "text", "the fingerprint ignores vision tower and projector",
        M, "        if self.family.marker:\n            decoder", "        if False:\n            decoder",
        "test_families"),
)  # fmt: skip


def plant(copy: Path, bug: Bug) -> None:
    """Put one bug into the copy; its snippet must be there exactly once."""
    path = copy / bug.file
    text = path.read_text(encoding="utf-8")
    if (found := text.count(bug.snippet)) != 1:
        raise SystemExit(f"{bug.name}: its snippet occurs {found} times in {bug.file}, expected once:\n{bug.snippet}")
    path.write_text(text.replace(bug.snippet, bug.replacement), encoding="utf-8")


def run(copy: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Run tests of the copy up to the first failure: whether all passed, and which failed."""
    command = [sys.executable, "-m", "pytest", "-m", "cpu", "-x", "-q", "-rfE", "--no-header"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *(f"tests/{name}.py" for name in tests)],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        failed = re.search(r"^ERROR .*", done.stdout, re.MULTILINE)
        if failed is None:
            raise SystemExit(f"pytest itself failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return False, f"{failed[0]} (while collecting)"
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - |$)", done.stdout, re.MULTILINE)
    return done.returncode == 0, failed[1] if failed else ""


def check_import(copy: Path) -> None:
    """Make sure that the copy is what Python imports, also where the checkout is installed in editable mode."""
    code = "import grains_ref.models as m, grains_ref.tiny_models as t; print(m.__file__, t.__file__)"
    environment = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run([sys.executable, "-B", "-c", code], env=environment, cwd=copy, capture_output=True, text=True)
    places = done.stdout.split()
    if len(places) != 2 or not all(Path(place).resolve().is_relative_to(copy.resolve()) for place in places):
        raise SystemExit(f"the copy {copy} is not what gets imported: {done.stdout}{done.stderr}")


def main() -> int:
    """Plant, run, restore; print the table."""
    parser = argparse.ArgumentParser(description="Plant bugs and show that the suite notices each.")
    parser.add_argument("--only", action="append", choices=[bug.name for bug in BUGS], help="one bug (may be repeated)")
    parser.add_argument("--list", action="store_true", help="name the bugs and stop")
    arguments = parser.parse_args()
    chosen = [bug for bug in BUGS if not arguments.only or bug.name in arguments.only]
    if arguments.list:
        for bug in chosen:
            print(f"{bug.name:28} {bug.stage:12} {bug.what}")
        return 0
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="planted-bugs-") as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=IGNORED)
        (copy / "tiny_models").rename(copy / "grains_ref" / "tiny_models")  # where an installed package has it
        check_import(copy)
        for bug in chosen:  # all snippets are looked for before anything is run
            original = (copy / bug.file).read_bytes()
            plant(copy, bug)
            (copy / bug.file).write_bytes(original)
        green, failed = run(copy, SUITE)
        if not green:
            raise SystemExit(f"the suite is red without any bug: {failed}")
        print("| bug | stage | what | result | first failing test |\n|---|---|---|---|---|")
        print("| (none) | | the code as it is | green | |", flush=True)
        for bug in chosen:
            original = (copy / bug.file).read_bytes()
            plant(copy, bug)
            green, failed = run(copy, (bug.tests,))
            if green:  # not where it was looked for first; perhaps elsewhere
                green, failed = run(copy, SUITE)
            (copy / bug.file).write_bytes(original)
            survivors += green
            result = "**survives**" if green else "caught"
            print(
                f"| {bug.name} | {bug.stage} | {bug.what} | {result} | {f'`{failed}`' if failed else ''} |", flush=True
            )
    print(f"\n{len(chosen) - survivors} of {len(chosen)} planted bugs caught.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
