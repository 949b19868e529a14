"""What a port may have besides the seven stages: named arrays in, named arrays out, and the oracle's answer.

| option | in, besides what the stage takes | out |
|---|---|---|
| objective_batch | x (B, T, d), attention_mask (B, T), y_pos, seen_pos (B, R), y_neg, seen_neg (B, R') | (B,) each |
| objective_qk_norm, _biases | - | as the stage |
| objective_sliding_window | window | as the stage |
| objective_soft_caps | attention_cap, logits_cap | as the stage |
| objective_scaled_embeddings | scale | as the stage |
| attribution_gradient | no m, no quadrature | a (T,) |
| attribution_smoothgrad | noise (n, T, d); no m, no quadrature | a (T,) |
| attribution_random | x, attention_mask, scores (T,) | a (T,) |
| attribution_likelihood | method | a (T,) |
| attribution_batch | as objective_batch, and baseline (B, T, d) | a (B, T) |
| attribution_pictures | positions (3, T), token_types (T,) | a (T,) |
| attribution_baselines | x (T, d), kinds (T,), embeddings (V, d), name, token | baseline (T, d) |
| selection_eligible | kinds (T,) and rules in the place of eligible | eligible (T,), pos, neg |
| contrast_batch | x, baseline (B, T, d), attention_mask, in_pos, in_neg (B, T) | delta_pos, delta_neg (B, L, d) |
| aggregation_uncentred, _mean | - | as the stage |
| aggregation_weighted_mean | weights_pos, weights_neg (N,) | as the stage |
| aggregation_components | components | as the stage |
| generation_partial | v (P, d): row i belongs to block layers[i] | as the stage |
| generation_tuples | - | as the stage |
| generation_end | end: token ids | as the stage |
| generation_beams | beams, n; no forced | tokens (B, n), log_p (B,) |

- **Batches.** Rows are examples that have nothing to do with each other. Prompts are padded on the left, responses on
  the right, where `seen_pos` and `seen_neg` are 0: that padding is not scored. `in_pos` and `in_neg` are the two sets.
- **Features** of decoders (`toy.Features`): x is what enters the first block; only what is looked up is scaled.
- **gradient**: (x - baseline) times the gradient of f at x. **smoothgrad**: the gradient averaged over x + noise_i.
  **random**: the scores that were drawn are the answer. **likelihood**: f is log P(y_pos), attributed by eq. (2) or by
  `gradient`; y_neg is given all the same.
- **pictures**: `toy.PictureToy`.
- **baselines**: `zero`; `mean`, of all embeddings, but for picture tokens (`image`) the mean of this prompt's picture
  tokens; `token`, that row of the embeddings for every token. `mean` adds up in float64.
- **eligible**: every token but `pad`, narrowed by each of the rules: `text` drops image; `image` drops text, template
  and special; `content` drops template and special; `no_special` drops special; `not_last` drops the last token. Tokens
  of all kinds that are left compete in one ranking.
- **uncentred**: the first right singular vector of the shifts as they are. **mean**, **weighted_mean**: to unit length.
  **components**: the mean shift projected on the first so many principal components, to unit length.
- **tuples**: every block gives a tuple that begins with h. **end**: a row ends with the first token out of `end` that
  it says; after it the row's tokens are 0. **beams**: at every step the `beams` continuations of a row with the largest
  summed log-probability are kept, of equal ones that of the better parent, then the lower id; the answer is the best
  one, and its sum.
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
