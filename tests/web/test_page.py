"""The page in a real browser: several models asked at once, by several users."""

import re
import time

import pytest

pytest.importorskip("nicegui", reason="nicegui is not installed")


def choose(page, *names: str) -> None:
    """Have `names` chosen, and nothing else."""
    models = page.get_by_role("combobox", name="Models")
    models.click()
    for name in page.get_by_role("option").all_inner_texts():
        option = page.get_by_role("option", name=name, exact=True)
        if (option.get_attribute("aria-selected") == "true") != (name in names):
            option.click()
            # The server gives the choice back; a click before that is of the choice as it was.
            page.get_by_role("option", name=name, exact=True, selected=name in names).wait_for()
    models.press("Escape")


def ask(page, instruction: str) -> None:
    page.get_by_label("Instruction").fill(instruction)
    page.get_by_role("button", name="Ask", exact=True).click()


def column(page, name: str):
    return page.get_by_role("region", name=f"Answer of {name}", exact=True)


def ended(page, words: str) -> None:
    """Wait until every column holds its whole answer, with `words` in it."""
    page.get_by_role("region").first.wait_for()
    for region in page.get_by_role("region").all():
        region.locator("[aria-busy=false]", has_text=words).wait_for()
    page.get_by_role("button", name="Stop", disabled=True).wait_for()


def streaming(page, name: str, words: str) -> str:
    """The column's text, once `words` have come and more are to come."""
    column(page, name).get_by_text(re.compile(words)).wait_for()
    assert page.get_by_role("button", name="Stop").is_enabled()
    return column(page, name).inner_text()


def test_two_users_at_once_see_their_own_answers_stream(server, visit):
    address, log = server
    first, second = visit(address), visit(address)
    for user in (first, second):
        choose(user, "workspace", "models/mine")
    ask(first, "Name the sun")
    ask(second, "Name a sea slowly")
    for user, own, others in ((first, "Name the sun", "Name a sea"), (second, "Name a sea", "Name the sun")):
        assert streaming(user, "models/mine", own).count("word") < 250
        assert user.get_by_role("region").count() == 2 and others not in user.content()

    second.close()  # in the middle of its answers, which have to stop: nobody reads them
    ended(first, "Name the sun")
    whole = column(first, "models/mine").inner_text()
    assert whole.count("word") == 253 and "256 tokens" in whole and "cut: as many tokens as were allowed" in whole
    figures = "13 tokens · 100.0 tokens/s · first after 0.01 s · 0.269 GB held"
    assert figures in column(first, "workspace").inner_text()

    closed = re.compile(r"closed Name a sea slowly after (\d+) words")
    for _ in range(200):
        if len(counts := closed.findall(log.read_text())) == 2:
            break
        time.sleep(0.1)
    assert len(counts) == 2 and int(max(counts, key=int)) < 250
    assert "Traceback" not in log.read_text()


def test_differences_are_marked_on_demand_and_answers_are_text(server, visit):
    page = visit(server[0], viewport={"width": 390, "height": 800}, color_scheme="dark")
    ask(page, "Name it")
    ended(page, "Name it")
    first, second = column(page, "workspace"), column(page, "qlora-1")
    assert "<b>round</b>" in first.inner_text()
    assert second.locator("ins, del").count() == 0
    page.get_by_role("switch", name="Show differences").click()
    second.locator("ins").first.wait_for()
    assert second.locator("ins").all_inner_texts() == ["large", "circles"]
    assert second.locator("del").all_inner_texts() == ["<b>round</b>", "follows"]
    assert first.locator("ins, del").count() == 0
    page.get_by_role("switch", name="Show differences").click()
    second.locator("ins").first.wait_for(state="detached")
    # On a phone columns lie below each other, and nothing sticks out.
    assert second.bounding_box()["y"] > first.bounding_box()["y"] + first.bounding_box()["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_script_in_a_question_or_an_answer_is_never_run(server, visit):
    page = visit(server[0])
    attack = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>&lt;b&gt;"
    ask(page, attack)  # which the answer starts with
    ended(page, "script")
    assert attack in column(page, "workspace").inner_text()
    assert page.evaluate("window.ran") is None
    assert page.get_by_role("region").locator("script, img").count() == 0


def test_what_goes_wrong_is_said_in_a_sentence(server, visit):
    address, log = server
    page = visit(address)
    choose(page, "models/mine")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("Instruction: write what the models shall do").wait_for()
    ask(page, "This is too long")
    sentence = column(page, "models/mine").get_by_role("alert")
    sentence.wait_for()
    assert sentence.inner_text() == "the prompt has 900 tokens, and the model takes 512; shorten it"

    ask(page, "This is broken")
    column(page, "models/mine").get_by_text("The answer broke off; the server's log says why.").wait_for()
    assert "RuntimeError: a fault" in log.read_text()
    log.write_text("")  # the next test looks for faults of its own

    ask(page, "Go on")
    streaming(page, "models/mine", "word")
    page.get_by_role("button", name="Stop").click()
    ended(page, "Go on")
    stopped = column(page, "models/mine").inner_text()
    assert "stopped" in stopped and 0 < stopped.count("word") < 250

    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("-1")
    ask(page, "Go on")
    page.get_by_text("Temperature: give a number from 0 to 5").wait_for()
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Max new tokens").fill("301")
    ask(page, "Go on")
    page.get_by_text("Max new tokens: the server allows 300, not 301").wait_for()


def test_an_experiment_can_be_added(server, visit):
    page = visit(server[0])
    name = page.get_by_label("Add an experiment")
    name.fill("lora-7")
    name.press("Enter")
    page.get_by_text("lora-7: no such experiment or revision").wait_for()
    name.fill("lora-1")
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_role("button", name="Remove").nth(2).wait_for()
    ask(page, "Who")
    ended(page, "Who")
    assert "Who: Added." in column(page, "lora-1").inner_text()


def test_recorded_answers_stand_beside_prompts_references_and_scores(server, visit):
    page = visit(server[0])
    choose(page, "workspace", "qlora-1", "models/mine")
    page.get_by_role("tab", name="Test answers").click()
    page.get_by_text("1 to 10 of 25 test prompts").wait_for()
    page.get_by_text("models/mine: a folder has no recorded answers; the workspace and experiments have").wait_for()
    shown = page.get_by_role("article")
    assert [one.get_attribute("aria-label") for one in shown.all()] == [f"words.json[{n}]" for n in range(10)]
    text = shown.nth(1).inner_text()
    for part in ("Name a river.", "a river will wait.", "The moon is old & round.", "The moon is <b>bold</b>."):
        assert part in text
    assert text.count("ROUGE-L 41.0 · loss 1.500 nats per token") == 2
    page.get_by_role("switch", name="Show differences").click()
    shown.nth(1).locator("ins", has_text="<b>bold</b>").wait_for()

    page.get_by_role("button", name="3", exact=True).click()
    page.get_by_text("21 to 25 of 25 test prompts").wait_for()
    page.get_by_label("Search").fill("LIST OLD SHIPS")
    page.get_by_text("1 to 1 of 1 test prompts").wait_for()
    shown.get_by_role("button", name="Ask it live").click()
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    assert page.get_by_label("Instruction").input_value() == "List old ships."
    assert page.get_by_label("Input").input_value() == "Think of old ships at night."


def test_a_key_is_asked_for(locked_server, visit):
    address, _ = locked_server
    page = visit(f"{address}/?key=wrong")
    field = page.get_by_label("Key")
    field.fill("a-kez")
    field.press("Enter")
    page.get_by_text("This is not the key that the server was started with").wait_for()
    assert page.get_by_label("Instruction").count() == 0
    field.fill("a-key")
    page.get_by_role("button", name="Open").click()
    page.get_by_label("Instruction").wait_for()
    page.reload()
    page.get_by_label("Instruction").wait_for()

    by_address = visit(f"{address}/?key=a-key")
    by_address.get_by_label("Instruction").wait_for()
    by_address.wait_for_url(f"{address}/")
    visit(address).get_by_label("Key").wait_for()
