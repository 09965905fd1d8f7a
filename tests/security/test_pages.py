"""What models, data and names say stays text: in the report, seen in Chromium, and in the documents' tables."""

import pytest
from comparison.test_comparison import compared, few_resamples, run  # noqa: F401  # a fixture

from finetune.comparison import contenders
from finetune.comparison.html_report import html
from finetune.comparison.tables import report, summary

ATTACKS = [
    "<script>window.ran = 1</script>",
    '"><img src=x onerror="window.ran = 1">',
    "</pre></script><svg onload='window.ran = 1'>",
    "{{ 7 * 7 }} {% raw %} <!-- --> ]]>",
    "<iframe src=\"javascript:parent.ran = 1\"></iframe><a href='javascript:ran = 1'>a</a>",
]


def hostile() -> list:
    """Runs whose names, settings, machine, prompts and answers all try to run a script."""
    runs = []
    for number, cost in enumerate((1.0, 2.0)):
        made = run("lora", words=12 - 8 * number, cost=cost, name=f"{number}{''.join(ATTACKS)}", commit=ATTACKS[number])
        made.params["train"] = {ATTACKS[0]: f"{number}{ATTACKS[1]}"}
        made.metrics["train.facts"] = {"hardware": ATTACKS[2], "versions": f"{number}{ATTACKS[4]}"}
        for rows in (made.answers, made.base_answers):
            for row in rows:
                attack = ATTACKS[row["record"] % len(ATTACKS)]
                row |= {key: f"{attack} {row[key]}" for key in ("prompt", "reference", "prediction")}
        runs.append(made)
    return runs


def test_a_script_in_a_record_an_answer_or_a_name_stays_text_in_the_report(tmp_path, chromium):
    grouped = contenders.group(hostile())
    page_file = tmp_path / "comparison.html"
    page_file.write_text(html(grouped, compared(*hostile())))
    user = chromium.new_context()
    page = user.new_page()
    asked, dialogs = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: dialogs.append(dialog.dismiss()))
    page.goto(page_file.as_uri())
    page.wait_for_load_state("networkidle")
    assert page.evaluate("window.ran") is None and not dialogs
    assert page.locator("script, iframe, svg, a, img:not([src^='data:image/svg+xml;base64,'])").count() == 0
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    shown = page.inner_text("body")
    assert all(" ".join(attack.split()) in " ".join(shown.split()) for attack in ATTACKS)
    user.close()


@pytest.mark.parametrize("text", [report, summary])
def test_names_make_no_tag_no_link_and_no_cell_in_a_document(text):
    runs = hostile()
    for made in runs:
        object.__setattr__(made, "name", f"{made.name}|[a](http://h.example)|<!--end of summary-->`")
    written = text(compared(*runs))
    assert not any(f"<{tag}" in written for tag in ("script", "img", "svg", "iframe", "a ", "!", "/"))
    assert "](" not in written
    rows = [line.replace("\\|", "") for line in written.splitlines() if line.startswith("|")]
    assert rows and {row.count("|") for row in rows} <= {4, 5}
