"""Answers, scores, and what eval writes."""

import json

import evaluate
import pytest
import sacrebleu
import torch
from helpers import stage, write_params
from rouge_score import rouge_scorer

from finetune.evaluation import scoring
from finetune.generation import greedy
from finetune.models.base import Base, load_tokenizer
from finetune.models.loading import load_base

REFERENCES = ["The cat sat on the mat.", "A red apple fell.", "Nothing at all happened today."]
ANSWERS = ["The cat sat on a mat.", "The red apple fell down.", ""]


@pytest.fixture
def llama(tiny_models):
    return load_base(Base(tiny_models["llama"]), torch.float32), load_tokenizer(tiny_models["llama"])


def test_batched_answers_are_those_of_one_prompt_at_a_time(llama):
    model, tokenizer = llama
    prompts = [tokenizer(text)["input_ids"] for text in ("Name the moon.", "List", "Explain old ships and the wind.")]
    alone = [greedy.generate(model, tokenizer, [p], batch_size=1, max_new_tokens=12)[0] for p in prompts]
    assert greedy.generate(model, tokenizer, prompts, batch_size=3, max_new_tokens=12) == alone
    assert greedy.generate(model, tokenizer, prompts, batch_size=2, max_new_tokens=12) == alone


def test_generation_ignores_the_sampling_that_a_model_suggests(llama):
    model, tokenizer = llama
    prompts = [tokenizer("Name the moon.")["input_ids"]]
    likeliest = greedy.generate(model, tokenizer, prompts, batch_size=1, max_new_tokens=12)
    model.generation_config.update(do_sample=True, temperature=9.0, top_p=0.9, top_k=50)
    assert greedy.generate(model, tokenizer, prompts, batch_size=1, max_new_tokens=12) == likeliest


def test_scores_are_those_of_sacrebleu_and_rouge_score():
    scores = scoring.score(ANSWERS, REFERENCES)
    bleu = sacrebleu.corpus_bleu(ANSWERS, [REFERENCES])
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    rouge = [scorer.score(r, a)["rougeL"].fmeasure for r, a in zip(REFERENCES, ANSWERS, strict=True)]
    assert scores["bleu"] == pytest.approx(bleu.score)
    assert scores["rougeL"] == pytest.approx(100 * sum(rouge) / 3)
    assert "version:" in scores["bleu_signature"] and "stem:no" in scores["rouge_signature"]


def test_the_metrics_are_ordinary_evaluate_metrics():
    bleu = scoring.Bleu()
    assert isinstance(bleu, evaluate.Metric)
    bleu.add_batch(predictions=REFERENCES, references=REFERENCES)
    assert bleu.compute()["bleu"] == pytest.approx(100)


def test_every_prediction_has_its_prompt_and_reference(workspace, tiny_models):
    write_params(workspace)
    stage("prepare", "--model_name", tiny_models["llama"])
    stage("eval", "--base", "--model_name", tiny_models["llama"])
    rows = [json.loads(line) for line in (workspace / "data/predictions/base.jsonl").read_text().split("\n")[:-1]]
    metrics = json.loads((workspace / "metrics/base.json").read_text())
    assert len(rows) == 4
    assert all(row["prompt"].endswith("### Response:\n") and row["reference"] for row in rows)
    again = scoring.score([row["prediction"] for row in rows], [row["reference"] for row in rows])
    assert metrics["bleu"] == round(again["bleu"], 2) and metrics["rouge_l"] == round(again["rougeL"], 2)
    assert sum(row["rouge_l"] for row in rows) / 4 == pytest.approx(again["rougeL"], abs=0.01)
    loss = sum(row["nats"] for row in rows) / sum(row["tokens"] for row in rows)
    assert metrics["test_loss"] == pytest.approx(loss, abs=1e-3)
