"""Steered models behind an OpenAI-compatible address: `grains-ref serve` (`pip install 'grains-ref[serve]'`).

| file | holds |
|---|---|
| `asked` | a request read: every field honoured, or refused by its name |
| `sampling` | from logits to the next token, and what is said of its probability |
| `words` | from tokens to text as it grows, up to a stop text |
| `scheduler` | the one thread that runs the model, for all requests at once, each with its own vectors |
| `served` | the model with its vectors: what a request stands for, before and after the scheduler |
| `answers` | answers in OpenAI's shapes, whole and streamed |
| `server` | the HTTP side (Starlette) |
"""
