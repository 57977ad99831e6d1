"""Makes the fixtures of `mlx-tokenizer`: texts that transformers renders, encodes and decodes, and that mlx-lm streams.

What: `chats.json` has conversations, rendered with the templates in `chat_templates`, which are like those of real
models, and with small templates that test one feature each. `tokenizers.json` has small tokenizers of each kind, as the
files of a checkpoint folder, with texts and their ids, and with ids and their texts.

Why: `cargo test -p mlx-tokenizer` requires the same texts and ids from this project's tokenizer.

How to run, from the repository root:

    python xtask/python/make_chat_fixtures.py
"""

import datetime
import itertools
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from jinja2.exceptions import TemplateError
from mlx_lm import tokenizer_utils, utils
from parity_cases import argument_parser, finish
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import chat_template_utils

FOLDER = "crates/mlx-tokenizer/tests/fixtures"
MADE_BY = "xtask/python/make_chat_fixtures.py"
TEMPLATES = Path(__file__).resolve().parent / "chat_templates"
FAMILIES = Path(__file__).resolve().parent / "family_templates"
NOW = datetime.datetime(2026, 3, 4, 5, 6, 7)
SPECIAL = {"bos_token": "<bos>", "eos_token": "<|endoftext|>", "pad_token": "<pad>", "image_token": "<image>"}

UNICODE = (
    'naïve 🦊, 日本語, עברית, e\u0301, \u200b\u2028 and "quotes" \\ back\tslash <|im_end|> {{ no }} {% tag %}'
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The weather in a "city", e.g. <São Paulo> & others',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "A name\nof a place"},
                    "items": {"type": "array", "items": {"type": "object", "properties": {"keys": {"enum": [1, 2.5]}}}},
                    "unit": {"type": "string", "enum": ["°C", "°F"], "default": None},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "parameters": {}, "limits": [1e-7, 1e16, -0.0, 3.0, 1e22, 123456.789]},
    },
]
ARGUMENTS = {"city": 'Köln "K"', "n": [1, 2.0, None, True]}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
OTHER = {"type": "function", "function": {"name": "now", "arguments": {}}}


def turn(role: str, content: object = None, **fields: object) -> dict:
    return {"role": role, "content": content} | fields


CONVERSATIONS = {
    "hello": [turn("user", "Hello!")],
    "system": [turn("system", "Be short."), turn("user", "  Hello!\n")],
    "several": [turn("user", "One"), turn("assistant", " Two \n"), turn("user", "Three"), turn("assistant", "Four")],
    "unicode": [
        turn("system", UNICODE),
        turn("user", UNICODE),
        turn("assistant", UNICODE),
        turn("user", "\u3000x\u3000"),
    ],
    "empty": [turn("system", ""), turn("user", ""), turn("assistant", ""), turn("user", "")],
    "two_users": [turn("user", "One"), turn("user", "Two")],
    "starts_with_answer": [turn("assistant", "One"), turn("user", "Two")],
    "parts": [turn("user", [{"type": "text", "text": " a "}, {"type": "image"}, {"type": "text", "text": "b"}])],
    "null_content": [turn("user", "x"), turn("assistant", None, tool_calls=[CALL]), turn("tool", "9 °C")],
    "calls": [
        turn("system", "Use functions."),
        turn("user", "Weather and time?"),
        turn("assistant", "", tool_calls=[CALL, OTHER]),
        turn("tool", '{"degrees": 9}', name="get_weather"),
        turn("tool", "12:00"),
        turn("assistant", "9 degrees, 12 o'clock."),
        turn("user", "Thanks"),
    ],
    "one_call": [turn("user", "x"), turn("assistant", "", tool_calls=[CALL]), turn("tool", {"degrees": [9, 9.5]})],
    "string_arguments": [
        turn("user", "x"),
        turn("assistant", "y", tool_calls=[{"name": "f", "arguments": '{"a":  1}'}]),
    ],
    "thinking": [
        turn("user", "1 + 1?"),
        turn("assistant", "<think>\nIt is 2.\n</think>\n\n2"),
        turn("user", "2 + 2?"),
        turn("assistant", "4", reasoning_content="\nTwice that.\n"),
    ],
    "thinking_alias": [turn("user", "1 + 1?"), turn("assistant", "2", thinking="Easy."), turn("user", "And?")],
    "functions": [
        turn("system", "Be short.", functions='[{"name": "f"}]', tools="[t]"),
        turn("user", "x"),
        turn("assistant", None, function_calls="f()"),
        turn("environment", "1"),
    ],
}

# The other arguments of `apply_chat_template`.
SETTINGS = {
    "plain": {},
    "closed": {"add_generation_prompt": False},
    "tools": {"tools": TOOLS},
    "no_tools": {"tools": []},
    "no_thinking": {"enable_thinking": False, "tools_in_user_message": False, "tools": TOOLS[:1]},
    "variables": {"date_string": "1 Apr 2024", "bos_token": "[B]", "custom_tools": [{"b": 1, "a": {"z": [], "y": {}}}]},
    "continue": {"continue_final_message": True},
}

VALUE = {"b": [1, 2.5, True, None, "é\"\\\n\u007f\u0001🦊"], "a": {"z": {}, "y": []}, "1": -1}
MESSAGES = [turn("user", "  Hi there \n"), turn("assistant", "Hello"), turn("user", "bye")]

# Small templates, each for one feature, on one line each.
SNIPPETS = [
    "{{ v | tojson }}",
    "{{ v | tojson(indent=2) }}|{{ v | tojson(indent=0) }}|{{ [] | tojson(indent=2) }}",
    "{{ v | tojson(ensure_ascii=True) }}|{{ v | tojson(true) }}",
    "{{ v | tojson(separators=(',', ':'), sort_keys=true) }}",
    "{{ v | tojson(indent='\t', separators=[';', '=']) }}",
    "{{ 'a<b>&\\'c' | tojson }}|{{ 1.0 | tojson }}|{{ 10 | tojson }}|{{ none | tojson }}",
    "{{ (1, 2) | tojson }}|{{ messages | map(attribute='role') | list | tojson }}",
    "{{ messages[0] | tojson }}|{{ messages[0].content | tojson }}",
    "{{ nothing | tojson }}",
    "{{ v }}|{{ v.b }}|{{ [true, none, 1.0, 'x'] }}",
    "{{ true }}|{{ none }}|{{ 1.0 }}|{{ 1 / 2 }}|{{ 7 // 2 }}|{{ 7 % 3 }}|{{ 2 ** 3 }}|{{ -7 // 2 }}|{{ nothing }}|",
    "{{ 'a' ~ 1 ~ true ~ none ~ 1.0 ~ v }}",
    "{{ nothing.field }}",
    "{{ nothing + 'x' }}",
    "{{ nothing is defined }}|{{ nothing is none }}|{{ tools is none }}|{{ documents is none }}|{{ tools is defined }}",
    "{{ messages[0].missing is defined }}|{{ messages[0]['missing'] }}|{{ messages[0].missing or 'x' }}",
    "{{ messages[-1].role }}|{{ messages[1:] | length }}|{{ messages[::-1][0].content }}|{{ messages[:-1] | length }}",
    "{{ 'abcdef'[1:3] }}|{{ 'abcdef'[-1] }}|{{ 'abcdef'[::-1] }}",
    "{{ messages[9].role }}",
    "{{ messages[0].content.strip() }}|{{ messages[0].content | trim }}|{{ 'xxaxx'.strip('x') }}|{{ 'ab'.lstrip('a').rstrip() }}",
    "{{ 'a</t>b</t>c'.split('</t>')[-1] }}|{{ ' a  b '.split() | length }}|{{ 'a,b,c'.split(',', 1) | tojson }}",
    "{{ 'abc'.startswith('ab') }}|{{ 'abc'.endswith('bc') }}|{{ 'abc'.upper() }}|{{ 'a b'.title() }}|{{ 'abc'.replace('b', 'x') }}",
    "{{ 'abc'.startswith(('x', 'a')) }}|{{ 'abc'.find('c') }}|{{ 'a-b'.join(['x', 'y']) }}|{{ 'aXb'.lower().count('x') }}",
    "{{ '{} and {}'.format(1, 'b') }}|{{ '%s' | format('x') }}",
    "{{ v.get('b') | length }}|{{ v.get('missing') }}|{{ v.get('missing', 'd') }}|{{ v.keys() | list | tojson }}|{{ v.values() | list | length }}",
    "{% for key, value in v.items() %}{{ key }}={{ value }};{% endfor %}",
    "{% for key, value in v | items %}{{ key }};{% endfor %}{% for key, value in v | dictsort %}{{ key }};{% endfor %}",
    "{% for key in v %}{{ loop.index }}/{{ loop.length }}{{ key }}{{ ', ' if not loop.last }}{% endfor %}",
    "{% set d = {'items': {'keys': 1, 'get': 2}} %}{{ d['items'] | tojson }}|{% for k, v in d.items() %}{{ k }}{% endfor %}|{% for k in d['items'].keys() %}{{ k }};{% endfor %}|{{ d['items'].get('get') }}",
    "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m.role }}{% if loop.index == 3 %}{% break %}{% endif %};{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content | trim }}{% else %}none{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else 'start' }}>{{ loop.nextitem.role if loop.nextitem is defined else 'end' }};{% endfor %}",
    "{% for x in [1, 2, 3] %}{{ loop.cycle('a', 'b') }}{{ loop.revindex }}{{ loop.changed(x) }}{% endfor %}",
    "{% set ns = namespace(n=0, found=false) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if m.role == 'assistant' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.found }}",
    "{% set x = 1 %}{% for m in messages %}{% set x = x + 1 %}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}",
    "{% macro show(m, mark='*', end) %}{{ mark }}{{ m.role }}{{ end }}{{ caller is defined }}{% endmacro %}{{ show(messages[0], end='!') }}{{ show(messages[1], '-') }}",
    "{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}|{{ f(2) | upper | length }}",
    "{% macro outer() %}{{ bos_token }}{{ messages | length }}{% endmacro %}{{ outer() }}",
    "{% call(x) wrap() %}in{{ x }}{% endcall %}{% macro wrap() %}<{{ caller(1) }}>{% endmacro %}",
    "{% macro wrap() %}<{{ caller(1) }}>{% endmacro %}{% call(x) wrap() %}in{{ x }}{% endcall %}",
    "{% set text %}a{{ 1 }}b{% endset %}{{ text }}|{{ text | length }}{% set a, b = 1, 2 %}{{ a + b }}",
    "{% filter upper %}abc{{ 'd' }}{% endfilter %}{% with y = 2 %}{{ y }}{% endwith %}{{ y }}",
    "{%- generation %}in{% set g = 1 %}{% endgeneration -%}  out{{ g }}",
    "a\n  {% generation %}\n  in\n  {% endgeneration %}\nb\n",
    "a\n  {% if true %}\n    b\n  {% endif %}\n  {# c #}\nd {%- if true %} e {% endif -%} \n f\n\n",
    "a {%+ if true %} b {% endif +%}\n c {{- ' d ' -}} \n e",
    "{% raw %}{{ x }}{% generation %}{% endraw %}{# {{ y }} #}\n",
    "{{ '\\n\\t\\u00e9\\x41' }}{{ \"it's\" }}{{ 'a' 'b' }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages | rejectattr('role', '==', 'user') | map(attribute='content') | join('-') }}",
    "{{ messages | selectattr('tool_calls') | list | length }}|{{ messages | selectattr('tool_calls', 'defined') | list | length }}|{{ messages | map(attribute='content') | map('trim') | join(',') }}",
    "{{ [3, 1, 2] | sort | join }}|{{ [1, 1] | unique | list | length }}|{{ [1, 2] | sum }}|{{ [1, 2] | first }}|{{ [1, 2] | last }}|{{ [3, 4] | max }}|{{ 'abc' | reverse }}|{{ [1, 2] | reverse | list }}",
    "{{ 'a b' | replace(' ', '_') }}|{{ 'ab' | capitalize }}|{{ '' | default('d', true) }}|{{ nothing | default('d') }}|{{ '5' | int + 1 }}|{{ 2.7 | int }}|{{ 1 | string + 'x' }}",
    "{{ 'x' is string }}|{{ v is mapping }}|{{ [] is sequence }}|{{ v.b is iterable }}|{{ 'x' is iterable }}|{{ 1 is number }}|{{ true is boolean }}|{{ 1 is integer }}|{{ 1.0 is float }}|{{ 3 is odd }}|{{ 1 is not none }}|{{ 'a' is in 'abc' }}|{{ true is true }}|{{ v is sequence }}",
    "{{ 'a' in 'abc' }}|{{ 'role' in messages[0] }}|{{ 1 not in [2] }}|{{ 'x' if false }}|{{ not(true) }}|{{ 1 == 1.0 }}|{{ '1' == 1 }}|{{ true == 1 }}|{{ 1 < 2 < 3 }}",
    "{{ [1] + [2] }}|{{ 'ab' * 3 }}|{{ 'a' + 'b' }}|{{ range(3) | list }}|{{ dict(a=1).a }}|{{ {'a': 1} | length }}",
    "{{ 'a' + 1 }}",
    "{{ 'ab' | indent(2, true) }}|{{ 'a\n\nb' | indent(4) }}|{{ '<a>' | e }}|{{ '<a>' | safe }}|{{ [['a', 1]] | map('last') | list }}|{{ 'abcdef' | batch(2) | list | length }}",
    "{{ raise_exception('no: ' ~ messages[0].role) }}",
    "a\nb\n{% if true %}\n  {{ raise_exception('line four') }}{% endif %}",
    "{% macro m() %}{{ raise_exception('inside') }}{% endmacro %}{% if true %}{{ m() }}{% endif %}",
    "{{ strftime_now('%Y-%m-%d %H:%M:%S %d %b %Y %B %A %a %j %-d %e %I %p %y %%') }}",
    "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ image_token }}",
    "{% if messages[0]['content'] is string and not 'x' in messages[0]['content'] or false %}y{% endif %}{{ 'z' if a is defined else 'n' }}",
    "{% if unclosed",
    "{{ messages | nofilter }}",
    "{{ 'x'.nomethod() }}",
    "{% for %}{% endfor %}",
    "{% include 'x' %}",
    "{% set messages = messages[1:] %}{{ messages | length }}{% for m in messages %}{{ m.role }}{% endfor %}",
    "{{ messages[0]['content'][2:4] }}|{{ messages[0].content | length }}|{{ messages | length > 2 }}",
    "{{- '' }}\n{{ add_generation_prompt }}{% if add_generation_prompt is defined and add_generation_prompt %}A{% endif %}\r\nx\r\n",
    "{{ v['b'][0] }}{{ v['b'].0 }}{{ v.a.z }}{{ v[\"1\"] }}",
    "{% set l = [] %}{% set l = l + [{'a': 1}] %}{{ l | tojson }}{% do l %}",
    "{%- for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor -%}{%- set x = [1, 2] | map('string') | join('+') -%}{{ x }}",
    "{{ namespace(a=1).a }}{% set n = namespace(b=[]) %}{% set n.b = n.b + [1] %}{% set n.c = 2 %}{{ n.b }}{{ n.c }}",
    "{{ 'x' is sequence }}|{{ 1 is sequence }}|{{ none is iterable }}|{{ nothing is iterable }}|{{ 1 is iterable }}|{{ 'x' is iterable }}|{{ v is iterable }}|{{ [] is mapping }}|{{ v is string }}",
    "{{ '  x' | trim | title }}{{ 'a-b-c'.partition('-')[2] }}{{ 'a-b-c'.rpartition('-') | tojson }}{{ 'ab'.partition('-') | tojson }}{{ 'ab'.rpartition('-') | tojson }}{{ 'a-x'.removeprefix('a-').removesuffix('x') }}",
    "{{ 'x' | upper ~ 'y' }}{{ 1 if true else 2 }}{{ (1, 2)[0] }}{{ 'a\\\\b' }}",
]


# For templates of families of models: short conversations, since the text of each case is in the fixture.
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def weather_call(arguments: object) -> dict:
    return {"id": "a1b2c3d4e", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def calls_weather(content: str | None, arguments: object) -> list[dict]:
    return [
        turn("user", "Rain?"),
        turn("assistant", content, tool_calls=[weather_call(arguments)]),
        turn("tool", "9 °C", name="weather", tool_call_id="a1b2c3d4e"),
        turn("assistant", "No."),
        turn("user", "Thanks"),
    ]


FAMILY_CONVERSATIONS = {
    "one": [turn("user", " Hi!\n")],
    "system": [turn("system", "Be short."), turn("user", "Hi!"), turn("assistant", "Yes? "), turn("user", "Go on")],
    "two_users": [turn("user", "One"), turn("user", "Two")],
    "thoughts": [turn("user", "1 + 1?"), turn("assistant", "<think>\nSum\n</think>\n\n2"), turn("user", "And?")],
    "switched": [turn("system", "Be short. /no_think"), turn("user", "Hi!"), turn("assistant", "\nYes?")],
    "parts": [turn("user", [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}])],
    "called": calls_weather("", {"city": "Köln"}),
    "called_as_text": calls_weather(None, '{"city": "Köln"}'),
    "result": calls_weather(None, {"city": "Köln"})[:3],
}
FAMILY_SETTINGS = {
    "plain": {},
    "closed": {"add_generation_prompt": False},
    "tools": {"tools": [WEATHER]},
    "tools_in_system": {"tools": [WEATHER], "tools_in_user_message": False, "date_string": "1 Apr 2026"},
    "no_thinking": {"enable_thinking": False},
    "built_in": {"builtin_tools": ["weather", "code_interpreter"], "thinking": True},
    "documents": {"documents": [{"doc_id": 1, "text": "Rain."}, {"doc_id": 2, "text": "Sun."}], "controls": {"citations": True}},
}
FAMILY_CASES = [(messages, "plain") for messages in FAMILY_CONVERSATIONS] + [
    ("system", "closed"),
    ("one", "tools"),
    ("called", "tools"),
    ("result", "tools"),
    ("system", "tools_in_system"),
    ("one", "no_thinking"),
    ("thoughts", "no_thinking"),
    ("one", "documents"),
    ("one", "built_in"),
    ("called", "built_in"),
]


LLAMA_3 = {"<|end_of_text|>": 128001, "<|eom_id|>": 128008, "<|eot_id|>": 128009}
QWEN_2_5 = {"<|endoftext|>": 151643, "<|im_end|>": 151645}
GEMMA_2 = {"<eos>": 1, "<end_of_turn>": 107}
SPIECE = {"</s>": 2}
# The tokens that end a text or a turn of released models: the family of the template, the model_type, the ids of these
# tokens, `eos_token`, and `eos_token_id` of `config.json` and of `generation_config.json`. A missing one has no such file
# or key. The last three are checkpoints as converters leave them.
STOPS = {
    "Llama-2-7b-chat": ("llama2", "llama", SPIECE, "</s>", 2, 2),
    "Meta-Llama-3-8B-Instruct": ("llama3", "llama", LLAMA_3, "<|eot_id|>", 128009, [128001, 128009]),
    "Llama-3.1-8B-Instruct": (
        *("llama3_1", "llama", LLAMA_3, "<|eot_id|>"),
        *([128001, 128008, 128009], [128001, 128008, 128009]),
    ),
    "Llama-3.2-1B": (None, "llama", LLAMA_3, "<|end_of_text|>", 128001, 128001),
    "DeepSeek-R1-Distill-Llama-8B": (
        *("r1_distill", "llama", {"<｜end▁of▁sentence｜>": 128001}, "<｜end▁of▁sentence｜>", 128001, 128001),
    ),
    "TinyLlama-1.1B-Chat-v1.0": ("tinyllama", "llama", SPIECE, "</s>", 2, 2),
    "SmolLM2-1.7B-Instruct": ("smollm2", "llama", {"<|endoftext|>": 0, "<|im_end|>": 2}, "<|im_end|>", 2, 2),
    "Mistral-7B-Instruct-v0.3": ("mistral_v3", "mistral", SPIECE, "</s>", 2, 2),
    "Mistral-Nemo-Instruct-2407": ("mistral_nemo", "mistral", SPIECE, "</s>", 2, 2),
    "SmolLM3-3B": ("smollm3", "llama", {"<|end_of_text|>": 128001, "<|im_end|>": 128012}, "<|im_end|>", 128012, 128012),
    "Qwen2.5-7B-Instruct": ("qwen2_5", "qwen2", QWEN_2_5, "<|im_end|>", 151645, [151645, 151643]),
    "Qwen2.5-7B": ("qwen2_5", "qwen2", QWEN_2_5, "<|endoftext|>", 151643, 151643),
    "DeepSeek-R1-Distill-Qwen-7B": (
        *("r1_distill", "qwen2", {"<｜end▁of▁sentence｜>": 151643}, "<｜end▁of▁sentence｜>", 151643, 151643),
    ),
    "gemma-2-2b-it": ("gemma2", "gemma2", GEMMA_2, "<eos>", [1, 107], [1, 107]),
    "OLMo-2-1124-7B-Instruct": ("olmo2", "olmo2", {"<|endoftext|>": 100257}, "<|endoftext|>", 100257, 100257),
    "granite-3.3-2b-instruct": ("granite3", "granite", {"<|end_of_text|>": 0}, "<|end_of_text|>", 0, 0),
    "Llama 3 without its lists": ("llama3", "llama", LLAMA_3, "<|end_of_text|>", 128001, None),
    "Gemma 2 without its lists": ("gemma2", "gemma2", GEMMA_2, "<eos>", 1, None),
    "Qwen 2.5 without its list": ("qwen2_5", "qwen2", QWEN_2_5, "<|im_end|>", 151645, None),
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def write_folder(folder: Path, files: dict[str, object]) -> Path:
    for name, contents in files.items():
        text = contents if isinstance(contents, str) else json.dumps(contents)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def answer(tokenizer, template: str, messages: list, settings: dict) -> dict:
    """Renders messages: the text, the message of `raise_exception`, or that rendering fails."""
    settings = {"add_generation_prompt": "continue_final_message" not in settings} | settings
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **settings)
        return {"text": text}
    except TemplateError as error:
        # `raise_exception` raises this class; its subclasses are mistakes in the template.
        return {"refused": str(error)} if type(error) is TemplateError else {"fails": True}
    except (TypeError, ValueError):
        return {"fails": True}


def chats() -> dict:
    chat_template_utils.datetime = Clock
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "tokenizer.json": byte_level(["ab"]),
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"} | SPECIAL,
        }
        tokenizer = AutoTokenizer.from_pretrained(write_folder(Path(folder), files))
    templates = {file.stem: file.read_text(encoding="utf-8") for file in sorted(TEMPLATES.glob("*.jinja"))}
    cases = [
        {"template": template, "messages": messages, "settings": settings}
        | answer(tokenizer, templates[template], CONVERSATIONS[messages], SETTINGS[settings])
        for template, messages, settings in itertools.product(templates, CONVERSATIONS, SETTINGS)
    ]
    snippets = [
        {"template": template} | answer(tokenizer, template, MESSAGES, {"v": VALUE}) for template in SNIPPETS
    ]
    return {
        "oracle": f"transformers {version('transformers')}, jinja2 {version('jinja2')}",
        "made_by": MADE_BY,
        "now": NOW.isoformat(),
        "special_tokens": SPECIAL,
        "templates": templates,
        "conversations": CONVERSATIONS,
        "settings": SETTINGS,
        "cases": cases,
        "snippet_messages": MESSAGES,
        "snippet_variables": {"v": VALUE},
        "snippets": snippets,
    }


def families(folder: Path) -> dict:
    """The conversations for families of models, rendered with the templates in a folder."""
    chat_template_utils.datetime = Clock
    templates = {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.jinja"))}
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    with tempfile.TemporaryDirectory() as files:
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | special
        files = write_folder(Path(files), {"tokenizer.json": byte_level(["ab"]), "tokenizer_config.json": config})
        tokenizer = AutoTokenizer.from_pretrained(files)
    cases = [
        {"template": template, "messages": messages, "settings": settings}
        | answer(tokenizer, text, FAMILY_CONVERSATIONS[messages], FAMILY_SETTINGS[settings])
        for template, text in templates.items()
        for messages, settings in FAMILY_CASES
    ]
    return {
        "oracle": f"transformers {version('transformers')}, jinja2 {version('jinja2')}",
        "made_by": MADE_BY,
        "now": NOW.isoformat(),
        "special_tokens": special,
        "templates": templates,
        "conversations": FAMILY_CONVERSATIONS,
        "settings": FAMILY_SETTINGS,
        "cases": cases,
    }


def stops() -> list[dict]:
    """The stop tokens that mlx-lm and transformers read from the files of checkpoints."""
    entries = []
    for name, (template, model_type, tokens, eos_token, config_eos, generation_eos) in STOPS.items():
        model = {"type": "WordLevel", "vocab": {"[UNK]": 200000} | tokens, "unk_token": "[UNK]"}
        files = {
            "tokenizer.json": tokenizer_json(model, added_tokens=added(tokens)),
            "tokenizer_config.json": FAST | {"eos_token": eos_token},
            "config.json": {"model_type": model_type, "eos_token_id": config_eos},
        }
        if generation_eos is not None:
            files["generation_config.json"] = {"eos_token_id": generation_eos}
        with tempfile.TemporaryDirectory() as folder:
            folder = write_folder(Path(folder), files)
            eos = utils.load_config(folder).get("eos_token_id")
            mlx_lm = tokenizer_utils.load(folder, eos_token_ids=eos).eos_token_ids
            if generation_eos is not None:
                generation = GenerationConfig.from_pretrained(folder)
            else:
                generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
        ids = generation.eos_token_id
        transformers = [ids] if isinstance(ids, int) else ids
        entry = {"name": name, "template": template, "files": files, "mlx_lm": sorted(mlx_lm)}
        entries.append(entry | {"transformers": sorted(transformers)})
    return entries


def added(ids: dict[str, int], **flags: bool) -> list[dict]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": id, "content": content} | plain | flags for content, id in ids.items()]


def tokenizer_json(model: dict, **parts: object) -> dict:
    nothing = {"truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None}
    return {"version": "1.0"} | nothing | {"post_processor": None, "decoder": None} | parts | {"model": model}


def bpe(symbols: list[str], words: list[str], **rest: object) -> dict:
    """A BPE model with these symbols, and with merges that build each word from left to right."""
    vocab, merges = {symbol: id for id, symbol in enumerate(symbols)}, []
    for word in words:
        for end in range(1, len(word)):
            merge, merged = [word[:end], word[end]], word[: end + 1]
            if merged not in vocab:
                vocab[merged] = len(vocab)
                merges.append(merge)
    nothing = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    nothing |= {"fuse_unk": False, "byte_fallback": False}
    return {"type": "BPE"} | nothing | rest | {"vocab": vocab, "merges": merges}


def specials(model: dict, *contents: str) -> dict[str, int]:
    return {content: len(model["vocab"]) + index for index, content in enumerate(contents)}


def byte_level(words: list[str], **parts: object) -> dict:
    alphabet = sorted(tokenizer_utils._byte_decoder())
    model = bpe(alphabet, words)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokens = specials(model, "<bos>", "<|endoftext|>", "<pad>", "<image>", "<|im_start|>", "<|im_end|>")
    tokens = added(tokens) + added({"<think>": max(tokens.values()) + 1}, special=False)
    return tokenizer_json(model, **({"added_tokens": tokens, "pre_tokenizer": level, "decoder": level} | parts))


def sentence_piece(words: list[str], strip: bool) -> dict:
    """A tokenizer like Gemma's or, with `strip`, like Llama's: `▁` for a space, and a token for each byte."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = list("▁abcdefghijklmnopqrstuvwxyz.,!?'日本é")
    model = bpe(special + bytes_ + letters, words, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoders = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if strip:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, normalizer]}
    tokens = added({content: id for id, content in enumerate(special)})
    tokens += added(specials(model, "<start_of_turn>", "<end_of_turn>"), rstrip=strip)
    decoder = {"type": "Sequence", "decoders": decoders}
    post_processor = begins("<bos>", 2)
    parts = {"normalizer": normalizer, "decoder": decoder, "post_processor": post_processor}
    return tokenizer_json(model, added_tokens=tokens, **parts)


def begins(bos: str, id: int) -> dict:
    """A post-processor that puts this token before a text."""
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    sequence = [{"Sequence": {"id": letter, "type_id": 0}} for letter in "AB"]
    tokens = {bos: {"id": bos, "ids": [id], "tokens": [bos]}}
    single, pair = [special, sequence[0]], [special, *sequence]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def metaspace() -> dict:
    pieces = ["<unk>", "</s>", "▁", "▁the", "▁fox", "es", "a", "b", "c", ".", ",", "!", "▁a", "日"]
    vocab = [[piece, -1.0 - index / 10] for index, piece in enumerate(pieces)]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab}
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tokens = added({"<unk>": 0, "</s>": 1})
    return tokenizer_json(model | {"byte_fallback": False}, added_tokens=tokens, pre_tokenizer=space, decoder=space)


def word_piece() -> dict:
    pieces = ["[UNK]", "[SEP]", "the", "fox", "##es", "##y", ".", ",", "!", "don", "'", "t", "s"]
    pieces += ["n't", "do", "not", "日"]
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 100, "vocab": {piece: id for id, piece in enumerate(pieces)}}
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    tokens = added({"[UNK]": 0, "[SEP]": 1})
    return tokenizer_json(model, added_tokens=tokens, pre_tokenizer={"type": "BertPreTokenizer"}, decoder=decoder)


def word_level() -> dict:
    vocab = {word: id for id, word in enumerate(["[UNK]", "the", "fox", "."])}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    return tokenizer_json(model, added_tokens=added({"[UNK]": 0}), pre_tokenizer={"type": "Whitespace"})


WORDS = ["Ġthe", "Ġfox", "ing", "he", "ĠĠ", "Ã©", "ðŁ"]
PIECES = ["▁the", "▁fox", "ing", "he", "▁▁", "日本"]
NAMES = {"bos_token": "<bos>", "eos_token": "<eos>"}
LEVEL = byte_level(WORDS)
BOS = {token["content"]: token["id"] for token in LEVEL["added_tokens"]}["<bos>"]
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}

TOKENIZERS = {
    "byte_level": {"tokenizer.json": LEVEL, "tokenizer_config.json": FAST | SPECIAL},
    "byte_level_begins": {
        "tokenizer.json": byte_level(WORDS, post_processor=begins("<bos>", BOS)),
        "tokenizer_config.json": FAST | SPECIAL | {"add_bos_token": False},
    },
    "byte_level_add_bos": {
        "tokenizer.json": LEVEL,
        "tokenizer_config.json": FAST | SPECIAL | {"add_bos_token": True, "add_eos_token": True},
    },
    "byte_level_special_map": {
        "tokenizer.json": LEVEL,
        "tokenizer_config.json": FAST | {"bos_token": "<pad>", "eos_token": "<|endoftext|>"},
        "special_tokens_map.json": {"bos_token": {"content": "<bos>", "normalized": False}},
    },
    "byte_level_named": {"tokenizer.json": LEVEL, "tokenizer_config.json": FAST | SPECIAL | {"pad_token": "<think>"}},
    "byte_level_truncates": {
        "tokenizer.json": LEVEL
        | {
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {
                "strategy": {"Fixed": 8},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": BOS,
                "pad_type_id": 0,
                "pad_token": "<bos>",
            },
        },
        "tokenizer_config.json": FAST | SPECIAL,
    },
    "sentence_piece": {"tokenizer.json": sentence_piece(PIECES, False), "tokenizer_config.json": FAST | NAMES},
    "sentence_piece_strip": {"tokenizer.json": sentence_piece(PIECES, True), "tokenizer_config.json": FAST | NAMES},
    "metaspace": {"tokenizer.json": metaspace(), "tokenizer_config.json": FAST | {"eos_token": "</s>"}},
    "word_piece": {"tokenizer.json": word_piece(), "tokenizer_config.json": FAST | {"sep_token": "[SEP]"}},
    "word_level": {"tokenizer.json": word_level(), "tokenizer_config.json": FAST},
}

TEXTS = [
    "",
    " ",
    "the fox",
    " the  foxing, hehe! ",
    "naïve 🦊🦊 日本語 é e\u0301\n\ttext.",
    "<bos>the fox",
    "<bos> the <|endoftext|>fox<|im_end|> <think>hm</think> <eos>",
    " <bos>the",
    "<start_of_turn>user\nthe fox<end_of_turn>\n the fox",
    "don't, do not. foxes!",
]


def sequences(tokenizer) -> list[list[int]]:
    """Ids to decode: those of texts, incomplete characters, and all ids in several orders."""
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    bytes_ = [id for id in tokenizer.convert_tokens_to_ids(["<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>"]) if id is not None]
    broken = [bytes_, bytes_[:3], [*bytes_, *bytes_[:2], *texts[2]], bytes_[1:] * 2] if len(set(bytes_)) == 4 else []
    fox = tokenizer.encode("🦊", add_special_tokens=False)
    broken += [fox[:end] + texts[2] for end in range(len(fox))] + [fox[1:] * 2, texts[2] + fox[:-1]]
    every = list(range(len(tokenizer)))
    return texts + broken + [every, every[::-1], every[::7]]


def tokenizers() -> dict:
    made = {}
    for name, files in TOKENIZERS.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = write_folder(Path(folder), files)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            streams = tokenizer_utils.load(folder)
        texts = []
        for text in TEXTS:
            # As `stream_generate` of mlx-lm decides it.
            around = tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token)
            texts.append({
                "text": text,
                "ids": tokenizer.encode(text, add_special_tokens=around),
                "without": tokenizer.encode(text, add_special_tokens=False),
                "as_text": tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True),
            })
        decoded = []
        for ids in sequences(tokenizer):
            case = {"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)}
            # Not with `Strip`: if there are two tokens of spaces, mlx-lm removes two spaces at the start.
            if name == "sentence_piece":
                # mlx-lm would stream the text of special tokens too, which this project leaves out.
                special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
                stream = streams.detokenizer
                for id in (id for id in ids if id not in special):
                    stream.add_token(id)
                stream.finalize()
                case["mlx_lm"] = stream.text
            decoded.append(case)
        made[name] = {"files": files, "texts": texts, "decoded": decoded}
    oracle = f"transformers {version('transformers')}, mlx-lm {version('mlx-lm')}"
    return {"oracle": oracle, "made_by": MADE_BY, "tokenizers": made}


def write(path: Path, contents: dict) -> None:
    """Writes JSON, with one line for each entry of the top-level lists and objects."""
    lines = []
    for name, value in contents.items():
        entries = [json.dumps(entry) for entry in value] if isinstance(value, list) else None
        if isinstance(value, dict):
            entries = [f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items()]
        if entries is None:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
            continue
        opening, closing = "[]" if isinstance(value, list) else "{}"
        lines.append(f"{json.dumps(name)}: {opening}\n" + ",\n".join(entries) + f"\n{closing}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--templates", type=Path, nargs=2, metavar=("FOLDER", "FILE"), help="render only the templates in FOLDER, into FILE"
    )
    args = parser.parse_args()
    if args.templates:
        folder, file = args.templates
        write(file, families(folder))
        return 0
    made = {
        f"{FOLDER}/families.json": lambda path: write(path, families(FAMILIES) | {"stops": stops()}),
        f"{FOLDER}/chats.json": lambda path: write(path, chats()),
        f"{FOLDER}/tokenizers.json": lambda path: write(path, tokenizers()),
    }
    return finish(made, args)


if __name__ == "__main__":
    sys.exit(main())
