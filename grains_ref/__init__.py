"""GrAInS, the reference implementation: gradient-based attribution for inference-time steering.

Start reading at `grains_ref.grains`. `grains_ref.models.load` wraps a Hugging Face model, `grains_ref.data` reads
preference pairs, `grains_ref.vectors` stores steering vectors, `grains-ref` is the command.
"""

__version__ = "0.1.0"  # the only place: pyproject.toml reads it from here
