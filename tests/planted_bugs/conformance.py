"""Bugs of the conformance kit."""

from planted_bugs.planting import Bug

COMPARE = "grains_ref/conformance/compare.py"
COMPONENTS = "grains_ref/conformance/components.py"
STORED = "grains_ref/conformance/vectors.py"
MARGINS = "grains_ref/conformance/margins.py"
PORTS = "grains_ref/conformance/ports.py"
PROGRAMS = "grains_ref/conformance/programs.py"
REPORT = "grains_ref/conformance/report.py"
BUGS = (
    Bug("digits_are_numbers", "conformance", "text of digits counts as numbers",
        COMPARE, 'array.dtype.kind in "bUScMmO"', 'array.dtype.kind in "bScMmO"', "test_bad_ports"),
    Bug("exits_end_the_run", "conformance", "a port that calls sys.exit ends the run",
        PORTS, 'raise PortError(f"{stage} tried to end the program: {told_by(error)}") from error', "raise",
        "test_bad_ports"),
    Bug("endless_patience", "conformance", "a program that hangs is asked again for every case",
        PROGRAMS, "if self._hangs >= MOST_HANGS:", "if False:", "test_bad_ports"),
    Bug("children_go_on", "conformance", "what a killed program has started goes on",
        PROGRAMS, "os.killpg(self._process.pid, signal.SIGKILL)", "self._process.kill()", "test_bad_ports"),
    Bug("truths_are_numbers_of_messages", "conformance", "an answer to `true` is one to message 1",
        PROGRAMS, "if type(found) is not int or found != seq:", "if found != seq:", "test_bad_ports"),
    Bug("junit_as_it_comes", "conformance", "JUnit holds what XML cannot hold",
        REPORT, '_xml(f"grains_ref conformance of {run.port}")', 'f"grains_ref conformance of {run.port}"',
        "test_bad_ports"),
    Bug("terminal_obeys", "conformance", "what a port says reaches the terminal as it is",
        REPORT, 'return Text(printable(text, keep="\\n\\t"))', "return Text(text)", "test_bad_ports"),
    Bug("every_sign_right", "conformance", "a component is right with either sign",
        COMPARE, "rows = [u, *(", "rows = [u, -u, *(", "test_one_truth"),
    Bug("rows_of_any_layer", "conformance", "a row that is right in one layer is right in all",
        COMPARE, "(one.of, one.layer) == (of, layer)", "one.of == of", "test_one_truth"),
    Bug("spans_have_no_sign", "conformance", "a vector of a span may point against the mean shift",
        COMPARE, "if span.toward is None or w @ span.toward >= -2 * budget:", "if True:", "test_one_truth"),
    Bug("spans_in_every_dtype", "conformance", "a nearly equal eigenvalue counts as equal, however small the errors",
        COMPARE, "and one.begins <= budget", "", "test_kit_vectors", within="_others"),
    Bug("rows_beside_no_gap", "conformance", "the tolerance of a direction ignores the eigen-gap",
        COMPARE, "pairs += [(float(np.linalg.norm(w - row)), budget * (1 + 2 / gap)) for row in rows]",
        "pairs += [(float(np.linalg.norm(w - row)), budget) for row in rows]", "test_one_truth"),
    Bug("signs_as_they_come", "conformance", "a sign that nothing defines is stored as the library has it",
        COMPONENTS, "u = u * np.sign(u[_leading(np.abs(u))])", "u = u * 1.0", "test_one_truth"),
    Bug("directions_as_they_come", "conformance", "a vector of an eigenspace is stored as the library has it",
        COMPONENTS, "if (same := spectrum.equal()) > 1:", "if (same := 1) > 1:",
        "test_one_truth"),
    Bug("margins_of_rounding", "conformance", "margins are stored with the last bits of a library",
        COMPONENTS, 'return float(f"{round(float(margin), 12):.6g}") + 0.0', "return float(margin)",
        "test_kit_vectors"),
    Bug("always_written_anew", "conformance", "rewriting changes the last digits of stored outputs",
        STORED, "return stored if distance(case.stage, case.inputs, stored, want) <= KEPT else want", "return want",
        "test_kit_vectors"),
    Bug("never_written_anew", "conformance", "a stored output that is wrong is kept",
        STORED, "return stored if distance(case.stage, case.inputs, stored, want) <= KEPT else want",
        "return stored", "test_kit_vectors"),
    Bug("near_ties_unallowed", "conformance", "stored budgets forget what a dtype cannot tell apart",
        STORED, "may_differ[dtype] = allowed(case, dtype, budget) if judged else None",
        "may_differ[dtype] = budget.budget if judged else None", "test_kit_vectors"),
    Bug("cancellation_unmarked", "conformance", "tokens that cancel have no margin",
        MARGINS, 'if stage == "steering" and dialect == "paper":', "if False:", "test_kit_vectors"),
)  # fmt: skip
