//! Chat templates from a small grammar of Jinja, with numbers and texts that are too large or too small.

use super::random::Random;

/// Templates of real models.
const REAL: &[&str] = &[
    include_str!("../../../../xtask/python/chat_templates/gemma3.jinja"),
    include_str!("../../../../xtask/python/chat_templates/lille.jinja"),
    include_str!("../../../../xtask/python/chat_templates/llama3.jinja"),
    include_str!("../../../../xtask/python/chat_templates/olmo3.jinja"),
    include_str!("../../../../xtask/python/chat_templates/phi3.jinja"),
    include_str!("../../../../xtask/python/chat_templates/phi4_mini.jinja"),
    include_str!("../../../../xtask/python/chat_templates/qwen3.jinja"),
];

/// A random template: generated, or a real one, unchanged or changed.
pub(super) fn template(random: &mut Random) -> String {
    let mut text = match random.below(5) {
        0 => random.one(REAL).to_owned(),
        1 => {
            // Inserts something from the grammar between two statements.
            let real = random.one(REAL);
            let places: Vec<usize> = real.match_indices("{%").map(|(place, _)| place).collect();
            let place = random.one(&places);
            format!("{}{}{}", &real[..place], statements(random, 2), &real[place..])
        }
        _ => statements(random, 4),
    };
    if random.once_in(4) {
        let places: Vec<usize> = text.char_indices().map(|(place, _)| place).collect();
        if !places.is_empty() {
            let mut ends = [random.one(&places), random.one(&places)];
            ends.sort_unstable();
            ends[1] = ends[1].min(ends[0] + 30);
            while !text.is_char_boundary(ends[1]) {
                ends[1] += 1;
            }
            if random.once_in(2) {
                text.replace_range(ends[0]..ends[1], "");
            } else {
                let copy = text[ends[0]..ends[1]].to_owned();
                text.insert_str(random.one(&places), &copy);
            }
        }
    }
    text
}

fn statements(random: &mut Random, depth: usize) -> String {
    (0..=random.below(3)).map(|_| statement(random, depth)).collect()
}

fn statement(random: &mut Random, depth: usize) -> String {
    let name = name(random);
    if depth == 0 {
        return format!("{{{{ {} }}}}", expression(random, 1));
    }
    let e = expression(random, depth);
    match random.below(16) {
        0 | 1 => format!("{{% for {name} in {e} %}}{}{{% endfor %}}", statements(random, depth - 1)),
        2 => {
            let filter = expression(random, 1);
            let otherwise = statement(random, depth - 1);
            format!(
                "{{%- for k, {name} in {e} if {filter} recursive -%}}{{{{ loop(x) }}}}{{% else %}}{otherwise}{{% endfor %}}"
            )
        }
        3 => format!(
            "{{% if {e} %}}{}{{% elif x %}}b{{% else %}}c{{% endif %}}",
            statements(random, depth - 1)
        ),
        4 => format!("{{% set {name} = {e} %}}{{{{ {name} }}}}"),
        5 => format!("{{% set {name} %}}{}{{% endset %}}", statements(random, depth - 1)),
        6 => {
            // A function that calls itself.
            let body = statement(random, depth - 1);
            format!(
                "{{% macro {name}(a, b={e}) %}}{body}{{{{ {name}(a) }}}}{{% endmacro %}}{{{{ {name}({e}) }}}}"
            )
        }
        7 => format!(
            "{{% macro m(a) %}}{{{{ caller() }}}}{{% endmacro %}}{{% call m({e}) %}}{name}{{% endcall %}}"
        ),
        8 => format!("{{% filter {} %}}{}{{% endfilter %}}", filter(random), statements(random, depth - 1)),
        9 => {
            // An object that contains itself.
            format!("{{% set n = namespace(a={e}) %}}{{% set n.a = n %}}{{{{ n.a }}}}")
        }
        10 => {
            // A text that doubles.
            let times = number(random);
            format!(
                "{{% set n = namespace(s='ab') %}}{{% for i in range({times}) %}}{{% set n.s = n.s ~ n.s %}}{{% endfor %}}{{{{ n.s | length }}}}"
            )
        }
        11 => format!("{{{{ raise_exception({e}) }}}}"),
        12 => {
            let operator = random.one(&["1+", "(", "-", "not ", "[", "'a'~"]);
            format!("{{{{ {}1 }}}}", operator.repeat(random.one(&[3, 300, 20_000])))
        }
        13 => {
            format!("{{% generation %}}{name}{{% endgeneration %}}{{# {e} #}}{{% raw %}}{{{{ {{% endraw %}}")
        }
        14 => format!("{{% include {e} %}}{{% with a = {e} %}}{{{{ a }}}}{{% endwith %}}"),
        _ => format!("{{{{ {e} }}}}"),
    }
}

fn name(random: &mut Random) -> &'static str {
    random.one(&[
        "x",
        "messages",
        "loop",
        "message",
        "tools",
        "bos_token",
        "undefined_name",
        "n",
        "self",
        "varargs",
    ])
}

fn number(random: &mut Random) -> &'static str {
    random.one(&[
        "0",
        "1",
        "2",
        "3",
        "-1",
        "10",
        "30",
        "100",
        "10000",
        "1000000",
        "9223372036854775807",
        "-9223372036854775808",
        "1e308",
        "0.5",
    ])
}

fn atom(random: &mut Random) -> String {
    match random.below(8) {
        0 | 1 => number(random).to_owned(),
        2 => format!("range({}, {})", number(random), number(random)),
        3 => random
            .one(&["'abc'", "''", "'%s'", "\"é\\n\"", "'<|endoftext|>'", "none", "true", "'a' 'b'"])
            .to_string(),
        4 => random
            .one(&[
                "messages[0].content",
                "messages[-1]['role']",
                "messages[1:]",
                "loop.index",
                "messages[::-1]",
                "messages[::0]",
            ])
            .to_string(),
        5 => random
            .one(&[
                "strftime_now('%Y')",
                "strftime_now('%')",
                "namespace()",
                "dict(a=1)",
                "cycler('a')",
                "lipsum()",
                "joiner()",
            ])
            .to_string(),
        _ => name(random).to_owned(),
    }
}

fn expression(random: &mut Random, depth: usize) -> String {
    if depth == 0 {
        return atom(random);
    }
    let choice = random.below(14);
    let a = expression(random, depth - 1);
    let [b, c] = [(); 2].map(|()| expression(random, depth.saturating_sub(2)));
    match choice {
        0 => format!("({a} * {b})"),
        1 => format!("({a} ** {b})"),
        2 => format!("({a} ~ {b})"),
        3 => format!("({a} % {b})"),
        4 => format!("({a} // {b})"),
        5 => format!("{a}[{b}:{c}:{}]", number(random)),
        6 => format!("[{a}, {b}] + [{c}]"),
        7 => format!("{{'k': {a}, {b}: 1}}"),
        8 => format!("({a} if {b} else {c})"),
        9 => format!(
            "({a} is {})",
            random.one(&[
                "defined",
                "string",
                "divisibleby 0",
                "mapping",
                "sameas none",
                "callable",
                "eq 1",
                "in 'abc'",
                "nonsense"
            ])
        ),
        10 => format!("({a} {} {b})", random.one(&["==", "<", "in", "not in", "and", "or", "-", "/"])),
        11 => format!("{a}{}", method(random)),
        _ => format!("({a}) | {}", filter(random)),
    }
}

fn method(random: &mut Random) -> String {
    let n = number(random);
    match random.below(12) {
        0 => format!(".zfill({n})"),
        1 => format!(".center({n})"),
        2 => format!(".split('', {n})"),
        3 => format!(".replace('', 'ab', {n})"),
        4 => format!(".ljust({n}, 'x')"),
        5 => ".items()".to_owned(),
        6 => format!(".format({n})"),
        7 => ".encode()".to_owned(),
        8 => ".join(messages)".to_owned(),
        9 => ".__class__.__mro__".to_owned(),
        10 => ".get('a', 1)".to_owned(),
        _ => random
            .one(&[
                ".strip()",
                ".title()",
                ".upper()",
                ".startswith('a')",
                ".append(1)",
                ".rsplit()",
                ".pop()",
                ".index('z')",
            ])
            .to_string(),
    }
}

fn filter(random: &mut Random) -> String {
    let (n, text) = (number(random), random.one(&["''", "'a'", "'%s'", "none"]));
    match random.below(24) {
        0 => format!("tojson(indent={n})"),
        1 => format!("indent({n}, true)"),
        2 => format!("center({n})"),
        3 => format!("batch({n}, {text})"),
        4 => format!("slice({n})"),
        5 => format!("round({n})"),
        6 => format!("truncate({n}, true, {text})"),
        7 => format!("wordwrap({n})"),
        8 => format!("replace({text}, 'abcabc')"),
        9 => format!("join({text})"),
        10 => format!("default({n})"),
        11 => format!("map(attribute={text}) | list"),
        12 => "map('upper') | list".to_owned(),
        13 => format!("selectattr('role', 'equalto', {text}) | list"),
        14 => "sort(attribute='role')".to_owned(),
        15 => "groupby('role')".to_owned(),
        16 => format!("format({n}, {text})"),
        17 => format!("int({n}, {n})"),
        18 => format!("sum(start={n})"),
        19 => "dictsort".to_owned(),
        20 => "reject | list".to_owned(),
        21 => "xmlattr".to_owned(),
        22 => "urlize".to_owned(),
        _ => random
            .one(&[
                "length", "list", "string", "float", "first", "last", "reverse", "unique", "trim", "upper",
                "abs", "escape", "tojson", "pprint", "items", "random", "nonsense",
            ])
            .to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_template() {
        let long =
            (0..300).map(|case| template(&mut Random::of(1, case))).filter(|text| text.len() > 5).count();
        assert!(long > 200, "{long}");
    }
}
