"""Bugs of reports. Those of page.js are seen by a browser only, and left out where there is none."""

from planted_bugs.planting import Bug

PAGE = "grains_ref/report/page.py"
ATTRIBUTIONS = "grains_ref/report/attributions.py"
ANSWERS = "grains_ref/report/answers.py"
LAYERS = "grains_ref/report/layers.py"
STRENGTHS = "grains_ref/report/strengths.py"
PROVENANCE = "grains_ref/report/provenance.py"
FOLDER = "grains_ref/report/folder.py"
PROSE = "grains_ref/report/prose.py"
FITTED = "grains_ref/report/fitted.py"
CHARTS = "grains_ref/report/charts.py"
SIDE_EFFECTS = "grains_ref/report/side_effects.py"
SCRIPT = "grains_ref/report/templates/page.js"
BUGS = (
    Bug("nats_in_percent", "report", "a change of perplexity in nats is drawn and written a hundred times too large",
        SIDE_EFFECTS, '(100, 1, "points") if effect.unit == "share" else (1, 3, "nats per token")',
        '(100, 1, "points") if effect.unit == "share" else (100, 3, "nats per token")', "test_sections"),
    Bug("white_charts_in_the_dark", "report", "charts have a white background, also on a dark page",
        CHARTS, "dpi=200, transparent=True, metadata", "dpi=200, metadata", "test_sections"),
    Bug("real_demo_read_as_an_evaluation", "report", "the record of the demo on a released model is read as eval's",
        FOLDER, '({"rows", "behaviour", "pairs", "unsteered"}, _real_demo)', '({"never"}, _real_demo)',
        "test_real_show"),
    Bug("real_demo_shows_the_plain_model_twice", "report", "a released model's steered answers are those of the plain",
        "grains_ref/demo/real/exhibits.py", '"steered": steered}', '"steered": plain}', "test_real_show"),
    Bug("claims_unmarked", "report", "the claim that is a lie has no mark in the page of a released model",
        "grains_ref/demo/real/exhibits.py", 'marks=dict.fromkeys(cause, "C")', "marks={}", "test_real_show"),
    Bug("placeholders_in_a_file", "report", "a figure of its own has the colours that stand for those of a page",
        CHARTS, "return _drawn(draw, light_palette(),", "return _drawn(draw, {colour: colour for colour in VARIABLES},",
        "test_sections"),
    Bug("autoescape_off", "report", "texts of models and files are markup on a page",
        PAGE, "autoescape=True", "autoescape=False", "test_sections"),
    Bug("unseen_characters_kept", "report", "characters that turn the direction of reading reach a page",
        PAGE, "finalize=_visible", "finalize=None", "test_sections"),
    Bug("report_signs_exchanged", "report", "scores are packed with the other sign",
        ATTRIBUTIONS, "round(score / scale) + STEPS", "STEPS - round(score / scale)", "test_attributions"),
    Bug("report_sides_exchanged", "report", "the tokens selected toward either answer are exchanged",
        ATTRIBUTIONS, '"pos": list(example.pos), "neg": list(example.neg),',
        '"pos": list(example.neg), "neg": list(example.pos),', "test_attributions"),
    Bug("report_rare_words_mixed", "report", "words beyond the 65536th are taken for others",
        ATTRIBUTIONS, "ids >> 16", "ids >> 24", "test_attributions"),
    Bug("report_boxes_shrink", "report", "a large picture is smaller than its patches say",
        ATTRIBUTIONS, "width, height = picture.size", "width, height = min(picture.size[0], 640), picture.size[1]",
        "test_attributions"),
    Bug("report_gap_is_a_sum", "report", "completeness is measured against the gap",
        ATTRIBUTIONS, "self.total + self.gap", "self.gap", "test_attributions"),
    Bug("report_all_words_marked", "report", "words that both answers have are marked",
        ANSWERS, 'is_changed = operation != "equal"', "is_changed = True", "test_sections"),
    Bug("report_gained_is_lost", "report", "margins gained and lost are exchanged",
        ANSWERS, "margin.before <= 0 < margin.after", "margin.after <= 0 < margin.before", "test_sections"),
    Bug("report_edit_at_lam_one", "report", "the edit's size is shown at strength 1 whatever a sweep chose",
        LAYERS, "stored if self.lam is None else self.lam", "1.0 if self.lam is None else self.lam", "test_sections"),
    Bug("report_limit_in_points", "report", "the limit is drawn where the loss is a share, not points",
        STRENGTHS, "self.unsteered_tasks - self.max_loss / 100", "self.unsteered_tasks - self.max_loss",
        "test_sections"),
    Bug("report_secret_in_the_command", "report", "a page names the API key of the command that made it",
        PROVENANCE, "hidden(text, secrets, part=LONG_PART)", "text", "test_sections"),
    Bug("report_secret_in_an_address", "report", "a page names the key in an address",
        PROVENANCE, "_ADDRESS.sub(_masked_address, argument)", "argument", "test_sections"),
    Bug("report_pictures_from_anywhere", "report", "a record gets pictures from outside of its folder shown",
        FOLDER, "path.is_relative_to(folder.resolve())", "path.exists()", "test_folder"),
    Bug("report_links_obeyed", "report", "links of a Markdown page lead somewhere",
        PROSE, '.disable(["link", "autolink", "reference"])', "", "test_sections"),
    Bug("report_gap_of_scores", "report", "a fit's report leaves the scores out of the completeness gap",
        FITTED, "f_x - f_baseline - float(shift.a.double().sum())", "f_x - f_baseline", "test_fitted"),
    Bug("page_colours_exchanged", "page", "blue and orange are exchanged",
        SCRIPT, 'if (value > 0) element.classList.add("pos")', 'if (value < 0) element.classList.add("pos")',
        "test_browser"),
    Bug("page_slider_of_another_picture", "page", "every slider moves the scores of the first picture",
        SCRIPT, 'figure.style.setProperty("--overlay", slider.value)',
        'document.querySelector(".picture").style.setProperty("--overlay", slider.value)', "test_browser"),
    Bug("page_outlines_the_wrong_list", "page", "the tokens selected toward rejected are outlined as toward chosen",
        SCRIPT, 'for (const j of content.pos) this.selected.set(j, "chosen")',
        'for (const j of content.neg) this.selected.set(j, "chosen")', "test_browser"),
    Bug("page_tokens_are_markup", "page", "a token's text is put in as markup",
        SCRIPT, "made.textContent = text", "made.innerHTML = text", "test_browser"),
    Bug("page_rank_by_signed_value", "page", "ranks go by the signed value",
        SCRIPT, "Math.abs(a[j]) - Math.abs(a[i])", "a[j] - a[i]", "test_browser"),
    Bug("page_closed_examples_stay", "page", "a closed example keeps its tokens",
        SCRIPT, 'details.querySelector(".body").replaceChildren()', "", "test_browser"),
)  # fmt: skip
