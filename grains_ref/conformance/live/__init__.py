"""Check a port live: on the user's own model and pairs, at any size, against the reference on the same weights.

    results = check_live(load("path/or/hub-id"), pairs, port, path="path/or/hub-id", seeds=range(3))

The port is a module; text in, numbers out, so that its tokens are checked too. `handle` is what its `LOAD(path)`
returned, or the path itself where it has none. For a pair with a picture every call also gets `image=`.

| function of the port | returns |
|---|---|
| live_objective(handle, prompt, chosen, rejected) | {"log_p_pos", "log_p_neg", "f"}, nats |
| live_attribution(handle, prompt, chosen, rejected, m) | a (T,): right Riemann from zero, m steps, prompt tokens |
| live_contrast(handle, prompt, chosen, rejected, pos, neg) | {"delta_pos", "delta_neg"}: (L, d), zero baseline |
| live_aggregation(handle, delta_pos, delta_neg) | {"v_pos", "v_neg", "v"}: (L, d), of float32 shifts (N, L, d) |
| live_steer(handle, prompt, chosen, rejected, v, lam) | (R, V): logits that predict chosen, v (L, d) everywhere |
| live_selection(handle, a, eligible, k) | {"pos", "neg"}: token indices, strongest first |
| live_edit(handle, h, v, lam) | (B, T, d): h with v (d,) added and norms restored |
| live_batch(handle, prompts, chosen, rejected) | a list of what live_objective gives; lists in, `images=` if any |

Any subset will do; what is missing is reported as skipped. Instead of an array a function may return its `fingerprint`,
or a list with one per row. Two kinds of checks:

**against the oracle**, by the rule of three: with the oracle on the same weights, in float64 where a small model is in
float32 and in float32 where the model is in half precision,

    error(port) <= 3 * max(noise, floor)        noise = the worst error of the reference in the model's own dtype

(5 times for gradients) over its legal ways to compute (plain, padded on the left, as a batch, with another kernel of
attention) and over all pairs of the run: the noise of one pair may be small by luck. A large float32 model is its own
oracle, and only the order of its sums is left as noise. Where the allowed error is above one half, nothing can be told:
`undecidable`; such a pair does not count for the others. Contrast is checked twice: with the last prompt token masked,
where the shift is as large as the state and half precision can tell, and with earlier tokens alone, whose shift half
precision may lose (there, layers whose shift is rounding only are left out). Aggregation gets shifts made by the
reference, so it is judged by the kit's own rule for float32, whatever the model's dtype.

**relations** that every right port keeps, whatever the oracle says; they need no float32 copy of the model.

| file | holds |
|---|---|
| `check` | `check_live` and the checks |
| `judging` | how noisy a run is, what is allowed, and the verdicts |
| `answers` | the port's functions called for one pair, and what they returned made comparable |
| `reference` | the reference's own numbers, by every legal way to compute them; the oracle |
| `distances` | relative errors, and fingerprints of large arrays |
"""

from __future__ import annotations

from grains_ref.conformance.live.answers import FUNCTIONS
from grains_ref.conformance.live.check import check_live
from grains_ref.conformance.live.distances import fingerprint
from grains_ref.conformance.live.judging import LiveResult

__all__ = ["FUNCTIONS", "LiveResult", "check_live", "fingerprint"]
