"""What TRL's `assistant_only_loss` learns of conversations: `python benchmarks/assistant_masks.py models/base`.

Writes tests/data/assistant_masks.json, against which tests/data/test_forms.py holds the pipeline. Needs the extra
`benchmark`.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from trl import SFTConfig, SFTTrainer

TARGET = Path(__file__).parents[1] / "tests/data/assistant_masks.json"

# SmolLM2's own template, with the marks that TRL needs around what the assistant says.
MARKED = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named "
    "SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CONVERSATIONS = [
    [("user", "Name a colour."), ("assistant", "Blue.")],
    [
        ("system", "Be brief."),
        ("user", "Name a colour."),
        ("assistant", "Blue."),
        ("user", "Another?"),
        ("assistant", "Red."),
    ],
    [("user", "assistant\nBlue."), ("assistant", "Blue."), ("user", "Blue."), ("assistant", "assistant\nBlue.")],
    [
        ("user", "Code:\n\n    x = [1, 2]\n"),
        ("assistant", "```python\nx = [1, 2]\n\n\ny = 3\n```"),
        ("user", "é 漢字 😀"),
        ("assistant", "Так."),
    ],
    [("user", "One"), ("user", "Two"), ("assistant", "1"), ("assistant", "2")],
    *[
        [turn for n in range(length) for turn in (("user", f"Say {n}."), ("assistant", f"It is {n}, indeed."))]
        for length in (3, 5, 8)
    ],
]


def main(base: str) -> None:
    """Let TRL prepare the conversations; write its ids and labels."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    own, tokenizer.chat_template = tokenizer.chat_template, MARKED
    conversations = [[{"role": role, "content": text.strip()} for role, text in turns] for turns in CONVERSATIONS]
    for messages in conversations:
        texts = [tokenizer.apply_chat_template(messages, chat_template=one, tokenize=False) for one in (own, MARKED)]
        assert texts[0] == texts[1]
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = AutoModelForCausalLM.from_config(shape)
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(output_dir=folder, assistant_only_loss=True, max_length=None, report_to=[], use_cpu=True)
        data = Dataset.from_list([{"messages": messages} for messages in conversations])
        trainer = SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer)
        rows = list(cast("Iterable[dict]", trainer.train_dataset))
    found = [
        {"messages": messages, "input_ids": row["input_ids"], "labels": row["labels"]}
        for messages, row in zip(conversations, rows, strict=True)
    ]
    TARGET.write_text(
        json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace('},{"messages"', '},\n{"messages"') + "\n"
    )


if __name__ == "__main__":
    main(sys.argv[1])
