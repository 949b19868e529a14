"""The conformance kit: which stage of a port diverges first, how far, and which known bug reproduces its output.

| file | holds |
|---|---|
| `signatures` | names, axes and outputs of stages and options, and what is refused |
| `stages` | the seven stages: named arrays in and out, the reference's answer |
| `options` | what a port may have besides, claimed one by one: batches, other attributions, families of decoders |
| `toy` | the small decoder that stages which need a model run on |
| `cases/` | the inputs, one file per stage: what each is for, and which planted bugs it must catch |
| `bugs/` | planted bugs, one file per stage: the tests of the cases, and the diagnosis of a port |
| `authors/` | the second dialect, what the released code computes: its stages, cases and bugs |
| `dialects` | `paper` and `authors`: cases, right answers and bugs put together |
| `random_inputs` | seeded inputs beyond the cases |
| `second_oracle`, `second_options`, `second_decoder` | all of it once more in NumPy, independent of the reference |
| `fresh` | a port on seeded random inputs |
| `catalogue` | cases, flags, options and bugs as tables |
| `compare` | the distance of two outputs, and the verdict on a case |
| `margins` | how far a case is from its next decision, and which other outputs are equally right |
| `components` | the same for principal components, layer by layer, and the canonical form in which they are stored |
| `budgets` | how far a right port may be off per stage and dtype: measured, stored, printed |
| `vectors` | the cases on disk, for ports in any language |
| `schemas` | the JSON Schemas of these files and of the protocol |
| `ports`, `programs` | how a port is reached: a Python module, a folder of answers; a program |
| `runner` | a port through the cases, one by one and in chains |
| `alone`, `module_process` | a failing case once more, in a fresh process of the port |
| `naming` | which planted bug accounts for a stage's failures, and when none does |
| `report` | what a run found, for people, as JSON and as JUnit |
| `summary`, `diff` | what a run's JSON says for a README; what changed between two |
| `test_port` | the cases as tests in a porter's own suite |
| `live/` | a port checked on the user's own model and pairs |
| `engines/` | other people's steering, as ports |
"""
