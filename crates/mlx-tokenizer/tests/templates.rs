//! Compares rendered templates with Jinja2 in the setup of transformers.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;

use mlx_tokenizer::{ChatOptions, ChatTemplate, Json, Message, Tokenizer, TokenizerError};
use serde::Deserialize;

/// The output of `make_template_fixtures.py`.
#[derive(Deserialize)]
struct Fixture {
    now: String,
    special_tokens: BTreeMap<String, Json>,
    variables: BTreeMap<String, Json>,
    conversations: BTreeMap<String, Vec<Message>>,
    settings: BTreeMap<String, BTreeMap<String, Json>>,
    templates: BTreeMap<String, String>,
    lines: Vec<Line>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Line {
    template: String,
    #[serde(flatten)]
    expected: Expected,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: String,
    settings: String,
    #[serde(flatten)]
    expected: Expected,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Expected {
    Text(String),
    /// The template called `raise_exception`; any message is accepted.
    Refused(Option<String>),
    /// This Python exception.
    Fails(#[expect(dead_code, reason = "for the report of a difference")] String),
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("fixtures/templates.json")).unwrap()
}

fn tokenizer() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = serde_json::json!({
        "version": "1.0", "model": { "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" },
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

/// The difference, if there is one.
fn difference(
    fixture: &Fixture,
    template: &str,
    messages: &[Message],
    variables: &BTreeMap<String, Json>,
    expected: &Expected,
) -> Option<String> {
    let mut all = fixture.special_tokens.clone();
    all.insert("enable_thinking".to_owned(), Json::from(true));
    all.extend(variables.clone());
    let list = |json: Json| -> Vec<Json> { serde_json::from_str(&json.to_string()).unwrap() };
    let options = ChatOptions {
        tools: all.remove("tools").map(list),
        variables: all,
        template: ChatTemplate::Text(template.to_owned()),
        now: Some(fixture.now.parse().unwrap()),
        ..ChatOptions::default()
    };
    let answer = tokenizer().chat_text(messages, &options);
    let same = match (&answer, expected) {
        (Ok(text), Expected::Text(expected)) => text == expected,
        (Err(TokenizerError::ChatRefused { message, line: Some(_), .. }), Expected::Refused(expected)) => {
            *message == expected.clone().unwrap_or_default()
        }
        (Err(TokenizerError::ChatTemplate { line: Some(_), .. }), Expected::Fails(_)) => true,
        _ => false,
    };
    (!same).then(|| format!("{template}\n  here:   {answer:?}\n  Jinja2: {expected:?}"))
}

/// The one-line templates in `docs/chat-templates.md`, each followed by a reason.
fn listed() -> Vec<String> {
    let text = include_str!("../../../docs/chat-templates.md");
    let (_, section) = text.split_once("## Differences from Jinja2\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```").skip(1).step_by(2);
    let lines: Vec<&str> = blocks.flat_map(|block| block.lines().skip(1)).collect();
    let is_reason = |line: &str| line.starts_with("    ") && line.trim().len() > 10;
    let mut listed = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        if !line.starts_with("    ") {
            assert!(lines[index + 1..].iter().any(|line| is_reason(line)), "{line} has no reason");
            listed.push(line.replace("\\n", "\n"));
        }
    }
    listed
}

#[test]
fn lines_render_as_in_jinja2_but_for_the_listed_ones() {
    let fixture = fixture();
    let mut listed = listed();
    let mut wrong = Vec::new();
    for Line { template, expected } in &fixture.lines {
        let hi = [Message::user("hi")];
        let different = difference(&fixture, template, &hi, &fixture.variables, expected);
        let place = listed.iter().position(|of| of == template);
        match (different, place) {
            (Some(_), Some(place)) => drop(listed.remove(place)),
            (Some(different), None) => wrong.push(different),
            (None, Some(_)) => wrong.push(format!("{template}\n  is listed, but does not differ")),
            (None, None) => {}
        }
    }
    wrong.extend(
        listed
            .into_iter()
            .filter(|of| !of.is_empty())
            .map(|of| format!("{of}\n  is listed, but is not a line of the fixture")),
    );
    assert!(fixture.lines.len() > 1000);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), fixture.lines.len(), wrong.join("\n"));
}

#[test]
fn whole_templates_render_as_in_jinja2() {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for Case { template, messages, settings, expected } in &fixture.cases {
        let text = &fixture.templates[template];
        let conversation = &fixture.conversations[messages];
        let different = difference(&fixture, text, conversation, &fixture.settings[settings], expected);
        if let Some(different) = different {
            wrong.push(format!("{template} {messages} {settings}: {}", different.replacen(text, "", 1)));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), fixture.cases.len(), wrong.join("\n"));
    // Together with those of `chats.json` there are more than thirty.
    assert!(fixture.templates.len() >= 26 && fixture.cases.len() > 400);
}
