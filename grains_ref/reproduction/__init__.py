"""Every table and figure of the paper by one command, in miniature or in full.

| file | holds |
|---|---|
| `lab` | one model with its steering pairs, dev and test data, and the stages already computed on it |
| `rows` | what every row of a table does: which settings it tries |
| `cells` | one row on one model is a cell; runs the missing ones, keeps each as soon as it is done |
| `tables` | which rows make which table or figure, and the paper's numbers |
| `pages` | the JSON record, the Markdown page and the figures |
| `full` | the rung of the full models: what is there, what is missing |
"""
