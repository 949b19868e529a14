"""Bugs of what stands beside the paper's method: additions, the fair fight, the verdict, margins, names of models."""

from planted_bugs.planting import Bug

ADDITIONS = "grains_ref/fitting/additions.py"
RANDOM = "grains_ref/fitting/random_tokens.py"
SIGNAL = "grains_ref/fitting/signal.py"
ANY_SITE = "grains_ref/methods/any_site.py"
FIGHT = "grains_ref/reproduction/fair_fight.py"
VERDICT = "grains_ref/reproduction/recommended.py"
LOCAL = "grains_ref/reproduction/local.py"
FULL = "grains_ref/reproduction/full.py"
SCORES = "grains_ref/evaluation/pair_scores.py"
CHOICE = "grains_ref/evaluation/choice.py"
TOKENS = "grains_ref/report/tokens.py"
SWEEP = "grains_ref/cli/choose.py"
BUGS = (
    Bug("random_tokens_of_all", "fit", "random tokens are drawn of all tokens, eligible or not",
        RANDOM, "eligible_tokens(example.encoded, hp.eligible).nonzero()",
        "eligible_tokens(example.encoded, ()).nonzero()", "test_additions"),
    Bug("one_draw_for_all", "fit", "every draw of random tokens is the first",
        RANDOM, "generator_of(example, draw)", "generator_of(example, 0)", "test_additions"),
    Bug("random_shifts_of_another_mask", "fit", "kept shifts of random tokens are taken whatever the mask",
        RANDOM, '"baseline": hp.mask_baseline', '"baseline": ""', "test_additions"),
    Bug("random_shifts_added", "fit", "the mean shift of random tokens is added",
        ADDITIONS, "delta_neg=shift.delta_neg - mean_neg", "delta_neg=shift.delta_neg + mean_neg", "test_additions"),
    Bug("disagreeing_layers_steered", "fit", "the layers whose halves disagree are the ones that are steered",
        ADDITIONS, "cosine >= least for cosine in agreement", "cosine < least for cosine in agreement",
        "test_additions"),
    Bug("neg_side_without_its_sign", "fit", "the negative side alone steers toward the rejected answers",
        ADDITIONS, "combine(nothing, fit.neg.v)", "combine(fit.neg.v, nothing)", "test_additions"),
    Bug("additions_untold", "fit", "the header does not say what was added to the paper's method",
        ADDITIONS, 'asked["less_random"] = self.less_random', "pass", "test_additions"),
    Bug("signal_random_of_itself", "fit", "v is compared with its own pairs in the place of random tokens",
        SIGNAL, "random_shift(model, examples[i], record.shifts[i], hp, draw=0, work=work, number=i)",
        "record.shifts[i]", "test_signal"),
    Bug("one_length_for_both_positions", "baselines", "after the prompt, strengths are shares of the whole length",
        ANY_SITE, "norms[:, len(x.ids) - 1 :].mean()", "norms.mean()", "test_any_site"),
    Bug("shift_of_the_other_set", "baselines", "at any site the two shifts are exchanged",
        ANY_SITE, "whole[site] - without_pos[site], whole[site] - without_neg[site]",
        "whole[site] - without_neg[site], whole[site] - without_pos[site]", "test_any_site"),
    Bug("grid_longer_for_one", "reproduction", "an end that was chosen lengthens the grid of nobody",
        FIGHT, "if lams[-1] in chosen:", "if False:", "test_recommended"),
    Bug("unsteered_is_an_end", "reproduction", "a method that chose nothing lengthens the grid downward",
        FIGHT, "if lams[0] in chosen:", "if lams[0] in chosen or 0.0 in chosen:", "test_recommended"),
    Bug("steerings_made_anew", "reproduction", "every grid of the fight is measured again",
        FIGHT, "if key not in self._settings:", "if True:", "test_recommended"),
    Bug("ahead_is_enough", "reproduction", "a preset is recommended although it is behind in one world beyond chance",
        VERDICT, "isinstance(lead, Rate) and lead.high < 0", "isinstance(lead, Rate) and lead.high < -1",
        "test_recommended"),
    Bug("mean_lead_forgotten", "reproduction", "a preset is recommended although it is behind in the mean",
        VERDICT, "mean is not None and mean <= 0", "mean is not None and mean < -1", "test_recommended"),
    Bug("any_model_under_any_name", "reproduction", "a model is shown under the name of a larger one",
        LOCAL, "if value != should_be:", "if False:", "test_local"),
    Bug("loaded_model_unchecked", "reproduction", "a model from the hub is shown under any name",
        FULL, "if model_name in HUB_IDS:", "if False:", "test_local"),
    Bug("one_prompt_in_two_parts", "reproduction", "pairs of one prompt go into different parts",
        LOCAL, "by_prompt.setdefault(_key(pair), [])", "by_prompt.setdefault(repr(pair), [])", "test_local"),
    Bug("sums_per_token", "scores", "margins per token are margins of whole answers",
        SCORES, '_score(chosen, rows[i], "token") - _score(rejected, rows[n + i], "token")',
        '_score(chosen, rows[i], "sum") - _score(rejected, rows[n + i], "sum")', "test_cli_choose"),
    Bug("change_from_nothing", "scores", "a sweep's change of the margin is the margin",
        CHOICE, "change_of(scores.margins, self.dev[0].margins, self.dev_prompts)",
        "change_of(scores.margins, [0.0] * len(scores.margins), self.dev_prompts)", "test_choice"),
    Bug("template_like_words", "text", "special tokens are shown as the user's words",
        TOKENS, 'FRAMING: tuple[Kind, ...] = ("template", "special")', 'FRAMING: tuple[Kind, ...] = ("template",)',
        "test_tokens"),
    Bug("smaller_strengths_unsaid", "choice", "nobody is told that the grid of strengths begins too high",
        "grains_ref/cli/choice_tables.py", "if gentlest and max(of_gentlest) > choice.accuracy_unsteered:", "if False:",
        "test_cli_choose"),
    Bug("any_vectors_are_swept", "fit", "vectors that mean nothing are handed on to the choice of a strength",
        "grains_ref/cli/fit.py", 'if made.signal.verdict in ("none", "away"):', "if False:", "test_cli_fit"),
    Bug("sweep_without_signal", "fit", "the vectors of a sweep say nothing of their signal",
        SWEEP, "if no_signal or not work_folder:", "if True:", "test_cli_choose"),
)  # fmt: skip
