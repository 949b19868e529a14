"""What the cases look for, one flag each, in Wycheproof's manner; every case names some."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """What a group of cases looks for, in Wycheproof's manner."""

    bug_type: str
    description: str
    effect: str


FLAGS: dict[str, Flag] = {
    "Basic": Flag("BASIC", "A plain input", "Nothing else can be right if this is wrong"),
    "LeftPadding": Flag("MISSING_STEP", "Padding on the left", "What is padded into a batch changes the result"),
    "UnequalLengths": Flag(
        "MISSING_STEP", "Responses of different lengths", "Longer answers are scored wrongly, or padding is scored"
    ),
    "SharedTokens": Flag("EDGE_CASE", "Responses that start or end alike", "The answers cannot be told apart"),
    "PaddingIdInResponse": Flag("EDGE_CASE", "A response that contains token 0", "End-of-text tokens are not scored"),
    "OneToken": Flag("EDGE_CASE", "A prompt of a single token", "Shapes collapse, slices come out empty"),
    "TinyValues": Flag("EDGE_CASE", "Values near the smallest scale that counts", "A constant drowns the result"),
    "LargeValues": Flag("EDGE_CASE", "Values far above 1", "Products overflow"),
    "BeyondFloat16": Flag("EDGE_CASE", "Values that float16 cannot hold", "Not to be run in float16"),
    "OffVocabulary": Flag("EDGE_CASE", "Embeddings that belong to no token", "Something looks the prompt up again"),
    "LikelyAnswers": Flag("BASIC", "Responses that the model is likely to give", "The decoder differs in a detail"),
    "LongPrompt": Flag("BASIC", "A longer prompt", "Rotary positions and scales show only over some distance"),
    "Quadrature": Flag("MODIFIED_PARAMETER", "A rule or a number of steps", "Nodes or weights are wrong"),
    "PaddingBaseline": Flag(
        "MODIFIED_PARAMETER", "The padding token's embedding as baseline", "A baseline is assumed to be zero"
    ),
    "OtherBaseline": Flag("MODIFIED_PARAMETER", "A baseline that is neither", "A baseline is not the one given"),
    "FewerThanK": Flag("EDGE_CASE", "Fewer than k tokens of a sign", "Sets are filled up with the wrong sign"),
    "Zeros": Flag("EDGE_CASE", "Values of exactly zero, of either sign", "Zero counts as a sign or as a direction"),
    "TieBreakLowIndex": Flag(
        "EDGE_CASE", "Equal scores across the boundary; the lower index wins", "An unstable sort decides"
    ),
    "NearTie": Flag("ILL_POSED", "Scores closer to each other than the dtype's errors", "Either token is right"),
    "Ineligible": Flag("MISSING_STEP", "Tokens that may not be selected", "Padding or special tokens are masked"),
    "NotANumber": Flag("EDGE_CASE", "NaN in the input", "A broken run passes as a result"),
    "EmptySet": Flag("EDGE_CASE", "No tokens in a set", "Rounding errors, or a whole prompt, pass as a shift"),
    "LastToken": Flag("EDGE_CASE", "The last token is masked", "Its own state is what is read"),
    "OverlappingSets": Flag("EDGE_CASE", "Sets that share tokens", "One mask is put on top of the other"),
    "EigenGap": Flag("EDGE_CASE", "A given gap between the first eigenvalues", "The solver stops too early"),
    "SmallEigenGap": Flag("ILL_POSED", "Two eigenvalues that are nearly or exactly equal", "Any mixture is right"),
    "LargeMean": Flag("MISSING_STEP", "A mean that is large against the spread", "The mean passes as a component"),
    "SignRule": Flag("MISSING_STEP", "Sign rules that disagree", "A side points away from its shifts"),
    "ZeroRows": Flag("EDGE_CASE", "Examples or tokens that are zero", "They are left out, or turn into NaN"),
    "Batch": Flag("MISSING_STEP", "A batch of different rows", "Only one row is treated, or rows mix"),
    "Strength": Flag("MODIFIED_PARAMETER", "Lambda zero, negative, or of the size of h", "Lambda is misread"),
    "Cancellation": Flag("EDGE_CASE", "h and lam v cancel, exactly or nearly", "A division by zero"),
    "Layers": Flag("MODIFIED_PARAMETER", "Some of the layers", "Layer numbers are off, or are ignored"),
    "Degenerate": Flag("ILL_POSED", "Shifts that define no direction", "Noise passes as a direction"),
    "BadArgument": Flag("EDGE_CASE", "An argument that makes no sense", "Nonsense is computed silently"),
    "BadShape": Flag("EDGE_CASE", "Shapes that do not fit", "Broadcasting hides the mistake"),
    "FarPositions": Flag("EDGE_CASE", "Positions beyond 300", "Angles are computed in half precision"),
    "FlatSpectrum": Flag(
        "EDGE_CASE",
        "Wide states, and eigenvalues that are equal but for the first",
        "The solver guesses",
    ),
    "Rank": Flag("EDGE_CASE", "More components than the shifts have", "Directions of rounding errors take part"),
    "Weights": Flag("MODIFIED_PARAMETER", "A weight for every example", "Examples count as much as each other"),
    "Noise": Flag("MODIFIED_PARAMETER", "What was drawn is handed in", "Other noise is drawn, or it is misread"),
    "Rules": Flag("MISSING_STEP", "Rules about kinds of tokens", "Template or padding is selected"),
    "Pictures": Flag("MISSING_STEP", "Picture tokens among text", "Patches are treated as words, or left out"),
    "DecoderFeature": Flag(
        "MODIFIED_PARAMETER", "What other families of decoders have", "It is left out, or stands in another place"
    ),
    "EndOfText": Flag("EDGE_CASE", "Rows that end by themselves", "Text goes on after its end, or ends too early"),
    "Beams": Flag("MODIFIED_PARAMETER", "More continuations than one are kept", "The search is another one"),
}
