"""What steering changed and what it cost.

| file | holds |
|---|---|
| `measures` | measures of a model under whatever steering is active, and the choice of a setting on dev data |
| `metrics` | what is made of the numbers: rates, means, intervals (needs no model) |
| `judge` | answers judged by another model (needs no model) |
| `lm_eval` | a steered model in lm-evaluation-harness |
"""
