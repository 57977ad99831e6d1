//! Templates that need too much time, memory or stack: the error names the limit.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use mlx_tokenizer::{ChatOptions, ChatTemplate, Message, Tokenizer, TokenizerError};

fn tokenizer() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = serde_json::json!({
        "version": "1.0", "model": { "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" },
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

fn render(template: &str) -> Result<String, String> {
    let template = ChatTemplate::Text(template.to_owned());
    let options = ChatOptions { template, ..ChatOptions::default() };
    match tokenizer().chat_text(&[Message::user("hi")], &options) {
        Ok(text) => Ok(text),
        Err(TokenizerError::ChatTemplate { problem, line: Some(_), .. }) => Err(problem),
        Err(e) => panic!("{e}"),
    }
}

/// `a0,a1,...`, this many bytes long.
fn names(bytes: usize) -> String {
    (0..bytes / 6).map(|i| format!("a{i}")).collect::<Vec<_>>().join(",")
}

const STEPS: &str = "steps";
const BYTES: &str = "MiB of text and values";
const DEEP: &str = "levels deep";
const NESTED: &str = "nests more than";

#[test]
#[allow(clippy::too_many_lines, reason = "a table of cases")]
fn each_limit_is_an_error_that_names_it() {
    let repeated = |part: &str, times: usize| part.repeat(times);
    let loops = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}";
    let ends = "{% endfor %}{% endfor %}{% endfor %}";
    let deep_ifs = format!("{}x{}", repeated("{% if true %}", 20_000), repeated("{% endif %}", 20_000));
    let deep_list = format!("{{{{ {}1{} }}}}", "[".repeat(20_000), "]".repeat(20_000));
    let deep_parentheses = format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000));
    let deep_dict = format!("{{{{ {}1{} }}}}", "{'a':".repeat(20_000), "}".repeat(20_000));
    let million = "{% set m = 'x' * 1000000 %}";
    let mut wrong = Vec::new();
    for (template, limit) in [
        (format!("{loops}{ends}"), "more than"),
        (format!("{loops}x{ends}"), "more than"),
        ("{% set l = range(1000) | list %}{% for a in l %}{% for b in l %}{% for c in l %}{% endfor %}{% endfor %}{% endfor %}".to_owned(), STEPS),
        (format!("{{{{ 1{} }}}}", "+1".repeat(20_000)), NESTED),
        (format!("{{{{ 1{} }}}}", " and 1".repeat(20_000)), NESTED),
        (format!("{{{{ x{} }}}}", ".a".repeat(20_000)), NESTED),
        (format!("{{{{ x{} }}}}", "[0]".repeat(20_000)), NESTED),
        (format!("{{{{ x{} }}}}", "()".repeat(20_000)), NESTED),
        (format!("{{{{ 1{} }}}}", "|abs".repeat(20_000)), NESTED),
        (format!("{{{{ {}1 }}}}", "-".repeat(20_000)), NESTED),
        (format!("{{{{ {}1 }}}}", "not ".repeat(20_000)), NESTED),
        (format!("{{{{ {}2 }}}}", "1 if 0 else ".repeat(20_000)), NESTED),
        (format!("{{% set {}a{} = 1 %}}", "(".repeat(20_000), ")".repeat(20_000)), NESTED),
        (deep_ifs, NESTED),
        (deep_list, NESTED),
        (deep_parentheses, NESTED),
        (deep_dict, NESTED),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(), DEEP),
        ("{% macro m(a) %}{% for x in a %}{{ m([[[a]]]) }}{% endfor %}{% endmacro %}{{ m([1]) }}".to_owned(), "more than"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(), DEEP),
        ("{% block a %}{{ self.a() }}{% endblock %}".to_owned(), DEEP),
        ("{% macro m() %}{% call m() %}{{ m() }}{% endcall %}{{ caller() }}{% endmacro %}{{ m() }}".to_owned(), DEEP),
        ("{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}".to_owned(), BYTES),
        ("{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}".to_owned(), BYTES),
        ("{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = ns.s | replace('a', 'aaaa') %}{% endfor %}".to_owned(), BYTES),
        ("{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}".to_owned(), BYTES),
        ("{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}".to_owned(), BYTES),
        ("{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}".to_owned(), BYTES),
        ("{% set ns = namespace(s='&') %}{% for i in range(100) %}{% set ns.s = ns.s | forceescape %}{% endfor %}{{ ns.s | forceescape }}{% set ns.s = '&' %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s | e %}{% endfor %}".to_owned(), BYTES),
        ("{% set ns = namespace(s=[1]) %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}".to_owned(), BYTES),
        ("{% set ns = namespace(s=[1]) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}".to_owned(), "more than"),
        ("{% set ns = namespace(s=[1]) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}".to_owned(), "more than"),
        ("{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}".to_owned(), STEPS),
        ("{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s < ns.t }}".to_owned(), STEPS),
        ("{% set ns = namespace(s=(1,)) %}{% for i in range(40) %}{% set ns.s = (ns.s, ns.s) %}{% endfor %}{{ {ns.s: 1} }}".to_owned(), "more than"),
        ("{% set ns = namespace(s=[]) %}{% for i in range(100000) %}{% set ns.s = [ns.s] %}{% endfor %}".to_owned(), NESTED),
        ("{% set ns = namespace(s={}) %}{% for i in range(100000) %}{% set ns.s = {'a': ns.s} %}{% endfor %}".to_owned(), NESTED),
        ("{% set ns = namespace(s='') %}{% for i in range(100000) %}{% set ns.s = ns.s.join if i == 0 else [ns.s] %}{% endfor %}".to_owned(), NESTED),
        ("{% set ns = namespace(s=none) %}{% for i in range(9000) %}{% set ns.s = namespace(s=ns.s) %}{% endfor %}{{ ns }}".to_owned(), DEEP),
        ("{{ 'a' * 9223372036854775807 }}".to_owned(), BYTES),
        ("{{ [1] * 9223372036854775807 }}".to_owned(), BYTES),
        ("{{ (1,) * 9223372036854775807 }}".to_owned(), BYTES),
        ("{{ 'a'.center(9223372036854775807) }}".to_owned(), BYTES),
        ("{{ 'a' | center(9223372036854775807) }}".to_owned(), BYTES),
        ("{{ 'a'.ljust(9223372036854775807) }}".to_owned(), BYTES),
        ("{{ 'a'.zfill(9223372036854775807) }}".to_owned(), BYTES),
        ("{{ 'a\tb'.expandtabs(9223372036854775807) }}".to_owned(), BYTES),
        ("{{ messages | tojson(indent=9223372036854775807) }}".to_owned(), BYTES),
        ("{{ 'a\nb' | indent(9223372036854775807) }}".to_owned(), BYTES),
        ("{{ '%9223372036854775807d' % 1 }}".to_owned(), "width or precision"),
        ("{{ '%99999999999999999999999999999999999999999999d' % 1 }}".to_owned(), "width or precision"),
        ("{{ '%*d' % (9223372036854775807, 1) }}".to_owned(), "width or precision"),
        ("{{ '%.9223372036854775807f' % 1 }}".to_owned(), "width or precision"),
        ("{{ '{:9223372036854775807}'.format(1) }}".to_owned(), "width or precision"),
        ("{{ '{:.9223372036854775807f}'.format(1.5) }}".to_owned(), "width or precision"),
        ("{{ '%9999999d' | format(1) }}".to_owned(), "width or precision"),
        ("{{ range(10 ** 9) | list }}".to_owned(), "100000 elements"),
        ("{{ range(10 ** 30) }}".to_owned(), "100000 elements"),
        ("{% for i in range(1000) %}{{ range(100000) | join(',') }}{% endfor %}".to_owned(), "more than"),
        ("{% set l = range(100000) | list %}{% for i in l %}{{ l | sum }}{% endfor %}".to_owned(), STEPS),
        ("{% set l = range(100000) | list %}{% for i in l %}{{ -1 in l }}{% endfor %}".to_owned(), STEPS),
        ("{% set l = range(100000) | list %}{% for i in l %}{{ l.index(99999) }}{% endfor %}".to_owned(), STEPS),
        ("{% set l = range(100000) | list %}{% for i in l %}{{ l == l[:] }}{% endfor %}".to_owned(), "more than"),
        ("{% set l = range(100000) | list %}{% for i in l %}{% set x = l | sort %}{% endfor %}".to_owned(), "more than"),
        ("{{ [1] | slice(9223372036854775807) | list }}".to_owned(), BYTES),
        ("{{ [1] | batch(9223372036854775807, 'x') | list }}".to_owned(), BYTES),
        ("{{ range(99999) | batch(1) | list | length }}{% for i in range(999) %}{{ range(99999) | batch(1) | list | length }}{% endfor %}".to_owned(), "more than"),
        (format!("{million}{{% for i in range(100000) %}}{{{{ m | length }}}}{{% endfor %}}"), STEPS),
        (format!("{million}{{% for i in range(100000) %}}{{{{ 'y' in m }}}}{{% endfor %}}"), STEPS),
        (format!("{million}{{% for i in range(100000) %}}{{{{ m.find('y') }}}}{{% endfor %}}"), STEPS),
        (format!("{million}{{% for i in range(100000) %}}{{{{ m.count('xx') }}}}{{% endfor %}}"), STEPS),
        (format!("{million}{{% for i in range(100000) %}}{{{{ m[-1] }}}}{{% endfor %}}"), STEPS),
        (format!("{million}{{% for i in range(100000) %}}{{% set y = m[1:] %}}{{% endfor %}}"), BYTES),
        (format!("{million}{{% for i in range(100000) %}}{{% set y = m.upper() %}}{{% endfor %}}"), BYTES),
        (format!("{million}{{% for i in range(100000) %}}{{% set y = m | list %}}{{% endfor %}}"), BYTES),
        (format!("{million}{{% for i in range(100000) %}}{{{{ m | wordcount }}}}{{% endfor %}}"), STEPS),
        (format!("{million}{{% for i in range(100000) %}}{{{{ m }}}}{{% endfor %}}"), BYTES),
        (format!("{million}{{{{ (m | wordwrap(1)) | length }}}}{{{{ (m | wordwrap(1, wrapstring=m)) | length }}}}"), BYTES),
        (format!("{million}{{{{ m | replace('', m) }}}}"), BYTES),
        (format!("{million}{{{{ m.join(m) }}}}"), BYTES),
        (format!("{million}{{{{ m | join(m) }}}}"), BYTES),
        (format!("{million}{{{{ messages | tojson(indent=m) | length }}}}{{{{ range(9999) | list | tojson(separators=(m, m)) }}}}"), BYTES),
        (format!("{million}{{{{ m.strip(m) }}}}"), "more than"),
        // A temporary value counts before it is made.
        (format!("{million}{{{{ ('{{0}}' * 1000000).format(m) | length }}}}"), BYTES),
        ("{{ range(100000) | map(attribute='x' * 1000000) | list | length }}{{ [1] | map(attribute='a.' * 50000000) | list | length }}".to_owned(), BYTES),
        ("{{ [1] | sort(attribute=',' * 100000000) }}".to_owned(), BYTES),
        ("{{ ('a ' * 15000000) | wordwrap | length }}".to_owned(), BYTES),
        ("{{ ['\\x01' * 100000000] | string | length }}".to_owned(), BYTES),
        ("{{ ('\\x01' * 100000000) | tojson | length }}".to_owned(), BYTES),
        ("{{ ('a ' * 15000000) | striptags | length }}{{ ('a ' * 15000000).split() | length }}".to_owned(), BYTES),
        ("{{ (',' * 100000000).split(',') | length }}".to_owned(), BYTES),
        ("{{ ('\n' * 100000000).splitlines() | length }}".to_owned(), BYTES),
        ("{% for i in range(100000) %}{% for j in range(1000) %}{% macro m() %}{% endmacro %}{% endfor %}{% endfor %}".to_owned(), BYTES),
        ("{% for i in range(100000) %}{% for j in range(1000) %}{% for k in [1] recursive %}{% endfor %}{% endfor %}{% endfor %}".to_owned(), BYTES),
        (format!("{{% macro m() %}}{{{{ [{}m()] }}}}{{% endmacro %}}{{{{ m() }}}}", "1,".repeat(20_000)), BYTES),
        (format!("{{# {} #}}{{% set s = 'x' * 400000000 %}}", "x".repeat(1 << 19)), BYTES),
        (format!("{{# {} #}}", "x".repeat(1 << 20)), "1048576"),
        ("{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = ns.l + [[1] | map('x' * 1000000)] %}{% endfor %}".to_owned(), BYTES),
        // A recursive value is one level deeper.
        ("{{ ['aa'] | map(*(['map'] * 20000)) | list }}".to_owned(), "more than"),
        ("{{ ['aa'] | map(*(['map'] * 1000)) | list }}".to_owned(), "more than"),
        (format!("{{% set j = joiner() %}}{}", "{%set j=joiner(j)%}".repeat(50_000)), NESTED),
        // Work is counted as steps.
        (format!("{million}{{% for i in range(100000) %}}{{% if m in {{}} %}}{{% endif %}}{{% endfor %}}"), STEPS),
        (format!("{million}{{% for i in range(100000) %}}{{% if m[0] %}}{{% endif %}}{{% endfor %}}"), STEPS),
        (format!("{million}{{% set n = 'x' * 1000000 %}}{{% for i in range(100000) %}}{{% if m is sameas n %}}{{% endif %}}{{% endfor %}}"), STEPS),
        (format!("{million}{{% for i in range(100000) %}}{{% if namespace(**{{m: 1}}) %}}{{% endif %}}{{% endfor %}}"), "more than"),
        ("{% set s = 'x' * 10000000 %}{% set t = ('x' * 9999999 + 'y',) * 500000 %}{{ s.startswith(t) }}".to_owned(), STEPS),
        (format!("{{% for i in range(100000) %}}{{{{ (0 and [{}])[1:2] }}}}{{% endfor %}}", "1,".repeat(500_000)), "more than"),
        ((0..60_000).map(|i| format!("{{%set a{i}=1%}}")).collect(), STEPS),
        (format!("{{% macro m({}) %}}{{% endmacro %}}", names(100_000)), "1000 parameters"),
        (format!("{{{{ x|a{} }}}}", ".a".repeat(500_000)), "no filter named"),
        (format!("{{{{ dict({}=1) }}}}", names(100_000).replace(',', "=1,")), "1000 arguments"),
        (format!("{{{{ dict({}) }}}}", names(100_000)), "1000 arguments"),
        ((0..30_000).map(|i| format!("{{%block a{i}%}}{{%endblock%}}")).collect(), "1000 blocks"),
        // Intermediate numbers that are too large.
        ("{{ range(0, 2 ** 126 + (2 ** 126 - 1), 2 ** 126)[:] }}".to_owned(), "127 bits"),
        ("{{ 170000000000000000000000000000000000000 | round(-38) }}".to_owned(), "127 bits"),
        ("{{ (1e-40).as_integer_ratio() }}".to_owned(), "127 bits"),
        ("{{ 2 ** 1000000000 }}".to_owned(), "127 bits"),
        ("{{ 10 ** 30 * 10 ** 30 }}".to_owned(), "127 bits"),
        ("{{ 99999999999999999999999999999999999999999999 }}".to_owned(), "127 bits"),
    ] {
        let name = &template[..template.len().min(160)];
        match render(&template) {
            Err(problem) if problem.contains(limit) => {}
            Err(problem) => wrong.push(format!("{name}: {problem}")),
            Ok(text) => wrong.push(format!("{name}: {} bytes", text.len())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn values_that_contain_themselves_are_printed_as_in_python() {
    for (template, expected) in [
        ("{% set n = namespace() %}{% set n.a = n %}{{ n.a }}", "<Namespace {'a': <Namespace {...}>}>"),
        ("{% set n = namespace() %}{% set n.a = [n] %}{{ n.a }}", "[<Namespace {'a': [<Namespace {...}>]}>]"),
        ("{% set n = namespace() %}{% set n.a = n %}{{ n == n.a }}{{ n in [n.a] }}", "TrueTrue"),
    ] {
        assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
    }
}

/// Templates that only look expensive, and numbers at the limits.
#[test]
fn large_but_valid_templates_are_rendered() {
    for (template, expected) in [
        ("{{ ('-' * 1000000) | wordwrap | length }}", "1012658"),
        ("{{ ('&' * 3000000) | striptags | length }}", "3000000"),
        ("{{ '{:01048576,}'.format(1) | length }}", "1048577"),
        ("{% set m = 'x' * 1000000 %}{% for i in range(100000) %}{% if i[m] %}{% endif %}{% endfor %}", ""),
        ("{{ ('%.100000f' % 1.5) | length }}", "100002"),
        ("{{ ('%.100000e' % 1.5)[-6:] }}", "00e+00"),
        ("{{ ('%.70000d' % 5) | length }}", "70000"),
        ("{{ '{:.65536g}'.format(1.5) }}", "1.5"),
        (
            "{{ 90000000000000000000000000000000000000 | round(-38) }}",
            "100000000000000000000000000000000000000",
        ),
        ("{{ 5 | round((0 - 2 ** 126) * 2) }}", "0"),
        ("{{ [1, 2] | batch((0 - 2 ** 126) * 2, 'x') | list }}", "[[1, 2]]"),
        ("{{ 5 in range((0 - 2 ** 126) * 2, 2 ** 126, 2 ** 125) }}", "False"),
        ("{{ range((0 - 2 ** 126) * 2, 2 ** 126 - 1 + 2 ** 126, 2 ** 126) | length }}", "4"),
    ] {
        assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
    }
}

/// The results of Jinja2 3.1.
#[test]
fn numbers_and_undefined_names_are_those_of_jinja2() {
    for (template, expected) in [
        ("{{ (-1) ** n }} {{ -2 ** n }} {{ -2.5 ** n }} {{ (1 - 3) ** n }}", "-1 -8 -15.625 -8"),
        (
            "{{ (-2) ** 2 }} {{ -2 ** n ** 2 }} {{ (-2 ** n) ** 2 }} {{ -n ** 2 }} {{ -0.0 ** n }}",
            "4 64 64 9 -0.0",
        ),
        (
            "{{ '{:<05}'.format(1) }} {{ '{:^07}'.format(1.5) }} {{ '{:=05}'.format(1) }}",
            "10000 001.500 00001",
        ),
        ("{{ '{:010,}'.format(1e16) }} {{ '{:010,}'.format(1e300 * 1e300) }}", "00,001e+16 0000000inf"),
        ("{{ -0.002 | round(2, 'ceil') }} {{ 1003633251311929435 / 3 }}", "0.0 3.3454441710397645e+17"),
        ("{{ 0.1.as_integer_ratio() }}", "(3602879701896397, 36028797018963968)"),
    ] {
        let template = format!("{{% set n = 3 %}}{template}");
        assert_eq!(render(&template).as_deref(), Ok(expected), "{template}");
    }
    for template in ["{{ dict(missing) }}", "{{ namespace(missing) }}"] {
        assert_eq!(render(template), Err("'missing' is undefined".to_owned()), "{template}");
    }
}

/// Long chains of values that refer to each other are dropped without a deep recursion.
#[test]
fn long_chains_are_dropped() {
    for template in [
        "{% set ns = namespace(s=none) %}{% for i in range(100000) %}{% set ns.s = namespace(s=ns.s) %}{% endfor %}x",
        "{% set ns = namespace(f=none) %}{% for i in range(100000) %}{% set prev = ns.f %}{% macro m() %}{{ prev }}{% endmacro %}{% set ns.f = m %}{% endfor %}x",
        "{% set ns = namespace(l=none) %}{% for i in range(100000) %}{% for j in [ns.l] %}{% set ns.l = loop %}{% endfor %}{% endfor %}x",
    ] {
        assert_eq!(render(template).as_deref(), Ok("x"), "{template}");
    }
}

/// A plain template with 25 MB of conversation. (A test in `chat.rs` checks that limits grow with it.)
#[test]
fn a_long_conversation_goes_through() {
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}";
    let options = ChatOptions { template: ChatTemplate::Text(template.to_owned()), ..ChatOptions::default() };
    let messages: Vec<_> = (0..50_000).map(|_| Message::user(&"word ".repeat(100))).collect();
    assert_eq!(tokenizer().chat_text(&messages, &options).unwrap().len(), 50_000 * 514);
}

/// The deepest allowed nesting fits into the stack, also in a build without optimization.
#[test]
fn the_deepest_template_fits_into_the_stack() {
    let sum = format!("{{{{ 1{} }}}}", "+1".repeat(398));
    assert_eq!(render(&sum).as_deref(), Ok("399"));
    let list = format!("{{{{ {}1{} }}}}", "[".repeat(380), "]".repeat(380));
    assert!(render(&list).unwrap().starts_with("[[["));
    let nested = format!(
        "{{% macro m(n) %}}{{{{ {}m(n){} }}}}{{% endmacro %}}{{{{ m(0) }}}}",
        "[".repeat(300),
        "]".repeat(300)
    );
    assert!(render(&nested).unwrap_err().contains(DEEP));
    let filters = format!(
        "{{% macro m(n) %}}{{{{ (n{} ~ m(n)) | upper | trim | string }}}}{{% endmacro %}}{{{{ m(0) }}}}",
        "|abs".repeat(100)
    );
    assert!(render(&filters).unwrap_err().contains(DEEP));
}
