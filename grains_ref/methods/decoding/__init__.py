"""Methods that change the distribution of the next token, and leave the model's states alone.

| method | file | what it asks besides the model's logits |
|---|---|---|
| VCD | `vcd` | the logits with a noised picture |
| CRG | `crg` | the logits with a region of the picture blacked out |
| IMMUNE | `immune` | a reward of what each candidate would make of the response |

Each is a rule of `grains_ref.models.next_token`, with `steering(model)`: a context manager, inside of which scores and
generated texts follow it.  So they are entered, chosen and measured like steering, and together with it:

    with Steering(model.blocks, v, lam=1.0), VCD(alpha=1.0, beta=0.1).steering(model):
        ...

`settings(...)` of each file is its declared search grid.  `contrast` is what VCD and CRG share.
"""
