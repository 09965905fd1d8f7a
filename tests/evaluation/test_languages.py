"""What eval writes for data in other languages, through the stages: the model's answers are set, all else is real."""

import json

import pytest
from helpers import refusal, stage, write_params

from finetune.data import prepared
from finetune.generation.greedy import GreedyAnswers

SENTENCES = {
    "Chinese": "第{n}个答案是去公园散步。",
    "Japanese": "答え{n}は公園を散歩することです。",
    "Thai": "คำตอบที่{n}คือไปสวน",
    "Hindi": "उत्तर {n} है कि हम बाग में चलें।",
    "Russian": "Ответ {n}: мы идём гулять в парк.",
    "Arabic": "الجواب {n} هو أن نذهب إلى الحديقة",
    "Korean": "{n}번 답은 우리 모두 공원을 산책하는 것이다.",
    "labels": "{n}",
}


def evaluate(workspace, model, monkeypatch, sentence: str, change) -> dict:
    """Metrics and predictions of a model that answers with `change` of each reference."""
    raw = [{"instruction": f"{n}?", "input": "", "output": sentence.format(n=n)} for n in range(12)]
    (workspace / "data/raw/words.json").write_text(json.dumps(raw))
    stage("prepare", "--model_name", model)
    load, said = prepared.load, list[str]()

    def loaded(folder, tokenizer):
        splits, facts = load(folder, tokenizer)
        said.extend(change(text) for text in splits["test"]["reference"])
        return splits, facts

    monkeypatch.setattr(prepared, "load", loaded)
    monkeypatch.setattr(GreedyAnswers, "to", lambda *args, **kwargs: said)
    stage("eval", "--base", "--model_name", model)
    rows = (workspace / "data/predictions/base.jsonl").read_text().splitlines()
    names = ("base", "base.facts")
    metrics = [json.loads((workspace / f"metrics/{name}.json").read_text()) for name in names]
    return metrics[0] | metrics[1] | {"rows": [json.loads(row) for row in rows]}


@pytest.mark.parametrize("language", SENTENCES)
def test_right_answers_score_100(workspace, tiny_models, monkeypatch, language):
    found = evaluate(workspace, tiny_models["llama"], monkeypatch, SENTENCES[language], lambda text: text)
    assert found["bleu"] == found["rouge_l"] == found["bleu_at_best"] == found["rouge_l_at_best"] == 100
    assert {row["rouge_l"] for row in found["rows"]} == {100}


@pytest.mark.parametrize("language", ["Chinese", "Japanese", "Thai"])
def test_answers_of_which_half_is_right_score_in_between(workspace, tiny_models, monkeypatch, language):
    found = evaluate(
        workspace, tiny_models["llama"], monkeypatch, SENTENCES[language], lambda text: text[: len(text) * 2 // 3]
    )
    assert 10 < found["bleu"] < 90 and 50 < found["rouge_l"] < 95


def test_the_param_chooses_for_both_scores(workspace, tiny_models, monkeypatch):
    write_params(workspace, eval={"tokenize": "13a"})
    found = evaluate(workspace, tiny_models["llama"], monkeypatch, SENTENCES["Russian"], lambda text: text)
    assert "|tok:13a|" in found["bleu_signature"] and "unicode" not in found["rouge_signature"]
    write_params(workspace, eval={"tokenize": "mecab"})
    assert "eval.tokenize: must be one of auto" in refusal("eval", "--base")
