"""Demonstrations on the embedded tiny models, and the experiment that `grains_ref.reproduction` extends.

| file | holds |
|---|---|
| `planted` | a planted world and a trained model as a `Lab`; the worlds' data as files |
| `lab` | one model with its steering pairs, dev and test data, and the stages already computed on it |
| `rows` | what every row of a table does: which settings it tries |
| `bench` | the choice of a setting on dev, and what it does on test |
| `workers` | the same work on several models, in processes of their own |
| `experiment` | a demo: its rows and attributions on every training seed |
| `summary` | what the seeds say together: the table and the record |
| `text`, `vision` | the two demos: which rows they show, how well the planted causes are found |
| `centring` | the figure that explains centring |
| `exhibits` | what a demo keeps to look at, for its report |
| `show` | both demos on the screen and in files |

A demo is a view on the same rows as the paper's tables (`grains-ref reproduce`): the same settings, the same rule of
choice, the same draws, so a row has one number wherever it stands.
"""
