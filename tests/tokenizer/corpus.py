"""More than 10,000 deterministic lines: real code and prose, many languages, every script of Unicode, odd strings."""

from __future__ import annotations

import functools
import random
import sysconfig
import unicodedata
from collections.abc import Sequence
from pathlib import Path

MAX_LINE = 160

# Article 1 of the Universal Declaration of Human Rights (public domain), or its first sentence.
LANGUAGES = """\
All human beings are born free and equal in dignity and rights.
Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience.
Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.
Todos los seres humanos nacen libres e iguales en dignidad y derechos, dotados como están de razón y conciencia.
Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza.
Todos os seres humanos nascem livres e iguais em dignidade e em direitos.
Alle mensen worden vrij en gelijk in waardigheid en rechten geboren.
Alla människor är födda fria och lika i värde och rättigheter. De är utrustade med förnuft och samvete.
Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.
Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem i sumieniem.
Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.
Minden emberi lény szabadon születik és egyenlő méltósága és joga van.
Toate ființele umane se nasc libere și egale în demnitate și în drepturi.
Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler.
Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.
Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama.
Wote wamezaliwa huru, hadhi na haki zao ni sawa. Wote wamejaliwa akili na dhamiri.
Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.
Всі люди народжуються вільними і рівними у своїй гідності та правах.
Всички хора се раждат свободни и равни по достойнство и права.
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.
כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון.
يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق، وقد وهبوا عقلاً وضميرًا.
تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند.
सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।
সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।
மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும், உரிமைகளிலும் சமமானவர்கள்.
మనుష్యులందరు పుట్టుకతో స్వతంత్రులు, మరియు సమాన గౌరవం మరియు హక్కులు కలవారు.
มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ
ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.
Բոլոր մարդիկ ծնվում են ազատ ու հավասար՝ իրենց արժանապատվությամբ և իրավունքներով։
すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。
人人生而自由,在尊嚴和權利上一律平等。他們賦有理性和良心,並應以兄弟關係的精神對待。
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.
ሰብአዊ ፍጡራን ሁሉ ነጻና ተመጣጣኝ ክብርና መብት ኖሮአቸው የተወለዱ ናቸው።
""".splitlines()

ODD = [
    "",
    " ",
    "  ",
    "   x",
    "x   ",
    "\t",
    "\t\t\t a",
    "\r\n",
    "a\r\nb\r\n",
    "\n" * 31,
    "\n" * 32,
    "\n" * 70,
    " " * 31,
    " " * 32,
    " " * 77,
    "\t" * 31,
    "\t" * 40,
    " \n \n\n  \n\t\t\n",
    "\u2581",
    "\u2581\u2581a \u2581",
    "a\0b",
    "\x01\x02\x7f\x80\x9f",
    "\ufeffBOM",
    "\u200b\u200d\u2060",
    "e\u0301\u0323",
    "\u1100\u1161\u11a8",
    "👩‍👩‍👧‍👦🏽🇨🇭✈️",
    "𝔊𝔢𝔪𝔪𝔞 𝟙𝟚𝟛",
    "\ue000\uf8ff",
    "\U0010ffff",
    "\U000e0041\U000e007f",
    "\ufffd\ufffe\uffff",
    "ﷺ",
    "a" * 160,
    "0" * 160,
    "ab" * 80,
    "é" * 60,
    "🙂" * 40,
    "<" * 50,
    "<table><tr><td>x</td></tr></table>",
    "</table",
    "<tab le>",
    "<h1>A</h1><h7>",
    "<0x41>",
    "<0x0A>",
    "[@BOS@]",
    "[multimodal]",
    "<start_of_turn>user\nhi<end_of_turn>\n",
    "<start_of_image><end_of_image>",
    "<unused5><unused99><unused6241><unused6242>",
    "<mask>",
    "< mask>",
    "<mas<mask>k>",
    "<loc0123><seg045>",
    "[toxicity=0]",
    "1,234.5e-6",
    "٣٤٥६७८",
    "½²①Ⅷ",
    "ǅ ß İ ı ſ K",
    "C:\\new\\table\t'q' \"q\"",
    "https://example.org/a?b=c&d=%20#e",
    "x" + " " * 5 + "y",
    "don't can't I'll",
    "A.B.C...",
    "——…「」",
]

_BLOCK = 128


def _code_lines(count: int) -> list[str]:
    """Lines of the standard library: code, comments, prose, and the tables of `encodings` in many scripts."""
    root = Path(sysconfig.get_paths()["stdlib"])
    folders = [root, root / "encodings", root / "json", root / "email", root / "pydoc_data", root / "asyncio"]
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    lines = [
        line[:MAX_LINE]
        for file in files
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    return random.Random(1).sample(lines, count)


def _script_lines(per_block: int) -> list[str]:
    """Words of letters, marks and digits from each block of 128 assigned code points, with spaces and punctuation."""
    rng = random.Random(2)
    lines = []
    for start in range(0, 0x20000, _BLOCK):
        usable = [
            chr(c) for c in range(start, start + _BLOCK) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")
        ]
        for _ in range(per_block if len(usable) > 16 else 0):
            words = ["".join(rng.choices(usable, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 8))]
            lines.append(rng.choice([" ", " ", ", ", "  ", "\n", " 12 "]).join(words))
    return lines


def _vocabulary_lines(pieces: Sequence[str], count: int) -> list[str]:
    """Random pieces of the vocabulary itself, joined: its own words of every language, with new neighbours."""
    rng = random.Random(3)
    return ["".join(rng.choices(pieces, k=rng.randint(2, 14))).replace("\u2581", " ")[:MAX_LINE] for _ in range(count)]


def lines(pieces: Sequence[str]) -> list[str]:
    """The corpus for a vocabulary: at least 10,000 lines."""
    return [*_fixed_lines(), *_vocabulary_lines(pieces, 3000)]


@functools.cache
def _fixed_lines() -> tuple[str, ...]:
    return (*LANGUAGES, *ODD, *_code_lines(6500), *_script_lines(4))
