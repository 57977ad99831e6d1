"""500 texts for comparing tokenizers: languages, code, emoji, numbers, white space, special tokens, and what is broken or rare.

The list is always the same: it is made from written texts and from random mixtures with a fixed seed.
"""

import random
import unicodedata
import zlib

COUNT = 500
SEED = 500

LANGUAGES = """\
The quick brown fox jumps over the lazy dog, doesn't it? We'll see; they'd say "I'VE seen IT'S tail"!
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich – 1.234,56 € Straßenbahnfahrkartenautomat.
Le cœur déçu mais l'âme plutôt naïve, Louÿs rêva de crapaüter en canoë au-delà des îles, aujourd'hui.
El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío; añoraba a su querido cachorro. ¿Quién? ¡Ñandú!
À noite, vovô Kowalsky vê o ímã cair no pé do pinguim queixoso e vovó põe açúcar no chá de tâmaras.
Pchnąć w tę łódź jeża lub ośm skrzyń fig. Żółć, gęś, źdźbło.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul'da ılık IŞIK.
Con chó nhỏ chạy nhanh qua cánh đồng lúa chín vàng ở Việt Nam.
Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία. Η γρήγορη αλεπού.
Съешь же ещё этих мягких французских булок, да выпей чаю. Ёлка, подъезд.
Жълтата дюля беше щастлива, че пухът, който цъфна, замръзна като гьон.
Щастям б'єш жук їх глицю в фон й ґедзь пріч.
דג סקרן שט בים מאוכזב ולפתע מצא חברה. שָׁלוֹם עוֹלָם
نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. السَّلَامُ عَلَيْكُمْ ١٢٣٤٥
گل‌های زیبا در باغ می‌رویند؛ من ۱۲۳ کتاب خواندم.
ہر شخص کو آزادی کا حق ہے۔
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले विष्णुवतार भगवान श्रीराम। क्षत्रिय १२३
আমার সোনার বাংলা, আমি তোমায় ভালোবাসি। ১২৩
யாதும் ஊரே யாவரும் கேளிர், தீதும் நன்றும் பிறர்தர வாரா.
ఆంధ్ర ప్రదేశ్ భారతదేశంలోని ఒక రాష్ట్రం.
ಕನ್ನಡ ಭಾಷೆಯು ದ್ರಾವಿಡ ಭಾಷೆ.
മലയാളം ഒരു ദ്രാവിഡ ഭാഷയാണ്.
ਪੰਜਾਬੀ ਭਾਸ਼ਾ ગુજરાતી ભાષા ଓଡ଼ିଆ සිංහල
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓
ຂ້ອຍຮັກເຈົ້າ ພາສາລາວ
ខ្ញុំស្រឡាញ់ភាសាខ្មែរ កាន់តែពិសេសអាច ១២៣
မြန်မာဘာသာစကား လူတိုင်း
བོད་སྐད་ཡིག་ བཀྲ་ཤིས་བདེ་ལེགས།
საქართველო ლამაზი ქვეყანაა. ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ
Բոլոր մարդիկ ծնվում են ազատ։
ሰው ሁሉ ነጻና በክብር እኩል ሆኖ የተወለደ ነው።
ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᐃᓄᒃᑎᑐᑦ
天地玄黄，宇宙洪荒。日月盈昃，辰宿列張。我想在apple工作1314151天～
繁體中文與简体中文混合：「引號」、頓號；數字一二三四五六七八九十。
いろはにほへと ちりぬるを わかよたれそ つねならむ。カタカナ ﾊﾝｶｸ 漢字かな交じり文、Python3で書く。
키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. 한국어 ㅋㅋㅋ
ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ ꦧꦱꦗꦮ ᬩᬮᬶ
𐌼𐌰𐌲 𐌲𐌻𐌴𐍃 𒀀𒁀 𓀀𓁐 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒜𝓁𝓅𝒽𝒶 𝟘𝟙𝟚 ａｂｃ１２３
Mixed: Привет world 你好 مرحبا שלום नमस्ते こんにちは 안녕 γειά
""".splitlines()

CODE = [
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)  # slow\n",
    "class Foo(Bar):\n\t'''Docs.'''\n\tdef __init__(self, *args, **kwargs):\n\t\tsuper().__init__(*args)\n\t\tself.x = {k: v for k, v in kwargs.items() if v is not None}\n",
    'fn main() -> Result<(), Box<dyn Error>> {\n    let xs: Vec<u32> = (0..10).map(|x| x * 2).collect();\n    println!("{xs:?}");\n    Ok(())\n}\n',
    "#include <stdio.h>\r\nint main(void) {\r\n\tprintf(\"%d\\n\", 1 << 10);\r\n\treturn 0;\r\n}\r\n",
    "const f = async (x) => { await fetch(`https://example.com/${x}?a=1&b=2`); return x ?? null; };",
    "<!DOCTYPE html>\n<html lang=\"en\"><body>\n  <table><tr><td>1</td></tr></table>\n  <h1>Title</h1><s>old</s><b>bold</b> &amp; &nbsp;\n</body></html>",
    "SELECT a.id, COUNT(*) AS n FROM t1 a LEFT JOIN t2 b ON a.id = b.id WHERE a.x >= 10.5 GROUP BY 1 HAVING n > 3;",
    "\\begin{equation}\n  \\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2} \\label{eq:1}\n\\end{equation}",
    '{"a": [1, 2.5e-10, null, true], "b": {"c": "\\u00e9\\n"}}',
    "key: value\nlist:\n  - one\n  -   two\n# comment\nmulti: |\n    text\n",
    "@@ -1,4 +1,4 @@\n-old line\n+new line\n unchanged\n",
    "$ ls -la | grep '^d' && echo \"$HOME\" > /dev/null 2>&1; exit $?",
    "for(int i=0;i<n;++i){a[i]^=b[i]>>3;c|=~a[i]&0xFF;}//___---===+++***///",
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n* item\n  1. sub\n\n> quote\n\n```rust\nlet x = 1;\n```\n",
    "camelCaseWord snake_case_word SCREAMING_CASE kebab-case PascalCaseHTTPServer getURLForID x1y2z3 iOS17 macOS",
    "import numpy as np\n\n\nx = np.zeros((3, 4), dtype=np.float32)\nprint(x @ x.T, x[..., None], x[::-1])\n\n\n\n",
]

EMOJI = [
    "😀😃😄😁 🚀 🦙🦙 ✅ ❤️ ❤ ☺️",
    "👩‍👩‍👧‍👦 👨🏽‍💻 🏳️‍🌈 🏴‍☠️ 😶‍🌫️ 🧑🏿‍🤝‍🧑🏻",
    "🇩🇪🇫🇷🇯🇵 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣2️⃣#️⃣ ©️®️™️",
    "text😀text 😀 text\n😀\t😀",
    "👍👍🏻👍🏿 🤷‍♀️🤷🏽‍♂️ ‍ ‍‍ ️",
    "♔♕♖ ♠♣♥♦ ☀☁☂ ←↑→↓↔ ⇒∀∃∈∉∑∏√∞≠≤≥ ½⅓¼ ①②③ ⅷ",
]

NUMBERS = [
    "0 1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890",
    "3.14159265358979 -2.5e+10 1e-9 .5 5. 1,000,000.00 1.000.000,00 1_000_000 0x1F4A9 0b1010 0o755",
    "2024-02-29T23:59:59.999Z 12:30 31/12/1999 $19.99 €5 £3 ¥100 50% 10‰ 37°C 5′11″ +1 (555) 123-4567",
    "x² + y³ = z⁴, H₂O, CO₂, a₁…aₙ, ¹²³ ₁₂₃ Ⅳ ⅻ ٣٫١٤ १२३ 一二三 ௧௨௩ 𝟏𝟐𝟑 ３.１４",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
    "192.168.0.1 ::1 v1.2.3-rc.4 3..3 3...3 333 3333 33333 333333 3333333 33333333",
    "1a2b3c a1b2 9to5 24/7 1st 2nd 3rd 4th 1/2 10x 100k 5GB",
]

SPACES = [
    " ",
    "  ",
    "   a",
    "a ",
    "a  ",
    " a b  c   d    e     f      g       h        i         j",
    "\n",
    "\n\n\n",
    "\t",
    "\t\t\t\tx",
    "\r\n",
    "\r\n\r\n\r\nx\r\n",
    "\r",
    "a\rb\r\rc",
    " \n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
    "x \n y\t\n z \r\n w",
    "\u00a0nbsp\u00a0\u00a0x \u2003em\u2009thin\u3000wide\u200b\u200bzero\u2060\ufeffbom",
    "line\u2028sep\u2029para\u0085nel\x0bvt\x0cff",
    " " * 16 + "x" + " " * 31 + "y" + " " * 32 + "z" + " " * 65,
    "\n" * 31 + "x" + "\n" * 33 + "\t" * 40,
    " leading and trailing ",
    "a.  b.   c.\n\n   d",
    "▁ literal ▁▁ block ▁▁▁▁",
    "tab\tand space \t mixed\t \n\t\n",
]

COMBINED = [
    unicodedata.normalize("NFD", "Crème brûlée à la façade, Ångström, Ñandú, ÄÖÜ äöü ệ ǘ"),
    "e\u0301 \u0301e e\u0301\u0302\u0303 a\u0328\u0301 q\u0307\u0323 s\u0323\u0307",
    "Z̷̢͎̻̈́a̶̪̓l̸̨̈́ǵ̵̱ȏ̶̯",
    unicodedata.normalize("NFD", "한국어 각 힣"),
    "ᄀ각ᆨ ᄀ ᅡ ᆨ",
    "क्ष्म्य र्क क्‍ष क्‌ष நி கொ",
    "ﬁ ﬂ ﬀ Ǆ ǅ ǆ ĳ ŉ ſ ẞ ß ﷺ ㎏ ㌔ Å Ω K",
    "\u0344\u0958\u2126\u212b\u1e9b\u0323\ufb1d\U0001d15e 豈 更",
    "שּׁ שׁ אָלֶף بِسْمِ ٱللَّهِ",
]

ODD = [
    "\x00",
    "a\x00b\x00\x00c",
    "".join(map(chr, range(1, 32))),
    "\x7f\x80\x81\x9f\xa0\xad",
    "\ufffd \ufffd\ufffd \ufffe \uffff \U0010ffff \ue000 \U000f0000",
    "<0x0A> <0x00> <0xE2><0x96><0x81> \\x0a \\u0000",
    "Ġword Ċ ĉ âĢĻ Ã© ĠĠĠ",
    "\u202eright to left\u202c \u200ejoin\u200f \u2066x\u2069",
    "\x1b[31mred\x1b[0m \x07bell \x08",
    "''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL",
    "'S 'T 'LL ’s ’t 's't're've'm'll'd 'ſ 'K",
    "------======= ******* ~~~~~ ...... ,,,, ;;;; ::::: ///// \\\\\\\\ ((((( ]]]]] }}}}}",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "...\n...\r\n!!!\n\n???\t///\n#\n/\n//\n",
]

LONG = [
    "a" * 300,
    "ab" * 150,
    "aab" * 100,
    "ha" * 7 + "!" * 99,
    "-" * 77 + "=" * 130 + "_" * 64 + "#" * 33,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 3,
    "aHR0cHM6Ly9leGFtcGxlLmNvbS8/cT1iYXNlNjQmeD15Jno9MTIzNDU2Nzg5MA==" * 3,
    "https://www.example.com/a/very/long/path_with-parts/index.html?query=string&other=1#fragment",
    "你好" * 80,
    "ก" * 70 + "ข" * 35,
    "😀" * 40,
    "0" * 50 + "9" * 51,
    "AAAAaaaaAAAAaaaa" * 8,
    "Lopado­temacho­selacho­galeo­kranio­leipsano­drim­hypo­trimmato­silphio­karabo­melito­katakechy­meno­kichl",
]

# Of all vocabularies: in most of them most of these are ordinary text.
SPECIAL = """\
<s> </s> <unk> <pad> <bos> <eos> <mask> <start_of_turn> <end_of_turn> <unused0> <unused99> [multimodal] <h1> </h1> <table> <tr>
<|begin_of_text|> <|end_of_text|> <|eot_id|> <|eom_id|> <|start_header_id|> <|end_header_id|> <|python_tag|> <|finetune_right_pad_id|>
<|endoftext|> <|im_start|> <|im_end|> <|end|> <|user|> <|assistant|> <|system|> <|placeholder1|> <think> </think> <tool_call>
<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <fim_prefix> <fim_pad> <filename> <reponame> <gh_stars> <|start_of_role|> <|end_of_role|>
[INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [IMG] <SPECIAL_20> <|reserved_special_token_0|> <|image_pad|> <|vision_start|> [PAD151700]
""".split()


def written() -> list[str]:
    """The texts that are not random."""
    texts = ["", "Hello", " Hello", "Hello world", "hello, World!\n", "é", "a b", ".", " .", "I'm"]
    texts += LANGUAGES + CODE + EMOJI + NUMBERS + SPACES + COMBINED + ODD + LONG
    texts += [str(number)[:length] for length, number in enumerate([9876543210123456789] * 20, 1) if length % 3]
    for token in SPECIAL:
        texts.append(f"text{token}text {token} text\n{token}\n  {token}  \t{token}")
    texts.append("".join(SPECIAL))
    texts.append(" ".join(SPECIAL))
    texts.append("<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n")
    texts.append("<bos><start_of_turn>user\nHi!<end_of_turn>\n<start_of_turn>model\n")
    texts.append("<s>[INST] Hi! [/INST] Hello.</s>[INST] Bye [/INST]")
    texts.append("<|user|>\nHi!<|end|>\n<|assistant|>\n   Hello <|end|>   \n\n")
    texts.append("< s> <S> <|im_start |> <|IM_START|> <<s>> <s <|end| |end|> <|end|><|end|> <start_of_turn <start_of_turn>>")
    return texts


def texts() -> list[str]:
    """All texts."""
    chosen = written()
    rng = random.Random(SEED)
    pieces = [word for text in chosen for word in text.split(" ") if 0 < len(word) <= 40]
    joints = ["", " ", " ", " ", " ", "  ", "\n", "\t", "\r\n", "   ", " \n", "\n\n"]
    while len(chosen) < COUNT:
        count = rng.choice([2, 3, 5, 8, 13, 21])
        text = "".join(rng.choice(joints) + rng.choice(pieces) for _ in range(count))
        if rng.random() < 0.2:
            text = "".join(rng.sample(text, len(text)))[:80]
        chosen.append(text)
    assert len(chosen) == COUNT
    return chosen


def checksum(ids: list[int]) -> int:
    """A short form of a list of ids."""
    return zlib.crc32(b"".join(number.to_bytes(4, "little") for number in ids))
