"""Bugs of work that several processes share."""

from planted_bugs.planting import Bug

PROCESSES = "grains_ref/files/processes.py"
FITTING = "grains_ref/fitting/resumable.py"
BUGS = (
    Bug("shares_wait_for_each_other", "fit", "one process alone runs a model that lies across all of them",
        PROCESSES, "or (runs_model and _group.is_whole)", "", "test_processes"),
    Bug("last_unit_is_lost", "processes", "a last round that is not full is left out",
        PROCESSES, "range(0, len(units), _group.size)", "range(0, len(units) - _group.size + 1, _group.size)",
        "test_processes"),
    Bug("round_is_put_together_backwards", "processes", "results come in another order than their units",
        PROCESSES, "_gathered(own)[: len(of_round)]", "_gathered(own)[: len(of_round)][::-1]", "test_processes"),
    Bug("every_process_writes", "processes", "what the first process should do alone is done by all",
        PROCESSES, "if takes_part else _Outcome", "if True else _Outcome", "test_processes"),
    Bug("work_is_split_twice", "processes", "inside a unit its own work is split again",
        PROCESSES, "_group.is_computing = True", "pass", "test_processes"),
    Bug("budget_of_each_process", "processes", "each process measures its own memory, and makes its own batches",
        FITTING, "pass_tokens=first(measured, runs_model=True)", "pass_tokens=measured()", "test_processes"),
    Bug("memory_is_not_shared", "processes", "each process takes all of the machine's memory",
        "grains_ref/fast/memory.py", "room /= on_this_machine()", "room /= 1", "test_processes"),
    Bug("another_model_is_not_noticed", "processes", "processes with other models or pairs work together",
        PROCESSES, "if of_other != digests[0]", "if False", "test_processes"),
    Bug("error_stays_at_home", "processes", "an error that ends one process is not told to the others",
        PROCESSES, "if not is_told(error):", "if False:", "test_processes"),
    Bug("all_of_them_print", "processes", "every process prints the results",
        "grains_ref/cli/console.py", "processes.rank() > 0", "False", "test_processes"),
    Bug("spread_model_is_split", "processes", "a model that lies across the processes is run by one of them",
        PROCESSES, "if _group.is_alone or _group.is_whole:", "if _group.is_alone:", "test_processes"),
)  # fmt: skip
