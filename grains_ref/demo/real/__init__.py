"""The real rung: a released small model (SmolLM2-135M-Instruct), three behaviours, one rule for all methods.

| file | holds |
|---|---|
| `packages` | the model and public questions out of two packages; the conversion; the cache |
| `behaviours` | what a behaviour is; `lie`, `prose` and `caution` are one each, `facts` and `everyday` their material |
| `words` | the control by words alone |
| `causes` | whether attribution finds the cause, where it is known |
| `trial` | one behaviour and one split on the model: what is measured, the rule of choice |
| `rows` | the methods, each as a ladder of strengths |
| `signals` | what the signal line says of those that it knows |
| `verdict` | works, does not, cannot tell |
| `show` | `grains-ref demo --real` |

Behaviours, hypotheses and rules are in docs/real.md, and were fixed before any method was run.
"""

from grains_ref.demo.real.behaviours import Behaviour
from grains_ref.demo.real.caution import CAUTION
from grains_ref.demo.real.lie import LIE
from grains_ref.demo.real.prose import PROSE

BEHAVIOURS: dict[str, Behaviour] = {behaviour.name: behaviour for behaviour in (LIE, PROSE, CAUTION)}
