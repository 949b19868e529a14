"""What a port may have besides the seven stages: named arrays in, named arrays out, and the oracle's answer.

`TAKES` and `RULES` say of every option what it takes besides the inputs of its stage, and what it does with that;
`grains-ref conform list options` prints them, and docs/porting.md holds the same table. The outputs are in
`signatures.OUTPUTS`, the axes of all arrays in `signatures.AXES`.
"""

from __future__ import annotations

from grains_ref.conformance import options_generation, options_scores, options_vectors
from grains_ref.conformance.signatures import Stage

ORACLE: dict[str, Stage] = {
    stage.__name__: stage
    for stage in (
        options_scores.objective_batch,
        options_scores.objective_qk_norm,
        options_scores.objective_biases,
        options_scores.objective_sliding_window,
        options_scores.objective_soft_caps,
        options_scores.objective_scaled_embeddings,
        options_scores.attribution_gradient,
        options_scores.attribution_smoothgrad,
        options_scores.attribution_random,
        options_scores.attribution_likelihood,
        options_scores.attribution_batch,
        options_scores.attribution_pictures,
        options_scores.attribution_baselines,
        options_vectors.selection_eligible,
        options_vectors.contrast_batch,
        options_vectors.aggregation_uncentred,
        options_vectors.aggregation_mean,
        options_vectors.aggregation_weighted_mean,
        options_vectors.aggregation_components,
        options_generation.generation_partial,
        options_generation.generation_tuples,
        options_generation.generation_end,
        options_generation.generation_beams,
    )
}
HEADERS: dict[str, str] = {
    "objective_batch": "Eq. (1) of several examples: prompts padded on the left, responses on the right.",
    "objective_qk_norm": "Eq. (1) on a decoder whose q and k heads are normed.",
    "objective_biases": "Eq. (1) on a decoder with biases in q, k and v.",
    "objective_sliding_window": "Eq. (1) on a decoder whose first and third block see only the last tokens.",
    "objective_soft_caps": "Eq. (1) on a decoder with cap * tanh(z / cap) for attention scores and logits.",
    "objective_scaled_embeddings": "Eq. (1) on a decoder that scales what it looks up; x is given as it enters.",
    "attribution_gradient": "App. B: the gradient at x times x - baseline.",
    "attribution_smoothgrad": "App. B: gradients at x + noise, averaged, times x - baseline.",
    "attribution_random": "Sect. 5.3: scores that were drawn.",
    "attribution_likelihood": "Sect. 5.3: log P(y_pos) attributed; y_neg is given and ignored.",
    "attribution_batch": "Eq. (2) of several examples.",
    "attribution_pictures": "Eq. (2) with positions in three axes, and picture tokens that see each other.",
    "attribution_baselines": "Baselines of path and mask: zero, the mean embedding, a token's embedding.",
    "selection_eligible": "Eq. (3) among the tokens that rules about kinds of tokens leave.",
    "contrast_batch": "Eq. (4) of several examples.",
    "aggregation_uncentred": "The first singular vector of the shifts as they are, signed by their mean.",
    "aggregation_mean": "The mean shift to unit length.",
    "aggregation_weighted_mean": "The weighted mean shift to unit length.",
    "aggregation_components": "The mean shift projected on the first principal components, to unit length.",
    "generation_partial": "Vectors for some blocks: row i of v belongs to block layers[i].",
    "generation_tuples": "Blocks that give a tuple beginning with h.",
    "generation_end": "Rows that end with the first end-of-text token they say, filled up with token 0.",
    "generation_beams": "The best continuation of a beam search by summed log-probabilities.",
}
"""What heads each option's stored file."""
_RESPONSES = "y_pos, seen_pos (B, R), y_neg, seen_neg (B, R')"
TAKES: dict[str, str] = {
    "objective_batch": f"x (B, T, d), attention_mask (B, T), {_RESPONSES}",
    "objective_qk_norm": "as the stage",
    "objective_biases": "as the stage",
    "objective_sliding_window": "and window",
    "objective_soft_caps": "and attention_cap, logits_cap",
    "objective_scaled_embeddings": "and scale",
    "attribution_gradient": "without m and quadrature",
    "attribution_smoothgrad": "and noise (n, T, d); without m and quadrature",
    "attribution_random": "x, attention_mask, scores (T,) only",
    "attribution_likelihood": "and method",
    "attribution_batch": f"x, baseline (B, T, d), attention_mask (B, T), {_RESPONSES}, m, quadrature",
    "attribution_pictures": "and positions (3, T), token_types (T,)",
    "attribution_baselines": "x (T, d), kinds (T,), embeddings (V', d), name, token only",
    "selection_eligible": "kinds (T,) and rules (a list) in the place of eligible",
    "contrast_batch": "x, baseline (B, T, d), attention_mask, in_pos, in_neg (B, T)",
    "aggregation_uncentred": "as the stage",
    "aggregation_mean": "as the stage",
    "aggregation_weighted_mean": "and weights_pos, weights_neg (N,)",
    "aggregation_components": "and components",
    "generation_partial": "v (P, d) in the place of v (L, d)",
    "generation_tuples": "as the stage",
    "generation_end": "and end: token ids",
    "generation_beams": "and beams, n; without forced",
}
"""What each option takes besides, or in the place of, the inputs of its stage."""
GIVES: dict[str, str] = {
    "objective_batch": "log_p_pos, log_p_neg, f (B,)",
    "attribution_batch": "a (B, T)",
    "attribution_baselines": "baseline (T, d)",
    "selection_eligible": "eligible (T,) of 0 and 1, pos, neg",
    "contrast_batch": "delta_pos, delta_neg (B, L, d)",
    "generation_beams": "tokens (B, n), log_p (B,)",
}
"""What the options give that do not give what their stage gives."""
RULES: dict[str, str] = {
    "objective_batch": "Rows are separate examples. Prompts are padded on the left, responses on the right, where "
    "seen_pos and seen_neg (1s, then 0s) are 0: that padding is not scored.",
    "objective_qk_norm": "In every head q becomes rms(q) * q_norm and k rms(k) * k_norm, weights (head_dim,) for all "
    "heads alike, before q and k are turned; v is left alone.",
    "objective_biases": "q_bias, k_bias and v_bias are added to q, k and v before they are turned.",
    "objective_sliding_window": "In blocks 0 and 2 only, token i sees token j if i - j < window: itself and the "
    "window - 1 tokens before it. Block 1 sees everything.",
    "objective_soft_caps": "z becomes cap * tanh(z / cap): attention scores after the division by sqrt(head_dim) and "
    "before the mask, logits after the head.",
    "objective_scaled_embeddings": "Embeddings that are looked up (the response's) are multiplied by scale; x is "
    "what enters the first block and is not.",
    "attribution_gradient": "a_j = the sum over features of (x - baseline)_j times the gradient of f at x.",
    "attribution_smoothgrad": "The same with the gradient averaged over the points x + noise_i; the factor stays "
    "x - baseline.",
    "attribution_random": "a is scores: they are drawn by the kit.",
    "attribution_likelihood": "f is log P(y_pos) alone; method integrated_gradients is eq. (2), gradient is "
    "attribution_gradient and ignores m and quadrature. y_neg is given and ignored.",
    "attribution_batch": "As objective_batch; a of every row.",
    "attribution_pictures": "Rotary pair i turns by positions[i] (time, height, width). The response goes on at the "
    "largest entry of positions plus 1, on all three axes alike. Tokens whose token_types is 1 see each other, later "
    "ones too; all else is causal.",
    "attribution_baselines": "zero; token: row token of embeddings for every j; mean: the mean of all rows of "
    "embeddings, but where kinds is image the mean of this x's image tokens. mean adds up in float64.",
    "selection_eligible": "All kinds but pad (text, image, template, special), narrowed by every rule: text drops "
    "image; image drops text, template and special; content drops template and special; no_special drops special; "
    "not_last drops the last token. What is left competes in one ranking.",
    "contrast_batch": "in_pos and in_neg are 1 where a token is in the set, else 0. Rows are separate examples.",
    "aggregation_uncentred": "The first right singular vector of the shifts as they are, signed along their mean.",
    "aggregation_mean": "The mean shift to unit length.",
    "aggregation_weighted_mean": "The sum of weight times shift, to unit length; weights are >= 0 and not all 0.",
    "aggregation_components": "The mean shift projected on the first so many principal components (centred), to unit "
    "length.",
    "generation_partial": "Row i of v belongs to block layers[i], in the order given.",
    "generation_tuples": "Every block gives a tuple that begins with h, and h is steered; outputs are the stage's.",
    "generation_end": "A row of tokens ends with the first id out of end that it says: that one is kept, the rest of "
    "the row is 0. logits are the stage's.",
    "generation_beams": "At every step the beams continuations of a row with the largest summed log P are kept, of "
    "equal ones that of the better parent, then the lower id; the answer is the best one after n steps, and its sum.",
}
"""What each option asks for."""


def gives(option: str) -> str:
    """The outputs of an option, in words."""
    return GIVES.get(option, "as the stage")


def table() -> list[str]:
    """All options as rows of a Markdown table, as docs/porting.md prints it."""
    rows = [f"| `{option}` | {TAKES[option]} | {gives(option)} | {RULES[option]} |" for option in ORACLE]
    return ["| option | in, else as the stage | out | rule |", "|---|---|---|---|", *rows]
