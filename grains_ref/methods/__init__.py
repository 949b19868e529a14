"""The methods that GrAInS is compared with, one short file each, on one core of reading and editing.

| method | file | reads | edits |
|---|---|---|---|
| CAA | `caa` | residual stream at the answer | residual stream of one block, or of all |
| ICV | `icv` | residual stream at the answer's last token | MLP outputs or residual stream, all blocks |
| ITI, NL-ITI | `iti` | attention heads at the answer's last tokens | the heads whose probes tell right from wrong |
| RepE | `repe` | residual stream at the answer's last token | residual stream of a range of blocks |
| VTI | `vti` | as ICV, and the vision tower | MLP outputs of decoder and vision tower |
| ICT | `ict` | attention heads, with clean and with noised pictures | the heads whose probes tell them apart |
| VJP-delta | `vjp_delta` | a contrast of late states, pulled back | residual stream of earlier blocks |
| edit gradient | `edit_gradient` | derivative of f with respect to the edit | a site of choice, all blocks |
| VCD, CRG, IMMUNE | `decoding` | - | the next token's distribution |
| BiPO | `bipo` | - | residual stream of one block, by training |
| MAT-Steer | `mat_steer` | residual stream at the answer's last token | one block, gated token by token |
| Nullu | `nullu` | residual stream, mean over prompt and answer | MLPs' output weights, for as long as it is entered |
| CorrSteer | `corr_steer` | features of the residual stream, answer by answer | residual stream of one block or all |
| LoRA | `lora` | - | query and value projections, by training |

Each has `fit(model, pairs, ...)`, which returns a frozen result with `settings(model)`: its declared search grid,
gentlest first, every point a label and a context manager that steers the model while it is entered.

`from_file` makes the edit that a vectors file stands for, whichever method wrote it.
"""
