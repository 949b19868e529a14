"""Every table and figure of the paper by one command, in miniature or in full.

| file | holds |
|---|---|
| `rows` | what every row of a table does: which settings it tries |
| `cells` | one row on one model is a cell; runs the missing ones, keeps each as soon as it is done |
| `cost` | seconds and peak memory of building steering vectors |
| `curves` | cells that are no rows: figure 3, the geometry of the aggregations, how vectors move margins |
| `transfer` | two behaviours in one model: each one's vector on the other, and both together |
| `paper` | which rows make which table or figure, and the paper's numbers |
| `statistics` | what the cells of a table say: means, intervals, tests |
| `pages` | the JSON record, the Markdown pages and the figures |
| `full` | the rung of the full models: what is there, what is missing |

The tiny rung's models, the bench that chooses and measures, and the rows that the demos show as well are those of
`grains_ref.demo`.
"""
