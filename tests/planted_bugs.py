"""Plant bugs one at a time and show that the suite notices each: `python tests/planted_bugs.py`.

Each bug replaces one snippet of the package in a temporary copy of the checkout, never in the checkout itself, and runs
the tests on the copy until the first failure. The unchanged copy is run first: a suite that is red anyway would catch
everything. Prints a Markdown table; exits with 1 if a bug survives. Bugs of `harness.py` need lm-evaluation-harness,
without which its tests are skipped, and are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SUITE = ("test_1_objective", "test_2_attribution", "test_3_selection", "test_4_contrast",
         "test_5_aggregation", "test_6_steering", "test_7_generation", "test_fit", "test_models",
         "test_families", "test_vision", "test_core", "test_caa", "test_icv", "test_iti",
         "test_ict", "test_vti", "test_repe", "test_lora", "test_datasets", "test_splits",
         "test_metrics", "test_measures", "test_judge", "test_lm_eval", "test_reproduction", "test_cells",
         "test_transfer", "test_fast")  # fmt: skip
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo_out", "*-seed[12]", "shared")


class Bug(NamedTuple):
    """One planted bug. `tests` names the file where to look first, only to be quick."""

    name: str
    stage: str
    what: str
    file: str
    snippet: str
    replacement: str
    tests: str


G, M, F = "grains_ref/grains.py", "grains_ref/models/huggingface.py", "grains_ref/models/families.py"
CORE, CAA, ICV, ITI, ICT, VTI, REPE, LORA = (
    f"grains_ref/methods/{name}.py" for name in ("core", "caa", "icv", "iti", "ict", "vti", "repe", "lora")
)
CELLS, CURVES, LAB, ROWS, TABLES, TRANSFER = (
    f"grains_ref/reproduction/{name}.py" for name in ("cells", "curves", "lab", "rows", "tables", "transfer")
)
METRICS, JUDGE, REPLIES = (
    "grains_ref/evaluation/metrics.py",
    "grains_ref/evaluation/judge.py",
    "grains_ref/datasets/replies.py",
)
EVALUATION, HARNESS, READERS = (
    "grains_ref/evaluation/measures.py",
    "grains_ref/evaluation/lm_eval.py",
    "grains_ref/datasets/",
)
FAST = "grains_ref/fast.py"
COMPARE, COMPONENTS, MARGINS, STORED = (
    f"grains_ref/conformance/{name}.py" for name in ("compare", "components", "margins", "vectors")
)
BUGS = (
    Bug("off_by_one_logits", "objective", "the row of a token scores the token itself, not the next",
        M, "logits_to_keep=len(response_ids),\n            use_cache",
        "logits_to_keep=len(response_ids) + 1,\n            use_cache", "test_1_objective"),
    Bug("logits_one_late", "objective", "the row after the right one scores each response token",
        G, "log_p[:, torch.arange(len(y)), y.to(log_p.device)]",
        "log_p[:, (torch.arange(len(y)) + 1).clamp(max=len(y) - 1), y.to(log_p.device)]", "test_1_objective"),
    Bug("negative_ids_index_from_the_end", "objective", "a negative token id scores a word at the vocabulary's end",
        G, "if y.min() < 0:", "if False:", "test_1_objective"),
    Bug("scores_need_not_be_finite", "objective", "a NaN score is handed on",
        G, "if not log_p_y.isfinite().all():", "if False:", "test_1_objective"),
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
        G, "return attribution_of(f, x, baseline, (x - baseline) * total)\n\n\ndef gradient_times_input",
        "return attribution_of(f, x, baseline, total)\n\n\ndef gradient_times_input", "test_2_attribution"),
    Bug("gauss_not_rescaled", "attribution", "Gauss-Legendre weights of [-1, 1] are used on [0, 1]",
        G, "(weights / 2).tolist()", "weights.tolist()", "test_2_attribution"),
    Bug("response_interpolated", "attribution", "the response's embeddings move along the path with the prompt's",
        M, "fed = self.embed(response_ids[:-1].to(self.device)).to(embeds)",
        "fed = self.embed(response_ids[:-1].to(self.device)).to(embeds) * (embeds.norm() / encoded.embeds.norm())",
        "test_2_attribution"),
    Bug("half_precision_sums", "attribution", "bfloat16 gradients are added up in bfloat16",
        G, "total = torch.zeros_like(x, dtype=at_least_float32(x))\n    for alpha",
        "total = torch.zeros_like(x)\n    for alpha", "test_2_attribution"),
    Bug("no_sign_filter", "selection", "the k highest scores, whatever their sign",
        G, "(j for j in candidates if score[j] > 0)", "(j for j in candidates)", "test_3_selection"),
    Bug("zero_counts", "selection", "scores of zero are filled in on the negative side",
        G, "(j for j in candidates if score[j] < 0)", "(j for j in candidates if score[j] <= 0)", "test_3_selection"),
    Bug("ties_to_the_higher", "selection", "among equal scores the later token wins",
        G, "key=lambda j: (-score[j], j)", "key=lambda j: (-score[j], -j)", "test_3_selection"),
    Bug("padding_eligible", "selection", "padding can be selected",
        G, 'never = {"pad"}', "never: set[str] = set()", "test_3_selection"),
    Bug("template_is_content", "selection", "the rule `content` keeps the template's own words",
        G, '"content": ("template", "special")', '"content": ("special",)', "test_3_selection"),
    Bug("post_norm_last_layer", "contrast", "the last layer's state is read after the final norm",
        M, "return torch.stack(last, dim=1)  # (B, L, d)",
        "return torch.stack([*last[:-1], self.hf.get_decoder().norm(last[-1])], dim=1)", "test_4_contrast"),
    Bug("first_token_state", "contrast", "the state is read at the first position, not the last",
        M, "last.append(h[:, -1]", "last.append(h[:, 0]", "test_4_contrast"),
    Bug("negative_tokens_mask_the_end", "contrast", "a negative index masks from the end",
        G, "any(not 0 <= j < len(x) for j in tokens)", "any(j >= len(x) for j in tokens)", "test_4_contrast"),
    Bug("everything_else_masked", "contrast", "the complement of the set is masked",
        G, "masked[list(tokens)] = baseline[list(tokens)]",
        "keep = list(tokens)\n    masked = baseline.clone()\n    masked[keep] = x[keep]", "test_4_contrast"),
    Bug("rounding_as_shift", "contrast", "an empty set leaves rounding errors as its shift",
        G, "delta_neg = h - h_without_neg if selection.neg else torch.zeros_like(h)",
        "delta_neg = h - h_without_neg", "test_4_contrast"),
    Bug("unsigned_pca", "aggregation", "the principal component keeps the solver's sign",
        G, "v = (basis @ mean) @ basis  #", "v = u[0]  #", "test_5_aggregation"),
    Bug("uncentred_pca", "aggregation", "the mean is not subtracted",
        G, "D if method == \"uncentred\" else D - mean", "D", "test_5_aggregation"),
    Bug("random_direction_of_noise", "aggregation", "equal shifts give a direction made of rounding errors",
        G, "if s[0] <= negligible:", "if s[0] < 0:", "test_5_aggregation"),
    Bug("sum_of_sides", "aggregation", "v_pos + v_neg",
        G, "    return v_pos - v_neg\n", "    return v_pos + v_neg\n", "test_5_aggregation"),
    Bug("norm_over_tokens", "steering", "norms are taken over the sequence, not the width",
        G, "(shifted, -shifted_exponent).norm(dim=-1, keepdim=True)",
        "(shifted, -shifted_exponent).norm(dim=-2 if h.ndim > 1 else -1, keepdim=True)", "test_6_steering"),
    Bug("norm_not_restored", "steering", "equation (8) is left out",
        G, "(ratio.isfinite(), shifted * ratio, wide)", "(ratio.isfinite(), shifted, wide)", "test_6_steering"),
    Bug("norm_in_half_precision", "steering", "norms are computed in the stream's own type, where float16 overflows",
        G, "wide = h.to(at_least_float32(h))", "wide = h", "test_6_steering"),
    Bug("last_position_only", "steering", "only the last position of the sequence is steered",
        G, "        return edit(output)\n", "        return torch.cat([output[:, :-1], edit(output)[:, -1:]], 1)\n",
        "test_6_steering"),
    Bug("batch_row_0_only", "steering", "only row 0 of a batch is steered",
        G, "        return edit(output)\n", "        return torch.cat([edit(output)[:1], output[1:]])\n",
        "test_6_steering"),
    Bug("tuples_lose_their_rest", "steering", "of a block's tuple only the state is handed on",
        G, "return (edit(output[0]), *output[1:])", "return (edit(output[0]),)", "test_6_steering"),
    Bug("steers_copies_too", "steering", "a deep copy made inside the `with` block stays steered",
        G, "if module is self._module and self._entry in", "if self._entry in", "test_6_steering"),
    Bug("steers_other_threads", "steering", "what another thread computes meanwhile is steered too",
        G, "if module is self._module and self._entry in _ENTERED.get():", "if module is self._module:",
        "test_6_steering"),
    Bug("squares_overflow", "steering", "norms square numbers as they are",
        G, "torch.ldexp(shifted, -shifted_exponent).norm(dim=-1, keepdim=True)",
        "torch.ldexp(shifted.norm(dim=-1, keepdim=True), -shifted_exponent)", "test_6_steering"),
    Bug("lost_states_pass", "steering", "a state that is too short beside lam * v becomes zero",
        G, "lost = (ratio < torch.finfo(ratio.dtype).tiny).squeeze(-1)", "lost = (ratio < 0).squeeze(-1)",
        "test_6_steering"),
    Bug("one_layers_vector", "steering", "every layer gets the last layer's vector",
        G, "self._hook(v[i].detach())", "self._hook(v[-1].detach())", "test_6_steering"),
    Bug("hooks_left_by_exceptions", "steering", "hooks stay when the `with` block ends by an exception",
        G, "        for handle in self._entries.pop(last):\n",
        "        for handle in self._entries.pop(last) if exception[:1] == (None,) else ():\n", "test_6_steering"),
    Bug("prefill_only", "generation", "single tokens, as cached decoding feeds them, are not steered",
        G, "        return edit(output)\n", "        return edit(output) if output.shape[1] > 1 else None\n",
        "test_7_generation"),
    Bug("greedy_one_behind", "generation", "greedy decoding reads the row before the last",
        G, "said_and_next)[0, -1]", "said_and_next)[0, max(-2, -1 - len(ids))]",
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
        G, "[s.delta_neg for s in shifts]", "[s.delta_pos for s in shifts]", "test_fit"),
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
    # ---------------------------------------------------------------------------------------- baselines
    Bug("read_one_early", "baselines", "activations are read one token before the last",
        CORE, "_wide(x[0, -last:]).cpu()", "_wide(x[0, -last - 1 : -1]).cpu()", "test_core"),
    Bug("edit_one_late", "baselines", "`after_prompt` leaves the prompt's last token as it is",
        CORE, "first = x.shape[1] - 1 if", "first = x.shape[1] if", "test_core"),
    Bug("always_after_the_first_prompt", "baselines", "a second prompt is edited from its first token on",
        CORE, "cache is None or cache.get_seq_length() == 0",
        "self._in_prompt and (cache is None or cache.get_seq_length() == 0)", "test_core"),
    Bug("move_not_in_units_of_the_norm", "baselines", "`keep_norm` adds y to x, not to its direction",
        CORE, "unit(unit(x) + y)", "unit(x + y)", "test_core"),
    Bug("always_centred", "baselines", "an uncentred component is centred, too",
        CORE, "z = rows - mean if centred else rows", "z = rows - mean", "test_core"),
    Bug("caa_letters_inverted", "baselines", "every second lettered pair has its letters exchanged",
        CAA, '("(B)", "(A)") if i % 2 else ("(A)", "(B)")', '("(A)", "(B)")', "test_caa"),
    Bug("caa_into_the_shared_ending", "baselines", "`difference` reads the first token that both answers share",
        CAA, "return n - 1 - shared", "return min(n - 1, n - shared)", "test_caa"),
    Bug("icv_embedding_kept", "baselines", "ICV's vectors are one block late: the embedding's is used",
        ICV, ".view(deltas.shape[1:])[1:]", ".view(deltas.shape[1:])[:-1]", "test_icv"),
    Bug("icv_adaptive_inverted", "baselines", "ICV's factor g grows where a token points along v",
        ICV, "(unit(x) @ -unit(v))", "(unit(x) @ unit(v))", "test_icv"),
    Bug("icv_absolute_is_relative", "baselines", "`absolute` takes lam v in units of each token's norm",
        ICV, "            y = y / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)\n", "            pass\n", "test_icv"),
    Bug("iti_classes_inverted", "baselines", "theta points from right to wrong",
        ITI, "unit(at_direction[right].mean(0) - at_direction[~right].mean(0))",
        "unit(at_direction[~right].mean(0) - at_direction[right].mean(0))", "test_iti"),
    Bug("iti_sample_deviation", "baselines", "sigma is the sample's standard deviation",
        ITI, "correction=0", "correction=1", "test_iti"),
    Bug("iti_trained_on_held_out", "baselines", "probes are trained on the questions that they are scored on, too",
        ITI, "fitted, judged = torch.isin(question, train),", "fitted, judged = question >= 0,", "test_iti"),
    Bug("iti_worse_loss_first", "baselines", "among heads of one accuracy the one with the larger loss comes first",
        ITI, ", round(loss[h].item(), 9), h)", ", -round(loss[h].item(), 9), h)", "test_iti"),
    Bug("iti_spread_ignored", "baselines", "every head is shifted by alpha, whatever its spread",
        ITI, "(chosen * self.sigma)[..., None]", "chosen[..., None]", "test_iti"),
    Bug("iti_alpha_ignored", "baselines", "heads are shifted by sigma, whatever alpha",
        ITI, "shift_heads(model, alpha * self.shift(heads))", "shift_heads(model, self.shift(heads))", "test_iti"),
    Bug("iti_split_without_seed", "baselines", "every seed holds out the same questions",
        ITI, 'random.Random(f"questions {seed}")', 'random.Random("questions")', "test_iti"),
    Bug("ict_noise_one_step_short", "baselines", "the noise schedule stops a step early",
        ICT, "(1 - b[: step + 1]).prod()", "(1 - b[:step]).prod()", "test_ict"),
    Bug("ict_same_noise_for_all", "baselines", "every picture gets the same noise",
        ICT, "manual_seed(int(digest[:12], 16) ^ seed)", "manual_seed(seed)", "test_ict"),
    Bug("ict_noise_around_the_object", "baselines", "the object stays and all else is noised",
        ICT, "torch.where(where.to(pixels.device), degraded, pixels)",
        "torch.where(where.to(pixels.device), pixels, degraded)", "test_ict"),
    Bug("ict_beta_ignored", "baselines", "the object level is shifted by alpha",
        ICT, '{"image": alpha, "object": beta}', '{"image": alpha, "object": alpha}', "test_ict"),
    Bug("ict_all_halved", "baselines", "heads of either level are halved, not only those of both",
        ICT, "set.intersection(*chosen)", "set.union(*chosen)", "test_ict"),
    Bug("vti_last_layer_dropped", "baselines", "the last block's visual vector is dropped, not the embeddings'",
        VTI, "return u[:, 1:].contiguous()", "return u[:, :-1].contiguous()", "test_vti"),
    Bug("vti_factor_forgotten", "baselines", "the textual part is ten times as strong",
        VTI, "lam=FACTOR * text", "lam=text", "test_vti"),
    Bug("vti_text_without_vision", "baselines", "textual vectors are fitted on the unsteered vision tower",
        VTI, "with steer_vision(model, visual, alpha=alpha) if alpha else nullcontext():", "with nullcontext():",
        "test_vti"),
    Bug("vti_not_at_unit_length", "baselines", "visual vectors keep their length",
        VTI, "FACTOR * alpha * unit(u)", "FACTOR * alpha * u", "test_vti"),
    Bug("repe_no_random_order", "baselines", "all differences point from rejected to chosen",
        REPE, "first_component(order[:, None] * rows,", "first_component(rows,", "test_repe"),
    Bug("repe_one_order", "baselines", "every seed draws the same order",
        REPE, "manual_seed(seed)", "manual_seed(0)", "test_repe"),
    Bug("repe_no_vote", "baselines", "directions are not turned toward the chosen answers",
        REPE, "p if higher >= lower else -p", "p", "test_repe"),
    Bug("lora_mean_of_means", "baselines", "short answers weigh as much as long ones",
        LORA, 'reduction="sum") / n', 'reduction="mean") / len(chosen)', "test_lora"),
    Bug("lora_without_end", "baselines", "the end-of-text token is not trained",
        LORA, "torch.cat([model.response_ids(pair.prompt, pair.chosen), torch.tensor([end])])",
        "model.response_ids(pair.prompt, pair.chosen)", "test_lora"),
    Bug("lora_absurd_weights", "baselines", "weights that drown the model are handed on",
        LORA, "if not added <= most * own:", "if not added < float('inf'):", "test_lora"),
    Bug("lora_absurd_losses", "baselines", "a loss is only asked to be finite",
        LORA, "if loss <= most and math.isfinite(norm):", "if math.isfinite(loss) and math.isfinite(norm):",
        "test_lora"),
    Bug("lora_unscaled", "baselines", "adapters are not scaled by alpha / rank",
        LORA, "Adapter(learning_rate, alpha / rank, a, b,", "Adapter(learning_rate, 1.0, a, b,", "test_lora"),
    # ---------------------------------------------------------------------------------------- readers
    Bug("draw_without_question", "readers", "all questions draw the same place in the list",
        READERS + "policies.py", 'random.Random(f"{seed}:{key}")', 'random.Random(f"{seed}")', "test_datasets"),
    Bug("bad_rows_vanish", "readers", "rows that are left out are not reported",
        READERS + "records.py", "            skipped.append(error)\n", "            pass\n", "test_datasets"),
    Bug("pictures_by_name", "readers", "a digest takes a picture's name, not its bytes",
        READERS + "records.py", "        return file_digest(value)\n", "        return str(value)\n",
        "test_splits"),
    Bug("dev_tenth_of_all", "readers", "dev is a tenth of all examples, not of the rest",
        READERS + "splits.py", "round(DEV_SHARE * rest)", "round(DEV_SHARE * len(items))", "test_splits"),
    Bug("dev_and_test_exchanged", "readers", "dev and test are exchanged",
        READERS + "splits.py", "tuple(dev), tuple(test))\n\n\ndef cut", "tuple(test), tuple(dev))\n\n\ndef cut",
        "test_splits"),
    Bug("split_by_row_order", "readers", "a split depends on the order of rows",
        READERS + "splits.py", "key=lambda i: (keys_of[i],", "key=lambda i: (i, keys_of[i],", "test_splits"),
    Bug("split_without_seed", "readers", "every seed cuts alike",
        READERS + "splits.py", "random.Random(seed).shuffle(ordered)", "random.Random(0).shuffle(ordered)",
        "test_splits"),
    Bug("test_repeated_in_training", "readers", "training examples that repeat a test example stay",
        READERS + "splits.py", "if any(key in in_test for item in group for key in keys(item)):", "if False:",
        "test_splits"),
    Bug("toxic_from_the_threshold", "readers", "ratings of 5.5 together are toxic",
        READERS + "toxigen.py", "> THRESHOLD", ">= THRESHOLD", "test_datasets"),
    Bug("toxic_is_no", "readers", "Yes and No are exchanged",
        READERS + "toxigen.py", 'right = "Yes" if is_toxic(row) else "No"', 'right = "No" if is_toxic(row) else "Yes"',
        "test_datasets"),
    Bug("truthful_labels_inverted", "readers", "mc1 and mc2 labels are inverted",
        READERS + "truthfulqa.py", "tuple(label == 1 for label in labels)", "tuple(label == 0 for label in labels)",
        "test_datasets"),
    Bug("right_answer_first", "readers", "the rebuilt binary questions have their right answer first",
        READERS + "truthfulqa.py", '        random.Random(f"{seed}:order:{key}").shuffle(two)\n', "", "test_datasets"),
    Bug("key_off_by_one", "readers", "a numeric answer key points one option too far",
        READERS + "faitheval.py", "int(key) - 1 if key.isdecimal()", "int(key) if key.isdecimal()", "test_datasets"),
    Bug("unknown_is_rejected", "readers", "an answer that says `unknown` can be the rejected one",
        READERS + "faitheval.py", "if text.strip() and not _accepted(text, task)]", "if text.strip()]",
        "test_datasets"),
    Bug("shots_of_any_subject", "readers", "MMLU's examples are of any subject",
        READERS + "mmlu.py", '[one for one in dev if one["subject"] == row["subject"]]', "[*dev]", "test_datasets"),
    Bug("no_room_for_the_answer", "readers", "examples take the tokens that are kept for the answer",
        READERS + "shots.py", "+ answer_tokens <= context", "<= context", "test_datasets"),
    Bug("descriptions_exchanged", "readers", "VTI's hallucinating description is the chosen one",
        READERS + "mmhal.py", 'prompt, row["value"], row["h_value"],', 'prompt, row["h_value"], row["value"],',
        "test_datasets"),
    Bug("pictures_in_two_parts", "readers", "SPA-VL's splits look at questions only",
        READERS + "spa_vl.py", '(question_key(row["question"]), file_digest(row["image"]))',
        '(question_key(row["question"]),)', "test_datasets"),
    # ---------------------------------------------------------------------------------------- scores: metrics, judge, r
    Bug("tie_is_right", "scores", "a tie of right and wrong choice counts as right",
        METRICS, "return true[0] > max(false)", "return true[0] >= max(false)", "test_metrics"),
    Bug("mc2_underflows", "scores", "MC2 takes exp of each log-probability alone",
        METRICS, "softmax(np.array(scores, dtype=np.float64))",
        "(np.exp(np.array(scores)) / np.exp(np.array(scores)).sum())", "test_metrics"),
    Bug("mc3_any_wrong", "scores", "MC3 asks for more than the weakest wrong choice",
        METRICS, "sum(score > max(false) for", "sum(score > min(false) for", "test_metrics"),
    Bug("never_per_token", "scores", "scores per token are sums",
        METRICS, 'log_prob / n_tokens if by == "token" else log_prob', "log_prob", "test_metrics"),
    Bug("clusters_by_size", "scores", "clusters are added up",
        METRICS, "np.mean(members)", "np.sum(members)", "test_metrics"),
    Bug("unseeded_bootstrap", "scores", "the interval is another one each time",
        METRICS, 'method="percentile", rng=0', 'method="percentile", rng=None', "test_metrics"),
    Bug("exact_interval", "scores", "a rate's interval is Clopper and Pearson's",
        METRICS, 'method="wilson"', 'method="exact"', "test_measures"),
    Bug("bleu_tie_is_right", "scores", "a reply that is as close to wrong references is right",
        METRICS, "tuple(difference > 0 for", "tuple(difference >= 0 for", "test_metrics"),
    Bug("bleu_tokens", "scores", "BLEU splits words as WMT does",
        METRICS, 'tokenize="intl"', 'tokenize="13a"', "test_metrics"),
    Bug("three_is_a_hallucination", "scores", "a rating of 3 is a hallucination",
        METRICS, "rating < HALLUCINATION_BELOW", "rating <= HALLUCINATION_BELOW", "test_metrics"),
    Bug("unrated_left_out_of_the_mean", "scores", "a reply without a rating is left out of the mean",
        METRICS, "mean=average(points)", "mean=average(rated)", "test_metrics"),
    Bug("bonferroni", "scores", "every p-value is multiplied by the number of comparisons",
        METRICS, "(len(p_values) - i) * p_values[name]", "len(p_values) * p_values[name]", "test_metrics"),
    Bug("holm_not_monotone", "scores", "a larger p-value can end up smaller",
        METRICS, "so_far = max(so_far, min(", "so_far = max(0.0, min(", "test_metrics"),
    Bug("sign_flips_of_prompts", "scores", "the sign of every value is flipped alone, whatever its cluster",
        METRICS, "means = _cluster_means(_differences(first, second), clusters)",
        "means = _cluster_means(_differences(first, second), ())", "test_metrics"),
    Bug("first_rating", "scores", "the first rating in a judge's reply counts",
        JUDGE, "int(found[-1]) if found", "int(found[0]) if found", "test_judge"),
    Bug("strict_takes_several", "scores", "the strict rule accepts several ratings",
        JUDGE, "found[0] if len(found) == 1 else None", "found[0] if found else None", "test_judge"),
    Bug("one_attempt_more", "scores", "a request is tried once more than asked",
        JUDGE, "for attempt in range(self.attempts):", "for attempt in range(self.attempts + 1):", "test_judge"),
    Bug("all_retried", "scores", "a refused request is tried again",
        JUDGE, "if error.code not in RETRIED:", "if False:", "test_judge"),
    Bug("retry_after_ignored", "scores", "the server's own waiting time is ignored",
        JUDGE, 'max(wait, _asked_for(error.headers.get("Retry-After")))', "wait", "test_judge"),
    Bug("waits_as_long_as_it_is_told", "scores", "a server can ask for any waiting time",
        JUDGE, '_asked_for(error.headers.get("Retry-After"))), self.longest_wait)',
        '_asked_for(error.headers.get("Retry-After"))), 1e9)', "test_judge"),
    Bug("verdicts_of_another_judge", "scores", "another judge gets the kept replies",
        JUDGE, "key = hashlib.sha256(json.dumps(described, sort_keys=True).encode())",
        "key = hashlib.sha256(json.dumps(asdict(case), sort_keys=True).encode())", "test_judge"),
    Bug("verdicts_of_another_answer", "scores", "a case is known by its question alone",
        JUDGE, '{"judge": self.identity, **asdict(case)}', '{"judge": self.identity, "question": case.question}',
        "test_judge"),
    Bug("words_of_short_replies", "scores", "option words count in a reply of five words",
        REPLIES, "if len(text.split()) > 5:", "if len(text.split()) >= 5:", "test_metrics"),
    Bug("random_option_without_seed", "scores", "all replies that name no option get the same one",
        REPLIES, "random.Random(seed).randrange", "random.Random(0).randrange", "test_metrics"),
    Bug("margin_inverted", "scores", "log P(rejected) - log P(chosen)",
        EVALUATION, "scores[i] - scores[n + i] for i", "scores[n + i] - scores[i] for i", "test_measures"),
    Bug("equal_answers_won", "scores", "a pair whose answers are equally likely is won",
        EVALUATION, "rate(margin > 0 for", "rate(margin >= 0 for", "test_measures"),
    Bug("prompt_tokens_counted", "scores", "scores per token are divided by all tokens",
        EVALUATION, "n_tokens=len(row.response)", "n_tokens=len(row.prompt) + len(row.response)", "test_metrics"),
    Bug("last_prompts_dropped", "scores", "the last, smaller batch is not generated",
        EVALUATION, "range(0, len(prompts), batch_size)", "range(0, len(prompts) - batch_size + 1, batch_size)",
        "test_metrics"),
    Bug("one_failure_less", "scores", "as many failures as are allowed are too many",
        EVALUATION, "if failed > allowed:", "if failed >= allowed:", "test_measures"),
    Bug("strongest_of_equals", "scores", "of equally good settings the last is chosen",
        EVALUATION, "sorted(tried, key=lambda one: -one[1])", "sorted(tried[::-1], key=lambda one: -one[1])",
        "test_measures"),
    Bug("capability_ignored", "scores", "a setting that is not admissible is chosen",
        EVALUATION, "        if admissible(setting):\n", "        if True:\n", "test_measures"),
    # ---------------------------------------------------------------------------------------- harness
    Bug("end_cut_off", "harness", "what is too long loses its end",
        HARNESS, "prompt[max(0, min(excess, len(prompt) - 1)) :]", "prompt[: len(prompt) - max(0, excess)]",
        "test_lm_eval"),
    Bug("spaces_dropped", "harness", "spaces at the end of a context are lost",
        HARNESS, "continuation = context[len(bare) :] + continuation", "continuation = continuation", "test_lm_eval"),
    Bug("windows_overlap", "harness", "tokens in two windows are scored twice",
        HARNESS, "for before, said in map(make_disjoint_window, windows)]", "for before, said in windows]",
        "test_lm_eval"),
    Bug("answers_by_length", "harness", "generations come back in the order of their contexts' lengths",
        HARNESS, "answers = [said[i] for i in range(len(requests))]", "answers = [*said.values()]", "test_lm_eval"),
    Bug("first_options_for_all", "harness", "all requests are generated with the first one's options",
        HARNESS, "json.dumps(request.args[1], sort_keys=True)", '""', "test_lm_eval"),
    Bug("last_stop_text", "harness", "a generation goes on to the last stop text",
        HARNESS, "text[: min(ends)] if ends", "text[: max(ends)] if ends", "test_lm_eval"),
    Bug("all_stop_with_one", "harness", "a batch ends with the first row that stops",
        HARNESS, "return torch.tensor(stopped, device", "return torch.tensor([any(stopped)] * len(stopped), device",
        "test_lm_eval"),
    Bug("special_tokens_never_stop", "harness", "a stop text that is a special token is never seen",
        HARNESS, "if token.special and token.content in self.until", "if False", "test_lm_eval"),
    Bug("empty_stop_text_ignored", "harness", "an empty stop text is left out",
        HARNESS, 'if "" in until:', "if False:", "test_lm_eval"),
    Bug("nothing_remembered", "harness", "answers do not reach the harness's cache",
        HARNESS, "self.cache_hook.add_partial(kind, request.args, answer)", "pass", "test_lm_eval"),
    # ---------------------------------------------------------------------------------------- reproduction
    Bug("old_versions_kept", "reproduction", "cells of another version are kept",
        CELLS, 'if cell.get("version") == VERSION and cell.get("row") == name', 'if cell.get("row") == name',
        "test_reproduction"),
    Bug("longest_answers_cut", "reproduction", "generations are as long as the shortest reference",
        CELLS, "new = max(len(row.response) for row in rows) + 2", "new = min(len(row.response) for row in rows)",
        "test_cells"),
    Bug("generated_unsteered", "reproduction", "answers are generated by the unsteered model",
        CELLS, "    with setting.steering():\n        return generations", "    if True:\n        return generations",
        "test_cells"),
    Bug("fast_without_weights", "attribution", "the fast engine sums gradients without the quadrature's weights",
        FAST, "total += weight * gradient", "total += gradient", "test_fast"),
    Bug("fast_last_batch_short", "attribution", "the fast engine drops the last point of a short last batch",
        FAST, "range(0, len(points), at_once)", "range(0, len(points) - 1, at_once)", "test_fast"),
    Bug("fast_ends_swapped", "attribution", "the fast engine takes f at the baseline for f at x",
        FAST, "f_x, f_baseline = ends.tolist()", "f_baseline, f_x = ends.tolist()", "test_fast"),
    Bug("fast_prompt_alone_bounds", "attribution", "the fast engine's bound on memory forgets the responses",
        FAST, "max(len(example.y_pos), len(example.y_neg))", "0", "test_fast"),
    Bug("unsteered_outcomes_for_all", "reproduction", "every row has the unsteered model's outcomes",
        CELLS, "if setting is UNSTEERED and lab.unsteered:", "if lab.unsteered:", "test_cells"),
    Bug("judged_unsteered", "reproduction", "the judge sees the unsteered model's answers",
        CELLS, '        with setting.steering():\n            found["rejected"]',
        '        if True:\n            found["rejected"]', "test_cells"),
    Bug("one_token_more", "reproduction", "figure 3 masks k + 1 tokens",
        CURVES, "mask(x, tokens[:k], zero)", "mask(x, tokens[: k + 1], zero)", "test_reproduction"),
    Bug("geometry_sides_exchanged", "reproduction", "both sides are compared with the positive side's planted mean",
        CURVES, 'torch.stack([getattr(s, f"delta_{sign}") for s in truth])',
        "torch.stack([s.delta_pos for s in truth])", "test_cells"),
    Bug("mean_share_unsquared", "reproduction", "the mean's share is a ratio of lengths",
        CURVES, "(d.mean(0).norm() ** 2 / (d.norm(dim=1) ** 2).mean()).item()",
        "(d.mean(0).norm() / d.norm(dim=1).mean()).item()", "test_cells"),
    Bug("attributions_shared", "reproduction", "settings with other path baselines share attributions",
        LAB, 'for name in ("k", "mask_baseline",', 'for name in ("path_baseline", "k", "mask_baseline",',
        "test_reproduction"),
    Bug("shifts_shared_by_k", "reproduction", "settings with another k share shifts",
        LAB, 'hp = replace(hp, aggregation="pca", components=1)',
        'hp = replace(hp, aggregation="pca", components=1, k=3)', "test_reproduction"),
    Bug("planted_sides_exchanged", "reproduction", "planted causes of the two sides are exchanged",
        LAB, "Selection(pos=prompt.trust, neg=prompt.rumour)", "Selection(pos=prompt.rumour, neg=prompt.trust)",
        "test_cells"),
    Bug("always_all_examples", "reproduction", "fits are on all steering pairs, however many were asked for",
        LAB, "range(n or len(self.steer))", "range(len(self.steer))", "test_reproduction"),
    Bug("cell_box_turned", "reproduction", "x and y of a cell's box are exchanged",
        LAB, "left, top = cell % GRID * CELL * scale, cell // GRID * CELL * scale",
        "top, left = cell % GRID * CELL * scale, cell // GRID * CELL * scale", "test_cells"),
    Bug("log_nodes_unweighted", "reproduction", "the substitution's factor alpha is forgotten",
        ROWS, "width * alpha * gradient", "width * gradient", "test_reproduction"),
    Bug("one_random_draw", "reproduction", "all random draws are the same",
        ROWS, 'attribution="random", seed=draw)', 'attribution="random", seed=0)', "test_cells"),
    Bug("smoothgrad_default_cost", "reproduction", "SmoothGrad has its own number of samples",
        ROWS, 'attribution="smoothgrad", n=lab.paper.m)', 'attribution="smoothgrad")', "test_cells"),
    Bug("greedy_never_stops", "reproduction", "the greedy set grows while accuracy stays the same",
        ROWS, "if accuracy <= best:", "if accuracy < best:", "test_cells"),
    Bug("first_draw_only", "reproduction", "only the first random draw counts",
        TABLES, 'draws = [d[measure] for d in cell["draws"]]', 'draws = [d[measure] for d in cell["draws"][:1]]',
        "test_cells"),
    Bug("gain_over_the_reference", "reproduction", "gains are over the reference row",
        TABLES, "gain=paired_gain(mine, base, clusters", "gain=paired_gain(mine, other, clusters", "test_reproduction"),
    Bug("prompts_as_clusters", "reproduction", "intervals are over prompts, not facts",
        TABLES, "clusters += facts[world, seed] if by_fact else", "clusters += facts[world, seed] if False else",
        "test_reproduction"),
    Bug("tasks_by_fact", "reproduction", "tasks are put together by the facts of the prompts",
        TABLES, 'by_fact = measure != "capable" and len', "by_fact = len", "test_cells"),
    Bug("uncorrected", "reproduction", "p-values are not corrected",
        TABLES, "holm(p_values).items()", "p_values.items()", "test_reproduction"),
    Bug("end_of_any_grid", "reproduction", "a method with one strength is always at the end of its grid",
        TABLES, "len(strengths) > 2 and", "", "test_cells"),
    Bug("best_gain_on_dev", "reproduction", "a dev gain is that of the best that was tried",
        TABLES, 'tried[draw["label"], draw["strength"]] - tried', "max(tried.values()) - tried", "test_reproduction"),
    Bug("sum_unscaled", "reproduction", "the sum of vectors ignores their strengths",
        TRANSFER, "torch.stack([lam[b] * v[b] for b in labs])", "torch.stack([v[b] for b in labs])", "test_transfer"),
    Bug("zero_margin_is_right", "reproduction", "equally likely answers count as right",
        TRANSFER, "_bits(m > 0 for m in one)", "_bits(m >= 0 for m in one)", "test_transfer"),
    Bug("doses_on_test", "reproduction", "doses are measured on test",
        TRANSFER, "row_margins(model, lab.bench.dev)", "row_margins(model, lab.bench.test_rows)", "test_transfer"),
    Bug("dose_sum", "reproduction", "a dose's margin is a sum over pairs",
        TRANSFER, "{b: sum(one) / len(one) for b, one in margins.items()}",
        "{b: sum(one) for b, one in margins.items()}", "test_transfer"),
    Bug("chosen_for_the_other", "reproduction", "a strength is chosen with the other behaviour's vector",
        TRANSFER, "*lab.strengths(name, v[behaviour])", "*lab.strengths(name, [v[b] for b in v if b != behaviour][0])",
        "test_transfer"),
    Bug("either_is_both", "reproduction", "`both` is right where one behaviour is",
        TRANSFER, "float(all(bits))", "float(any(bits))", "test_transfer"),
    Bug("seeds_are_other_facts", "reproduction", "a fact's seeds are bootstrapped apart",
        TRANSFER, "of_all = [*of_one] * len(found)",
        'of_all = [f"{i}-{one}" for i in range(len(found)) for one in of_one]', "test_transfer"),
    Bug("gain_over_nothing", "reproduction", "gains are the values themselves",
        TRANSFER, "paired_gain(mine, before, clusters=of_all)", "paired_gain(mine, [0.0] * len(mine), clusters=of_all)",
        "test_transfer"),
    Bug("planted_words_exchanged", "reproduction", "words toward and against a behaviour are exchanged",
        TRANSFER, "Selection(pos=prompt.toward, neg=prompt.against)",
        "Selection(pos=prompt.against, neg=prompt.toward)", "test_transfer"),
    Bug("mean_is_pca", "reproduction", "the fit `mean` aggregates as the paper does",
        TRANSFER, 'return lab.fit(replace(lab.paper, aggregation="mean")).v', "return lab.fit(lab.paper).v",
        "test_transfer"),
    Bug("page_sums_seeds", "reproduction", "the page adds doses up over seeds",
        TRANSFER, "sum(one[name] for one in dose) / len(dose)", "sum(one[name] for one in dose)", "test_transfer"),
    Bug("page_errors_of_the_first_seed", "reproduction", "a fit that failed on another seed is taken for measured",
        TRANSFER, 'zip(results, fits, strict=True) if "error" in one',
        'zip(results[:1], fits[:1], strict=True) if "error" in one', "test_transfer"),
    Bug("page_doses_of_one_vector", "reproduction", "both vectors' doses are the first one's",
        TRANSFER, 'zip(*(one["doses"][behaviour] for one in fits), strict=True)',
        'zip(*(one["doses"][behaviours[0]] for one in fits), strict=True)', "test_transfer"),
    Bug("pages_of_different_facts", "reproduction", "cells about different prompts are pooled",
        TRANSFER, 'any(cell["facts"] != results[0]["facts"] for cell in results)', "False", "test_transfer"),
    Bug("nested_is_sum", "reproduction", "norms are restored once, also where vectors are nested",
        TRANSFER, '"nested": together(*alone.values())', '"nested": Steering(blocks, total, lam=1.0)', "test_transfer"),
    Bug("double_dev_is_test", "reproduction", "the double world's strengths are chosen on test",
        TRANSFER, 'world.split("dev", behaviour)', 'world.split("test", behaviour)', "test_cells"),
    Bug("double_steers_for_the_other", "reproduction", "a behaviour's vector is fitted on the other one's pairs",
        TRANSFER, 'steer=pairs(world.split("steer", behaviour))',
        'steer=pairs(world.split("steer", {"myth": "manner", "manner": "myth"}[behaviour]))', "test_transfer"),
    Bug("dev_is_test", "reproduction", "a planted world's strengths are chosen on test",
        LAB, 'dev=(text.as_pairs(built.split("dev"))', 'dev=(text.as_pairs(built.split("test"))', "test_cells"),
    Bug("visual_tasks_of_test", "reproduction", "a visual world's dev capability is measured on test",
        LAB, 'tasks(visual.capability_split("dev"), folder)', 'tasks(visual.capability_split("test"), folder)',
        "test_cells"),
    Bug("every_sign_right", "conformance", "a component is right with either sign",
        COMPARE, "rows = [u, *(", "rows = [u, -u, *(", "test_one_truth"),
    Bug("rows_of_any_layer", "conformance", "a row that is right in one layer is right in all",
        COMPARE, "(one.of, one.layer) == (of, layer)", "one.of == of", "test_one_truth"),
    Bug("spans_have_no_sign", "conformance", "a vector of a span may point against the mean shift",
        COMPARE, "if span.toward is None or w @ span.toward >= -2 * budget:", "if True:", "test_one_truth"),
    Bug("spans_in_every_dtype", "conformance", "a nearly equal eigenvalue counts as equal, however small the errors",
        COMPARE, "and one.begins <= budget\n    ]\n\n\ndef _distances", "\n    ]\n\n\ndef _distances",
        "test_kit_vectors"),
    Bug("rows_beside_no_gap", "conformance", "the tolerance of a direction ignores the eigen-gap",
        COMPARE, "pairs += [(float(np.linalg.norm(w - row)), budget * (1 + 2 / gap)) for row in rows]",
        "pairs += [(float(np.linalg.norm(w - row)), budget) for row in rows]", "test_one_truth"),
    Bug("signs_as_they_come", "conformance", "a sign that nothing defines is stored as the library has it",
        COMPONENTS, "u = u * np.sign(u[_leading(np.abs(u))])", "u = u * 1.0", "test_one_truth"),
    Bug("directions_as_they_come", "conformance", "a vector of an eigenspace is stored as the library has it",
        COMPONENTS, "if (same := spectrum.equal()) > 1:", "if (same := 1) > 1:",
        "test_one_truth"),
    Bug("margins_of_rounding", "conformance", "margins are stored with the last bits of a library",
        COMPONENTS, 'return float(f"{round(float(margin), 12):.6g}") + 0.0', "return float(margin)",
        "test_kit_vectors"),
    Bug("always_written_anew", "conformance", "rewriting changes the last digits of stored outputs",
        STORED, "return stored if distance(case.stage, case.inputs, stored, want) <= KEPT else want", "return want",
        "test_kit_vectors"),
    Bug("never_written_anew", "conformance", "a stored output that is wrong is kept",
        STORED, "return stored if distance(case.stage, case.inputs, stored, want) <= KEPT else want", "return stored",
        "test_kit_vectors"),
    Bug("near_ties_unallowed", "conformance", "stored budgets forget what a dtype cannot tell apart",
        STORED, "may_differ[dtype] = allowed(case, dtype, budget) if judged else None",
        "may_differ[dtype] = budget.budget if judged else None", "test_kit_vectors"),
    Bug("cancellation_unmarked", "conformance", "tokens that cancel have no margin",
        MARGINS, 'if stage == "steering" and dialect == "paper":', "if False:", "test_kit_vectors"),
)  # fmt: skip


def plant(copy: Path, bug: Bug) -> None:
    """Put one bug into the copy; its snippet must be there exactly once."""
    path = copy / bug.file
    text = path.read_text(encoding="utf-8")
    if (found := text.count(bug.snippet)) != 1:
        raise SystemExit(f"{bug.name}: its snippet occurs {found} times in {bug.file}, expected once:\n{bug.snippet}")
    path.write_text(text.replace(bug.snippet, bug.replacement), encoding="utf-8")


def test_file(copy: Path, name: str) -> Path:
    """Where a test file lies, relative to the copy; names are unique over all rooms."""
    (path,) = (copy / "tests").rglob(f"{name}.py")
    return path.relative_to(copy)


def run(copy: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Run tests of the copy up to the first failure: whether all passed, and which failed."""
    command = [sys.executable, "-m", "pytest", "-m", "cpu", "-x", "-q", "-rfE", "--no-header"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *(str(test_file(copy, name)) for name in tests)],
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
    code = "import grains_ref.models.huggingface as m, grains_ref.tiny_models as t; print(m.__file__, t.__file__)"
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
    if importlib.util.find_spec("lm_eval") is None:
        chosen = [bug for bug in chosen if bug.file != HARNESS]
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
