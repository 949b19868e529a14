"""Bugs of a served model."""

from planted_bugs.planting import Bug

SCHEDULER = "grains_ref/export/serving/scheduler.py"
SERVED = "grains_ref/export/serving/served.py"
ASKED = "grains_ref/export/serving/asked.py"
SAMPLING = "grains_ref/export/serving/sampling.py"
ANSWERS = "grains_ref/export/serving/answers.py"
WORDS = "grains_ref/export/serving/words.py"
SERVER = "grains_ref/export/serving/server.py"
DECODING = "grains_ref/models/decoding.py"
BUGS = (
    Bug("vectors_of_the_neighbour", "serving", "a row is steered by the vectors of the row before it",
        SCHEDULER, "self._steering.assign([i], behaviour=steer.behaviour",
        "self._steering.assign([i], behaviour=(jobs[i - 1].steer or steer).behaviour", "test_serving"),
    Bug("last_strength_for_all", "serving", "all rows are steered as strongly as the last one",
        SCHEDULER, "lam=steer.lam", "lam=(jobs[-1].steer or steer).lam", "test_serving"),
    Bug("layers_are_forgotten", "serving", "all blocks are steered, whichever were asked for",
        SCHEDULER, "layers=steer.layers", "layers=None", "test_serving"),
    Bug("plain_rows_keep_old_vectors", "serving", "a plain request is steered by whoever had its slot before",
        SCHEDULER, "self._steering.release([i])", "pass", "test_serving"),
    Bug("slots_are_filled_once", "serving", "rows that move up when one has ended keep the slots' old vectors",
        SCHEDULER, "self._assigned == jobs", "len(self._assigned) >= len(jobs)", "test_serving"),
    Bug("cache_of_another_row", "serving", "when a row has ended the others go on with the wrong cache",
        DECODING, "select_rows(self._cache, chosen)", "select_rows(self._cache, torch.arange(len(chosen)))",
        "test_serving"),
    Bug("joined_behind_not_before", "serving", "rows that join others are padded at the wrong end",
        DECODING, "nn.functional.pad(states, (0, 0, length - states.shape[2], 0))",
        "nn.functional.pad(states, (0, 0, 0, length - states.shape[2]))", "test_serving"),
    Bug("position_stands_still", "serving", "every new token has the position of the first",
        DECODING, "self._next_position = self._next_position + tokens.shape[1]", "pass", "test_serving"),
    Bug("echo_one_place_late", "serving", "the prompt's log-probabilities are those of the next place",
        DECODING, "first = after.logits.shape[1] - len(beginnings[row])",
        "first = after.logits.shape[1] - len(beginnings[row]) + 1", "test_serving"),
    Bug("one_overflow_fails_all", "serving", "a strength that overflows fails everybody in its batch",
        SCHEDULER, "if len(cohort.jobs) == 1 or not isinstance(error, FloatingPointError):", "if True:",
        "test_serving"),
    Bug("batches_wait_for_each_other", "serving", "new requests wait until all earlier ones have ended",
        SCHEDULER, "while self._waiting and len(jobs) < free",
        "while self._waiting and not self._cohorts and len(jobs) < free", "test_serving"),
    Bug("one_generator_for_all", "serving", "the seed of a request is passed over",
        SAMPLING, "if self.seed is None else self.seed", "if True else self.seed", "test_serving"),
    Bug("top_p_one_too_few", "serving", "the token that reaches top_p is left out",
        SAMPLING, "before = p_sorted.cumsum(0) - p_sorted", "before = p_sorted.cumsum(0) - 1e-9", "test_serving"),
    Bug("temperature_times", "serving", "logits are multiplied by the temperature",
        SAMPLING, "double() / self.temperature", "double() * self.temperature", "test_serving"),
    Bug("first_token_has_a_score", "serving", "the prompt's first token is left out of the echo",
        ANSWERS, "[(self._running.prompts[index][0], None), *_places(scores)]", "_places(scores)", "test_serving"),
    Bug("stop_text_is_shown", "serving", "the stop text stands in the answer",
        WORDS, "stop_at = min(places)", "stop_at = min(places) + 1", "test_serving"),
    Bug("half_a_stop_text_is_shown", "serving", "a stream shows the beginning of a stop text",
        WORDS, "elif not is_end:", "elif False:", "test_serving"),
    Bug("unknown_fields_pass", "serving", "a field that the server does not know is passed over",
        ASKED, "if name not in NEUTRAL:", "if False:", "test_serving"),
    Bug("true_is_one", "serving", "true is taken for the number 1",
        ASKED, "type(value) in (int, float) and type(neutral) is int", "type(neutral) is int", "test_serving"),
    Bug("any_host", "serving", "a page in a browser can reach the server under a name of its own",
        SERVER, "if hosts is not None and name not in hosts:", "if False:", "test_serving"),
    Bug("no_room_is_no_reason", "serving", "more answers wait than are allowed",
        SCHEDULER, "len(self._waiting) + len(jobs) > self._n_waiting", "len(self._waiting) > self._n_waiting",
        "test_serving"),
    Bug("nobody_hangs_up", "serving", "answers that nobody waits for are computed to their end",
        SERVED, "job.is_cancelled = True", "pass", "test_serving"),
    Bug("model_name_does_not_steer", "serving", "MODEL+VECTORS is the plain model",
        SERVED, "name = wanted.vectors if wanted else by_model", 'name = wanted.vectors if wanted else ""',
        "test_serving"),
    Bug("open_to_the_network", "serving", "another address than loopback needs no word",
        "grains_ref/cli/serve.py", "if not is_local and not allow_remote:", "if False:", "test_cli_serve"),
)  # fmt: skip
