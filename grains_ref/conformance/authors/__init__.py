"""The kit's second dialect, `authors`: what the code released with the paper computes, stage by stage.

| file | holds |
|---|---|
| `stages` | the right answers: the seven stages by `grains_ref.authors`, and what differs from the paper |
| `cases` | the paper's cases with the bugs that they must catch here; which are left out, and why |
| `bugs` | what a port of the released code may get wrong |

`dialects` puts them together, as it does for the dialect `paper`.
"""
