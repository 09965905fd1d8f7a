"""Scores of texts in any script, of any length, and encoded in any of the ways that look the same."""

# ruff: noqa: RUF001

import unicodedata

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from finetune.errors import UserError
from finetune.evaluation import bleu, scoring
from finetune.evaluation.tokenisation import NOTICED, choose, words

TEXTS = {
    "English": "The cat sat on the mat and looked at the moon.",
    "French": "L'été dernier, la forêt était très belle et nous avons marché longtemps.",
    "German": "Die Straße führt über die Brücke zum größten Platz der Stadt.",
    "Italian": "Perché la città è così bella e il caffè più buono?",
    "Polish": "Żółta łódź płynie powoli przez spokojną rzekę.",
    "Turkish": "İstanbul Türkiye'nin en büyük şehridir ve çok güzeldir.",
    "Vietnamese": "Hà Nội là thủ đô của nước Việt Nam.",
    "Russian": "Москва — столица России и самый большой её город.",
    "Greek": "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.",
    "Arabic": "القاهرة هي عاصمة مصر وأكبر مدنها، أليس كذلك؟",
    "Persian": "من می\u200cخواهم به تهران بروم و کتاب بخرم.",
    "Hebrew": "ירושלים היא עיר הבירה של ישראל.",
    "Hindi": "भारत एक विशाल देश है और उसकी राजधानी दिल्ली है।",
    "Bengali": "ঢাকা বাংলাদেশের রাজধানী এবং বৃহত্তম শহর।",
    "Tamil": "சென்னை தமிழ்நாட்டின் தலைநகரம் ஆகும் என்று சொன்னார்.",
    "Amharic": "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት።",
    "Georgian": "თბილისი არის საქართველოს დედაქალაქი.",
    "Korean": "서울은 대한민국의 수도이며 가장 큰 도시이고 한강이 그 가운데를 흐른다.",
    "Chinese": "今天天气很好，我们去公园散步。",
    "Cantonese": "我哋今日去公園行下啦。",
    "Japanese": "東京は日本の首都で、とても大きな都市です。",
    "Thai": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "Lao": "ວຽງຈັນເປັນນະຄອນຫຼວງຂອງລາວ",
    "Khmer": "ភ្នំពេញជារាជធានីនៃប្រទេសកម្ពុជា",
    "Burmese": "ရန်ကုန်သည် မြန်မာနိုင်ငံ၏ မြို့ကြီးဖြစ်သည်",
    "Hawaiian": "ʻO ka ʻōlelo Hawaiʻi ka ʻōlelo o kākou.",
    "Yoruba": "Ọjọ́ tó dára ni òní, ẹ kú àárọ̀ o.",
    "Urdu": "یہ ایک بہت اچھی کتاب ہے۔",
    "Mongolian script": "ᠮᠣᠩᠭᠣᠯ ᠬᠡᠯᠡ ᠪᠣᠯ ᠰᠠᠶᠢᠬᠠᠨ",
    "rare Han": "𠀀𠀁𠀂𠀃𠀄",
    "bold mathematical letters": "𝐇𝐞𝐥𝐥𝐨 𝐰𝐨𝐫𝐥𝐝, 𝐡𝐨𝐰 𝐚𝐫𝐞 𝐲𝐨𝐮?",
    "digits of another script": "१२३४",
    "powers": "x² + y² = z²",
    "full-width punctuation": "？！",
    "braille": "⠓⠑⠇⠇⠕",
    "a lone mark": "\u0301",
    "Tibetan": "བོད་སྐད་ནི་སྐད་ཡིག་ཅིག་རེད།",
    "code": "for i in range(10): print(i ** 2)",
    "number": "42",
    "one English word": "Yes",
    "one Chinese word": "是",
    "one Russian word": "Да",
    "one Japanese word": "はい",
    "a letter": "ß",
    "punctuation": "?!",
    "emoji": "🎉",
    "emoji of several parts": "👨‍👩‍👧 ❤️",
}

BLEU_TOKENIZERS = {
    "English": "13a",
    "French": "13a",
    "German": "13a",
    "Vietnamese": "13a",
    "Hawaiian": "13a",
    "powers": "13a",
    "number": "13a",
    "emoji": "13a",
    "Russian": "intl",
    "Greek": "intl",
    "Arabic": "intl",
    "Hindi": "intl",
    "Korean": "intl",
    "Chinese": "zh",
    "Cantonese": "zh",
    "Japanese": "char",
    "Thai": "char",
    "Khmer": "char",
    "Burmese": "char",
}


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("times", [1, 3])
def test_an_answer_like_its_reference_scores_100(language, times):
    texts = [TEXTS[language]] * times
    scores = scoring.score(texts, texts)
    assert scores["bleu"] == pytest.approx(100) and scores["rouge1"] == scores["rougeL"] == 100
    rows = [{"record": "1", "prompt": "", "reference": TEXTS[language]}]
    (row,) = scoring.scored_rows(rows, [TEXTS[language]], [Loss()])
    assert row["rouge_l"] == 100


class Loss:
    nats, tokens = 1.0, 1


@pytest.mark.parametrize("language", TEXTS)
def test_an_answer_that_shares_no_word_scores_0(language):
    other = "zebra zebra zebra zebra zebra"
    scores = scoring.score([other], [TEXTS[language]])
    assert scores["rougeL"] == 0 and scores["bleu"] < 5


@pytest.mark.parametrize("language", ["Chinese", "Japanese", "Thai", "Russian", "Hindi", "Arabic", "Korean", "French"])
def test_a_part_of_an_answer_scores_between(language):
    text = TEXTS[language]
    scores = scoring.score([text[: 3 * len(text) // 4]], [text])
    assert 0 < scores["bleu"] < 100 and 30 < scores["rougeL"] < 100


@pytest.mark.parametrize("language", BLEU_TOKENIZERS)
def test_the_signature_tells_the_tokenizer(language):
    assert f"|tok:{BLEU_TOKENIZERS[language]}|" in scoring.score(["a"], [TEXTS[language]])["bleu_signature"]


ENGLISH = [
    "The cat sat on the mat, and nothing else happened that day; it was a quiet evening.",
    "In the café near the river they read a poem, ate cake and talked of π until the lights went out again.",
    'He said "no" & left: x_1 + y = 3.5% of 1,000 (about).',
    "- first\n- second\n- third",
    "Yes.",
]
SAID = ["The cat sat on a mat; nothing happened.", "In the cafe they read a poem.", 'He said "no".', "- first", ""]


def test_english_is_scored_as_by_the_libraries_themselves():
    scores = scoring.score(SAID, ENGLISH)
    metric = sacrebleu.BLEU()
    assert scores["bleu"] == metric.corpus_score(SAID, [ENGLISH]).score
    assert scores["bleu_signature"] == str(metric.get_signature())
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    pairs = [scorer.score(r, a) for r, a in zip(ENGLISH, SAID, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert scores[name] == sum(100 * pair[name].fmeasure for pair in pairs) / len(pairs)
    assert scores["rouge_signature"].endswith("|f1|stem:no")


def test_words_of_any_script_are_rouge_scores_own_on_ascii():
    from rouge_score import tokenize

    for text in [*(t for t in ENGLISH if t.isascii()), "don't snake_case 3.5 A-B\tC\r\nd"]:
        assert words(text) == tokenize.tokenize(text, None)


def test_the_references_alone_choose():
    english, chinese = TEXTS["English"], TEXTS["Chinese"]
    one, other = (scoring.score([answer], [english])["bleu_signature"] for answer in (english, chinese))
    assert one == other
    assert scoring.score([english], [chinese])["bleu_signature"] != one


def test_a_script_decides_from_its_share_of_the_words():
    english = ["one two three four five six seven eight nine ten"] * 10
    below, above = int(100 * NOTICED) - 2, int(100 * NOTICED) + 2
    assert choose("auto", [*english, "да " * below]) == choose("auto", english)
    assert choose("auto", [*english, "да " * above]).bleu == "intl"
    assert choose("auto", [*english, "是" * above]).bleu == "zh"
    assert choose("auto", [*english, "は" * above, "да " * above, "是" * above]).bleu == "char"
    accents = choose("auto", [*english, "été " * above])
    assert accents.bleu == "13a" and accents.any_script


def test_the_order_of_the_references_does_not_matter():
    assert choose("auto", TEXTS.values()) == choose("auto", reversed(list(TEXTS.values())))


def test_a_named_tokenizer_wins():
    chinese = [TEXTS["Chinese"]]
    assert "|tok:char|" in scoring.score(chinese, chinese, "char")["bleu_signature"]
    plain = scoring.score(chinese, chinese, "13a")
    assert "|tok:13a|" in plain["bleu_signature"] and "unicode" not in plain["rouge_signature"]


@pytest.mark.parametrize("tokenize", ["13a", "intl", "zh", "char"])
def test_every_tokenizer_that_is_always_offered_runs(tokenize):
    text = [TEXTS["English"]]
    assert scoring.score(text, text, tokenize)["bleu"] == pytest.approx(100)


def test_a_signature_gives_its_metric_back():
    for tokenize in ("13a", "intl", "zh", "char"):
        for references in (["one"], ["one two three four five"]):
            signature = scoring.score(references, references, tokenize)["bleu_signature"]
            again = bleu.from_signature(signature)
            bleu.corpus(again, references, references)
            assert str(again.get_signature()) == signature and f"|tok:{tokenize}|" in signature


def test_a_tokenizer_without_its_packages_says_so(monkeypatch):
    def missing(*args, **kwargs):
        raise RuntimeError("\nJapanese tokenization requires extra dependencies\n")

    monkeypatch.setattr(sacrebleu, "BLEU", missing)
    with pytest.raises(UserError, match=r"eval\.tokenize: ja-mecab can't run here \(Japanese tokenization requires"):
        bleu.for_references("ja-mecab", ["は"])


SHORT = ["positive", "negative", "not sure"]


def test_labels_of_a_word_are_scored_by_the_orders_that_they_have():
    """Plain BLEU is 0 for such a test set even if every answer is right."""
    right = scoring.score(SHORT, SHORT)
    assert right["bleu"] == pytest.approx(100) and "|eff:yes|" in right["bleu_signature"]
    assert 0 < scoring.score(["positive", "positive", "not sure"], SHORT)["bleu"] < 100


def test_one_long_reference_is_enough_for_plain_bleu():
    mixed = [*SHORT, "this one has five words"]
    scores = scoring.score(mixed, mixed)
    assert scores["bleu"] == pytest.approx(100) and "|eff:no|" in scores["bleu_signature"]


@pytest.mark.parametrize("references", [[""], [" \n"], ["\u200b"], ["", ""]])
def test_a_reference_without_anything_scores_0_and_breaks_nothing(references):
    scores = scoring.score(references, references)
    assert scores["bleu"] == scores["rougeL"] == 0


def test_in_english_a_reference_without_a_word_is_worth_nothing_to_rouge():
    """As in rouge-score: the limit is documented, and `rouge_l_at_best` shows it."""
    texts = [TEXTS["English"], "🎉"]
    assert scoring.score(texts, texts)["rougeL"] == 50


SAME = {
    "composed and decomposed": (
        "Le café crème était très bon, d'après René.",
        "Le cafe\u0301 cre\u0300me e\u0301tait tre\u0300s bon, d'apre\u0300s Rene\u0301.",
    ),
    "Hangul syllables and jamo": (TEXTS["Korean"], unicodedata.normalize("NFD", TEXTS["Korean"])),
    "full-width digits": ("答えは１２３です", "答えは123です"),
    "full-width letters": ("これはＡＢＣです", "これはABCです"),
    "half-width kana": ("ガラスのコップ", "ｶﾞﾗｽのｺｯﾌﾟ"),
    "zero-width space": ("The cat sat on the mat", "The ca\u200bt sat on the\u200b mat"),
    "byte order mark": ("The cat sat on the mat", "\ufeffThe cat sat on the mat"),
    "word joiner": ("Кот сидел на ковре", "Кот си\u2060дел на ковре"),
    "soft hyphen": ("The unbelievable cat sat down", "The un\u00adbelievable cat sat down"),
    "direction marks": ("שלום לכולם וברוכים הבאים", "\u200fשלום לכולם\u200e וברוכים הבאים"),
    "zero-width non-joiner": ("من می\u200cخواهم به خانه بروم", "من میخواهم به خانه بروم"),
    "variation selector": ("I ❤️ the cat on the mat", "I ❤ the cat on the mat"),
    "CRLF": ("one two\nthree four\n- five", "one two\r\nthree four\r\n- five"),
    "tabs and more spaces": ("The cat sat on the mat", "  The\tcat  sat on\n\nthe mat \n"),
    "no-break space": ("Il y a 10 000 chats ici", "Il y a 10\u00a0000 chats ici"),
    "ideographic space": ("東京 は 日本 の 首都", "東京\u3000は\u3000日本\u3000の\u3000首都"),
    "line separator": ("one two three four", "one two\u2028three four"),
    "Å of either code": ("Ångström was a man of Uppsala", "\u212bngström was a man of Uppsala"),
}


@pytest.mark.parametrize("one, other", SAME.values(), ids=SAME)
def test_what_looks_the_same_scores_the_same(one, other):
    for answer, reference in ((one, other), (other, one)):
        scores = scoring.score([answer], [reference])
        assert scores["bleu"] == pytest.approx(100) and scores["rougeL"] == 100


def test_what_looks_different_does_not_score_the_same():
    for one, other in (("résumé à lire là-bas", "resume a lire la-bas"), ("x² и y³", "x2 и y3"), ("は", "ば")):
        assert scoring.score([one], [other])["rougeL"] < 100
