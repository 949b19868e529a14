"""Other people's steering against equations (7) and (8), as ports that the kit judges.

    grains-ref conform run --port grains_ref.conformance.engines.repeng
    python -m grains_ref.conformance.engines          # the table of docs/porting.md, of what can be run here

| port | steers by | how |
|---|---|---|
| `repeng` | `ControlModule` with `normalize=True` | the package |
| `steering_vectors` | a `SteeringVector` with the operator of `grains-ref export` | the package |
| `sglang` | the hook of `grains-ref export --to sglang` | the hook; the server's layers are imitated |
| `vllm_lens` | a `Hook` function, or `norm_match=True` | read, not run |
| `easysteer` | `normalize=True`, in eager mode and in its CUDA graphs | read, not run |

Each port claims the stage `steering`, and those of packages also live steering of a transformers model. Formulas that
were read are written anew, on tensors, with every rounding where the original has it: that is what they differ in.
vLLM and SGLang add a block's last update to the residual stream in the next block, so a layer's output is a pair; a
steering that changes the stream must take it apart again (`common.fused`).
"""
