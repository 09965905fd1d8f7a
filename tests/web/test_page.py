"""The page in a real browser: several models asked at once, by several users."""

import re
import time

import httpx
import pytest

pytest.importorskip("starlette", reason="starlette is not installed")


def box(page, name: str):
    return page.get_by_role("group").locator(f"input[value='{name}']")


def choose(page, *names: str) -> None:
    """Have `names` chosen, in this order, and nothing else."""
    box(page, "workspace").wait_for()
    for one in page.get_by_role("checkbox").all():
        one.uncheck()
    for name in names:
        box(page, name).check()


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
    figures = r"13 tokens · \d+\.\d tokens/s · first after \d\.\d\d s · 0\.269 GB held"
    assert re.search(figures, column(first, "workspace").inner_text())

    closed = re.compile(r"closed Name a sea slowly after (\d+) words")
    for _ in range(200):
        if len(counts := closed.findall(log.read_text())) == 2:
            break
        time.sleep(0.1)
    assert len(counts) == 2 and int(max(counts, key=int)) < 250
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("first", "text", "shown"),
    [
        ("the old moon", "the moon", "the <del>old</del> moon"),
        ("the moon", "the\n\nnew moon!", "the\n\n<ins>new</ins> moon<ins>!</ins>"),
        ("don't go", "do go", "<del>don't</del> <ins>do</ins> go"),
        ("a b", "a  b", "a  b"),
        ("", "<i>", "<ins>&lt;i&gt;</ins>"),
        ("我喜欢茶。", "我喜欢咖啡。", "我喜欢<del>茶</del> <ins>咖啡</ins>。"),
    ],
)
def test_words_that_differ_are_marked(server, chromium, first, text, shown):
    page = chromium.new_page()
    page.goto(server[0])
    call = "([first, text]) => { const p = document.createElement('p'); p.append(marked(first, text)); return p.innerHTML }"
    assert page.evaluate(call, [first, text]) == shown
    page.close()


def test_differences_are_marked_on_demand_and_answers_are_text(server, visit):
    page = visit(server[0], viewport={"width": 390, "height": 800}, color_scheme="dark")
    ask(page, "Name it")
    ended(page, "Name it")
    first, second = column(page, "workspace"), column(page, "qlora-1")
    assert "<b>round</b>" in first.inner_text()
    assert second.locator("ins, del").count() == 0
    page.get_by_role("switch", name="Show differences").click()
    assert second.locator("ins").all_inner_texts() == ["large", "circles"]
    assert second.locator("del").all_inner_texts() == ["<b>round</b>", "follows"]
    assert first.locator("ins, del").count() == 0
    page.get_by_role("switch", name="Show differences").click()
    assert second.locator("ins, del").count() == 0
    # On a phone columns lie below each other, and nothing sticks out.
    assert second.bounding_box()["y"] > first.bounding_box()["y"] + first.bounding_box()["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_script_in_a_question_or_an_answer_is_never_run(server, visit):
    page = visit(server[0])
    attack = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>&lt;b&gt;"
    page.get_by_role("switch", name="Show differences").click()
    ask(page, attack)  # which the answer starts with
    ended(page, "script")
    assert attack in column(page, "workspace").inner_text()
    assert page.evaluate("window.ran") is None
    assert page.get_by_role("region").locator("script, img").count() == 0


def test_the_policy_stops_what_is_not_the_files_own(server, visit):
    address, _ = server
    policy = httpx.get(address).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    page = visit(address)
    tried = """async () => {
        const script = document.createElement('script');
        try { document.body.innerHTML += '<img src=x onerror="window.ran = 1">' } catch { window.refused = 1 }
        try { script.text = 'window.ran = 1'; document.body.append(script) } catch { window.refused += 1 }
        return [window.ran, window.refused]
    }"""
    assert page.evaluate(tried) == [None, 2]


def test_what_goes_wrong_is_said_in_a_sentence(server, visit):
    address, _ = server
    page = visit(address)
    choose(page, "models/mine")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("Instruction: write what the models should do").wait_for()
    for instruction, sentence, end in (
        ("This is too long", "the prompt has 900 tokens, and the model takes 512; shorten it", "no answer"),
        ("This is broken", "unexpected RuntimeError", "no answer"),
        ("This breaks off", "the memory isn't enough for all requests at a time", "broke off"),
    ):
        ask(page, instruction)
        column(page, "models/mine").get_by_role("alert").filter(has_text=sentence).wait_for()
        column(page, "models/mine").get_by_text(end).wait_for()

    ask(page, "Continue")
    streaming(page, "models/mine", "word")
    page.get_by_role("button", name="Stop").click()
    ended(page, "Continue")
    stopped = column(page, "models/mine").inner_text()
    assert "stopped" in stopped and 0 < stopped.count("word") < 250

    page.get_by_text("Settings").click()
    for field, value, sentence in (
        ("Temperature", "-1", "Temperature: give a number from 0 to 5"),
        ("Top-k", "1.5", "Top-k: give a whole number from 0"),
        ("Max new tokens", "301", "Max new tokens: give a whole number from 1 to 300"),
    ):
        before = page.get_by_label(field).input_value()
        page.get_by_label(field).fill(value)
        ask(page, "Continue")
        page.get_by_role("alert").filter(has_text=sentence).wait_for()
        page.get_by_label(field).fill(before)

    choose(page)
    ask(page, "Continue")
    page.get_by_text("Models: choose at least one").wait_for()


def test_an_experiment_can_be_added(server, visit):
    page = visit(server[0])
    name = page.get_by_label("Add an experiment")
    name.fill("lora-7")
    name.press("Enter")
    page.get_by_text("lora-7: no such experiment or revision").wait_for()
    name.fill("lora-1")
    page.get_by_role("button", name="Add", exact=True).click()
    box(page, "lora-1").and_(page.locator(":checked")).wait_for()
    ask(page, "Who")
    ended(page, "Who")
    assert "Who: Added." in column(page, "lora-1").inner_text()
    for body, status in ({"name": ""}, 400), ({}, 400), ([], 400):
        assert httpx.post(f"{server[0]}/page/models", json=body).status_code == status
    assert httpx.post(f"{server[0]}/page/models", content=b'{"name": "lora-1"}').status_code == 415


def test_recorded_answers_are_shown_next_to_prompts_references_and_scores(server, visit):
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

    for _ in range(2):
        page.get_by_role("button", name="Next").click()
    page.get_by_text("21 to 25 of 25 test prompts").wait_for()
    page.get_by_label("Search").fill("LIST OLD SHIPS")
    page.get_by_text("1 to 1 of 1 test prompts").wait_for()
    shown.get_by_role("button", name="Ask it live").click()
    assert page.get_by_label("Instruction").input_value() == "List old ships."
    assert page.get_by_label("Input").input_value() == "Think of old ships at night."
    page.get_by_role("button", name="Ask", exact=True).click()
    ended(page, "List old ships.\n\nThink of old ships at night.: ")


def test_a_key_is_asked_for(locked_server, visit):
    address, _ = locked_server
    page = visit(f"{address}/?key=wrong")
    field = page.get_by_label("Key")
    field.fill("a-kez")
    field.press("Enter")
    page.get_by_text("This is not the key that the server was started with").wait_for()
    assert not page.get_by_label("Instruction").is_visible()
    field.fill("a-kéy")
    page.get_by_role("button", name="Open").click()
    page.get_by_label("Instruction").wait_for()
    page.reload()
    page.get_by_label("Instruction").wait_for()
    ask(page, "Name it")
    ended(page, "Name it")

    by_address = visit(f"{address}/?key=a-kéy")
    by_address.get_by_label("Instruction").wait_for()
    by_address.wait_for_url(f"{address}/")
    visit(address).get_by_label("Key").wait_for()
    for path in ("models", "answers?model=workspace"):
        assert httpx.get(f"{address}/page/{path}").status_code == 401
