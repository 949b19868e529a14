"""The cases of the dialect `authors`: those of `paper` under the same ids, with the bugs that they must catch here.

Left out are those whose answer the released code leaves to rounding errors; one is added.
"""

from __future__ import annotations

from dataclasses import replace

from grains_ref.conformance import cases
from grains_ref.conformance.authors import options
from grains_ref.conformance.cases.common import Case, grid
from grains_ref.conformance.stages import OUTPUTS, STAGES
from grains_ref.conformance.toy import WIDTH

LEFT_OUT = {
    **dict.fromkeys(
        ("contrast-009", "contrast-010", "contrast-011", "contrast-014"), "the released code never has an empty set"
    ),
    **dict.fromkeys(("aggregation-029", "aggregation-030"), "entries of one size, and no largest one to sign by"),
    **dict.fromkeys(
        (f"aggregation-{n:03d}" for n in range(17, 23)), "a direction of rounding errors, which is not refused there"
    ),
}
"""Cases of the dialect `paper` that `authors` lacks, and why."""
ILL_POSED = ("aggregation-005",)  # its largest entries are equal and of both signs
TINY = Case("steering-101", "steering", "States so small that the 1e-8 in the denominator counts",
            ("TinyValues", "BeyondFloat16"), "valid",
            {"h": grid("steering-101", 2, 5, WIDTH, step=2.0**-34), "v": grid("steering-101v", WIDTH, step=2.0**-36),
             "lam": 1.0}, ())  # fmt: skip
"""The added case."""

KILLS = {
    # objective
    "objective-001": "all_tokens_one_late",
    "objective-002": "all_tokens_one_late",
    "objective-003": "sides_exchanged",
    "objective-004": "sides_exchanged",
    "objective-005": "paper_objective",
    "objective-006": "paper_objective",
    "objective-007": "paper_objective",
    "objective-008": "sides_exchanged",
    "objective-009": "all_tokens_one_late",
    "objective-010": "all_tokens_one_late",
    "objective-011": "all_tokens_one_late",
    "objective-012": "paper_objective last_token_in_place",
    "objective-013": "paper_objective",
    "objective-014": "paper_objective",
    "objective-015": "sides_exchanged",
    "objective-016": "all_tokens_one_late",
    "objective-017": "paper_objective",
    "objective-018": "paper_objective all_tokens_one_late",
    "objective-024": "last_token_in_place",
    "objective-025": "all_tokens_one_late",
    "objective-026": "all_tokens_one_late",
    "objective-027": "last_token_in_place",
    "objective-028": "all_tokens_one_late",
    "objective-035": "paper_objective",
    # attribution
    "attribution-001": "last_token_in_place",
    "attribution-002": "quadrature_as_given",
    "attribution-003": "quadrature_as_given",
    "attribution-004": "input_factor_missing",
    "attribution-005": "paper_attribution",
    "attribution-006": "paper_attribution all_tokens_in_place response_fixed",
    "attribution-007": "paper_attribution all_tokens_in_place branches_added both_responses_fixed branch_of_y_neg",
    "attribution-008": "quadrature_as_given",
    "attribution-009": "both_responses_fixed",
    "attribution-010": (
        "paper_attribution last_token_in_place branches_added branch_of_y_neg quadrature_as_given baseline_as_given"
    ),
    "attribution-011": (
        "last_token_in_place all_tokens_in_place response_fixed branches_added branch_of_y_neg input_factor_missing"
    ),
    "attribution-012": "branch_of_y_neg",
    "attribution-013": "input_factor_missing",
    "attribution-014": "baseline_as_given",
    "attribution-015": "last_token_in_place",
    "attribution-016": "response_fixed both_responses_fixed baseline_as_given input_factor_missing",
    "attribution-017": "input_factor_missing",
    # selection
    "selection-001": "sets_exchanged",
    "selection-002": "sets_exchanged",
    "selection-003": "sets_exchanged",
    "selection-004": "paper_selection sign_required",
    "selection-005": "paper_selection sign_required ties_to_the_lower",
    "selection-006": "paper_selection sign_required",
    "selection-007": "ties_to_the_lower",
    "selection-008": "ties_to_the_lower",
    "selection-009": "paper_selection",
    "selection-010": "sign_required",
    "selection-011": "ties_to_the_lower",
    "selection-012": "sets_exchanged",
    "selection-013": "paper_selection",
    "selection-014": "sign_required",
    "selection-015": "eligible_only",
    "selection-016": "eligible_only",
    "selection-017": "eligible_only",
    "selection-018": "sets_exchanged",
    "selection-019": "sets_exchanged",
    "selection-020": "eligible_only",
    "selection-021": "eligible_only",
    "selection-022": "paper_selection",
    "selection-023": "sets_exchanged",
    "selection-024": "sets_exchanged",
    # contrast
    "contrast-001": "delta_reversed",
    "contrast-002": "delta_reversed",
    "contrast-003": "last_state_raw",
    "contrast-004": "paper_contrast last_state_raw every_state_normed",
    "contrast-005": "paper_contrast last_state_raw every_state_normed",
    "contrast-006": "last_state_raw",
    "contrast-007": "paper_contrast",
    "contrast-008": "baseline_as_given tokens_unattended",
    "contrast-012": "delta_reversed",
    "contrast-013": "baseline_as_given tokens_unattended",
    "contrast-015": (
        "paper_contrast baseline_as_given tokens_unattended last_state_raw every_state_normed delta_reversed"
    ),
    "contrast-016": "delta_reversed",
    # aggregation
    "aggregation-001": "signed_by_mean largest_score_positive uncentred sum_of_sides",
    "aggregation-002": "signed_by_mean",
    "aggregation-003": "signed_by_mean largest_score_positive v_pos_alone",
    "aggregation-004": "v_pos_alone",
    "aggregation-008": "v_pos_alone sum_of_sides",
    "aggregation-009": "sum_of_sides",
    "aggregation-010": "uncentred",
    "aggregation-011": "v_pos_alone",
    "aggregation-012": "signed_by_mean uncentred",
    "aggregation-013": "sum_of_sides",
    "aggregation-014": "largest_score_positive uncentred v_pos_alone sum_of_sides",
    "aggregation-015": "largest_score_positive",
    "aggregation-016": "uncentred",
    # steering
    "steering-001": "norm_not_restored",
    "steering-002": "norm_not_restored",
    "steering-003": "zero_lam_replaced",
    "steering-004": "norm_not_restored",
    "steering-005": "norm_over_width hook_with_tensors norm_not_restored",
    "steering-006": "norm_not_restored",
    "steering-007": "norm_not_restored",
    "steering-008": "norm_not_restored",
    "steering-009": "norm_not_restored",
    "steering-010": "norm_over_width interpolated",
    "steering-011": "lam_as_given",
    "steering-012": "paper_steering lam_as_given norm_over_width hook_with_tensors",
    "steering-013": "norm_not_restored",
    "steering-014": "norm_not_restored",
    "steering-015": "interpolated",
    "steering-016": "paper_steering lam_as_given",
    "steering-021": "norm_not_restored",
    "steering-101": "paper_steering hook_with_tensors eps_missing",
    # generation
    "generation-001": "lam_as_given",
    "generation-002": "up_to_each_token",
    "generation-003": "norm_over_width hook_with_tensors",
    "generation-004": "paper_generation layers_as_given with_a_cache up_to_each_token",
    "generation-005": "with_a_cache",
    "generation-006": "lam_as_given norm_over_width with_a_cache",
    "generation-007": "paper_generation",
    "generation-008": "zero_lam_replaced",
    "generation-009": "paper_generation layers_as_given norm_over_width",
    "generation-010": "up_to_each_token",
    "generation-011": "lam_as_given hook_with_tensors",
    "generation-012": "lam_as_given hook_with_tensors",
    "generation-013": "layers_as_given",
    "generation-030": "layers_as_given",
    "generation-031": "paper_generation layers_as_given",
    # options
    **options.KILLS,
}
"""The planted bugs of this dialect that each valid case must catch, written as in `cases`."""


def _in_this_dialect(case: Case) -> Case:
    result = "acceptable" if case.id in ILL_POSED else case.result
    kills = tuple(KILLS[case.id].split()) if result == "valid" else ()
    return replace(case, result=result, kills=kills)


_asked = [case for case in (*cases.CASES, TINY) if case.stage in STAGES or case.stage in options.STAGES]
_by_stage = sorted(_asked, key=lambda case: list(OUTPUTS).index(case.stage))
CASES: tuple[Case, ...] = tuple(_in_this_dialect(case) for case in _by_stage if case.id not in LEFT_OUT)
