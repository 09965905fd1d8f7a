"""Words that differ, as HTML."""

import pytest

from finetune.web.differences import marked


@pytest.mark.parametrize(
    ("first", "text", "html"),
    [
        ("the old moon", "the moon", "the <del>old</del> moon"),
        ("the moon", "the\n\nnew moon!", "the\n\n<ins>new</ins> moon<ins>!</ins>"),
        ("don't go", "do go", "<del>don't</del> <ins>do</ins> go"),
        ("a b", "a  b", "a  b"),
        ("", "<i>", "<ins>&lt;i&gt;</ins>"),
        ("我喜欢茶。", "我喜欢咖啡。", "我喜欢<del>茶</del> <ins>咖啡</ins>。"),
    ],
)
def test_words_that_differ_are_marked(first, text, html):
    assert marked(first, text) == html
