"""Bugs of the exports: other tools' files, the formulas of the tools, the measured loss, the model card."""

from planted_bugs.planting import Bug

ROOM = "grains_ref/export"
BUGS = (
    Bug("export_one_block_late", "export", "a GGUF file has each vector one block late",
        f"{ROOM}/gguf_file.py", 'f"{PREFIX}{block}", directions', 'f"{PREFIX}{block + 1}", directions', "test_targets"),
    Bug("export_other_sign", "export", "vectors are written with the other sign",
        f"{ROOM}/target.py", "{i: vectors.v[i].clone() for", "{i: -vectors.v[i].clone() for", "test_targets"),
    Bug("export_block_0_unsaid", "export", "block 0 is dropped without a word",
        f"{ROOM}/target.py", "if dropped:", "if len(dropped) > 1:", "test_targets"),
    Bug("export_block_0_for_llama_cpp", "export", "llama.cpp gets a block 0, and refuses the file",
        f"{ROOM}/gguf.py", "first_block=1", "first_block=0", "test_targets"),
    Bug("export_norm_not_restored", "export", "a tool that restores norms is measured as one that does not",
        f"{ROOM}/rules.py", "torch.where(ratio.isfinite(), shifted * ratio, wide)",
        "torch.where(ratio.isfinite(), shifted, wide)", "test_measure"),
    Bug("export_one_sided_is_two_sided", "export", "the one-sided rule restores every norm",
        f"{ROOM}/rules.py", "torch.where(ratio < 1, shifted * ratio, shifted)", "shifted * ratio", "test_measure"),
    Bug("export_loss_beside_plain", "export", "the loss is the distance from the unsteered model",
        f"{ROOM}/measure.py", "(there - ours).norm()", "(there - plain).norm()", "test_measure"),
    Bug("export_strength_of_the_command", "export", "the strength in a file does not count when it is measured",
        f"{ROOM}/measure.py", "lam if in_file.lam is None else in_file.lam", "lam", "test_measure"),
    Bug("export_sglang_without_residual", "export", "SGLang's hook steers what its block added, not the state",
        f"{ROOM}/sglang.py", "h = hidden + residual", "h = hidden", "test_targets"),
    Bug("export_note_of_other_vectors", "export", "our note is believed although the vectors were changed",
        f"{ROOM}/target.py", 'if record.get("vectors_sha256") != _digest(by_block):',
        'if "vectors_sha256" not in record:', "test_targets"),
    Bug("import_dev_figures_of_another_strength", "export", "figures from dev are kept with another strength",
        f"{ROOM}/importing.py", 'old.choice.get("lam") == lam and', "", "test_targets"),
    Bug("import_another_model", "export", "vectors of another model come back without --force",
        f"{ROOM}/importing.py", "if old and old.fingerprint != fingerprint and not force:",
        "if old and old.fingerprint != fingerprint and force:", "test_targets"),
    Bug("card_of_other_vectors", "export", "an old model card stays beside new vectors",
        f"{ROOM}/hub.py", "if path.exists() and path.read_text", "if not path.exists() and path.read_text", "test_hub"),
    Bug("card_without_warnings", "export", "the card does not warn of a cost that nobody measured",
        f"{ROOM}/hub.py", 'elif "task_accuracy" not in header.choice:', 'elif "lam" not in header.choice:', "test_hub"),
)  # fmt: skip
