"""Makes the fixtures of the template engine of `mlx-tokenizer`: templates that Jinja2 renders as in transformers.

What: `templates.json` has templates of one line, each for one feature, and whole chat templates (`jinja_templates`, which
are like those of real models) with conversations. If Jinja2 raises, the fixture has the name of the exception.

Why: `cargo test -p mlx-tokenizer --test templates` requires the same texts, and errors where Jinja2 raises. All
differences are listed in `docs/chat-templates.md` with reasons.

How to run, from the repository root:

    python xtask/python/make_template_fixtures.py
"""

import re
import sys
from importlib.metadata import version
from pathlib import Path

from jinja2.exceptions import TemplateError
from make_chat_fixtures import CONVERSATIONS, NOW, SETTINGS, write
from parity_cases import argument_parser, finish
from template_lines import LINES, VARIABLES
from transformers.utils import chat_template_utils

FILE = "crates/mlx-tokenizer/tests/fixtures/templates.json"
MADE_BY = "xtask/python/make_template_fixtures.py"
TEMPLATES = Path(__file__).resolve().parent / "jinja_templates"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


class Clock:
    """Replaces `datetime` in `strftime_now`, so that the time is always the same."""

    @staticmethod
    def now():
        return NOW


def rendered(template: str, messages: list[dict], tools: list | None = None, **variables: object) -> dict:
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [messages], tools=tools, chat_template=template, add_generation_prompt=True, **variables
        )
        texts[0].encode()
        # Addresses differ in each run.
        return {"text": re.sub(r" at 0x[0-9a-f]+", " at 0x0", texts[0])}
    except TemplateError as e:
        return {"refused": e.message} if type(e) is TemplateError else {"fails": type(e).__name__}
    except Exception as e:  # noqa: BLE001 - a template can make Python raise anything
        return {"fails": type(e).__name__}


def whole() -> list[dict]:
    cases = []
    for file in sorted(TEMPLATES.glob("*.jinja")):
        template = file.read_text(encoding="utf-8")
        for name, messages in CONVERSATIONS.items():
            settings = ["plain", "tools"] if name in ("system", "calls", "one_call", "thinking") else ["plain"]
            for setting in settings:
                variables = SPECIAL | {"enable_thinking": True} | SETTINGS[setting]
                # `apply_chat_template` removes empty values too.
                messages = [{key: value for key, value in m.items() if value is not None} for m in messages]
                case = {"template": file.stem, "messages": name, "settings": setting}
                cases.append(case | rendered(template, messages, **variables))
    return cases


def fixture() -> dict:
    chat_template_utils.datetime = Clock
    variables = SPECIAL | {"enable_thinking": True} | VARIABLES
    lines = [{"template": line} | rendered(line, [{"role": "user", "content": "hi"}], **variables) for line in LINES]
    if len({line["template"] for line in lines}) != len(lines):
        raise ValueError("a line comes twice")
    templates = {file.stem: file.read_text(encoding="utf-8") for file in sorted(TEMPLATES.glob("*.jinja"))}
    return {
        "oracle": f"jinja2 {version('jinja2')}, transformers {version('transformers')}, Python {sys.version_info[0]}.{sys.version_info[1]}",
        "made_by": MADE_BY,
        "now": NOW.isoformat(),
        "special_tokens": SPECIAL,
        "variables": VARIABLES,
        "conversations": CONVERSATIONS,
        "settings": {name: SETTINGS[name] for name in ("plain", "tools")},
        "templates": templates,
        "lines": lines,
        "cases": whole(),
    }


def main() -> int:
    return finish({FILE: lambda path: write(path, fixture())}, argument_parser(__doc__).parse_args())


if __name__ == "__main__":
    sys.exit(main())
