"""Every table and figure of the paper by one command, in miniature or in full.

| file | holds |
|---|---|
| `rows` | what every row of a table does: which settings it tries |
| `fair_fight` | every method at the same sites, positions and strengths |
| `cells` | one row on one model is a cell; runs the missing ones, keeps each as soon as it is done |
| `edit_fits` | the edit gradient at a site and positions, taken once for all that ask |
| `cost` | seconds and peak memory of building steering vectors |
| `curves` | cells that are no rows: figure 3, the geometry of the aggregations, how vectors move margins |
| `habits` | two habits of one model at once: MAT-Steer trained on both and on each |
| `systems` | rows of the systems that the paper and its readers name as neighbours |
| `transfer` | two behaviours in one model: each one's vector on the other, and both together |
| `paper` | which rows make which table or figure of the paper, and the paper's numbers |
| `questions` | the tables of what the paper leaves open |
| `statistics` | what the cells of a table say: means, intervals, tests |
| `recommended` | the verdict on the preset of that name, by a rule that was written first |
| `pages` | the JSON record, the Markdown pages and the figures |
| `local` | models and pairs of one's own on the full rung |
| `full` | the rung of the full models: what is there, what is missing |

The tiny rung's models, the bench that chooses and measures, and the rows that the demos show as well are those of
`grains_ref.demo`.
"""
