"""What people look at.

| file | holds |
|---|---|
| `tokens` | a prompt's tokens, coloured by their scores and in words |
| `overlay` | scores drawn on a picture |
| `markdown` | tables in Markdown |
"""
