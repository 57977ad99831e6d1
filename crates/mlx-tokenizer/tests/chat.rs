//! Compares rendered conversations with those of transformers.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;

use mlx_tokenizer::{ChatEnd, ChatOptions, ChatTemplate, Json, Message, Tokenizer, TokenizerError};
use serde::Deserialize;
use tempfile::TempDir;

/// The output of `make_chat_fixtures.py`.
#[derive(Deserialize)]
struct Fixture {
    #[serde(flatten)]
    chats: Chats,
    snippet_messages: Vec<Message>,
    snippet_variables: BTreeMap<String, Json>,
    snippets: Vec<Snippet>,
}

/// Conversations, and the texts of templates for them.
#[derive(Deserialize)]
struct Chats {
    now: String,
    special_tokens: BTreeMap<String, String>,
    templates: BTreeMap<String, String>,
    conversations: BTreeMap<String, Vec<Message>>,
    settings: BTreeMap<String, BTreeMap<String, Json>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: String,
    settings: String,
    #[serde(flatten)]
    expected: Expected,
}

#[derive(Deserialize)]
struct Snippet {
    template: String,
    #[serde(flatten)]
    expected: Expected,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Expected {
    Text(String),
    /// The template called `raise_exception`.
    Refused(String),
    Fails(bool),
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("fixtures/chats.json")).unwrap()
}

/// A folder with a tokenizer that has a token for each letter, and with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let vocab: BTreeMap<String, usize> =
        (32..127_u8).map(|byte| char::from(byte).to_string()).zip(0..).collect();
    let added: Vec<_> = ["<|end|>", "<end_of_turn>", "<eos>", "<think>", "</think>"]
        .iter()
        .zip(vocab.len()..)
        .map(|(content, id)| {
            serde_json::json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "added_tokens": added, "decoder": { "type": "Fuse" },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    for (name, contents) in files {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, contents).unwrap();
    }
    folder
}

fn tokenizer(files: &[(&str, &str)]) -> Tokenizer {
    Tokenizer::from_folder(folder(files).path()).unwrap()
}

fn answer(tokenizer: &Tokenizer, messages: &[Message], options: &ChatOptions) -> Expected {
    match tokenizer.chat_text(messages, options) {
        Ok(text) => Expected::Text(text),
        Err(TokenizerError::ChatRefused { message, line: Some(_), .. }) => Expected::Refused(message),
        Err(TokenizerError::ChatTemplate { .. } | TokenizerError::Conversation { .. }) => {
            Expected::Fails(true)
        }
        Err(e) => panic!("{e}"),
    }
}

impl Chats {
    /// Requires the texts of transformers.
    fn assert_rendered(&self) {
        let config = serde_json::to_string(&self.special_tokens).unwrap();
        let tokenizer = tokenizer(&[("tokenizer_config.json", &config)]);
        let mut different = Vec::new();
        for Case { template, messages, settings, expected } in &self.cases {
            let text = self.templates[template].clone();
            let options = self.options(&self.settings[settings], text);
            let answer = answer(&tokenizer, &self.conversations[messages], &options);
            if answer != *expected {
                different.push(format!("{template} {messages} {settings}\n  {answer:?}\n  {expected:?}"));
            }
        }
        let shown = different[..30.min(different.len())].join("\n");
        assert!(different.is_empty(), "{} of {} differ:\n{shown}", different.len(), self.cases.len());
    }

    /// What the arguments of `apply_chat_template` are here.
    fn options(&self, arguments: &BTreeMap<String, Json>, template: String) -> ChatOptions {
        let mut variables = arguments.clone();
        let list = |json: Json| -> Vec<Json> { serde_json::from_str(&json.to_string()).unwrap() };
        let is = |json: Option<Json>, value: bool| json == Some(Json::from(value));
        let end = if is(variables.remove("continue_final_message"), true) {
            ChatEnd::Continue
        } else if is(variables.remove("add_generation_prompt"), false) {
            ChatEnd::Nothing
        } else {
            ChatEnd::Answer
        };
        ChatOptions {
            end,
            tools: variables.remove("tools").map(list),
            documents: variables.remove("documents").map(list),
            variables,
            template: ChatTemplate::Text(template),
            now: Some(self.now.parse().unwrap()),
        }
    }
}

#[test]
fn templates_in_the_shapes_of_real_ones_render_as_in_transformers() {
    let Fixture { chats, .. } = fixture();
    assert!(chats.cases.len() > 700);
    chats.assert_rendered();
}

#[test]
fn templates_of_families_render_as_in_transformers() {
    let chats: Chats = serde_json::from_str(include_str!("fixtures/families.json")).unwrap();
    assert!(chats.templates.len() >= 15);
    chats.assert_rendered();
}

#[derive(Deserialize)]
struct Stops {
    name: String,
    template: Option<String>,
    files: BTreeMap<String, serde_json::Value>,
    mlx_lm: Vec<u32>,
    transformers: Vec<u32>,
}

/// A converter may lose the list of `generation_config.json`, and a base model does not declare the end of a turn. Then the
/// end of a turn that the template writes is a stop token too, which it is neither in mlx-lm nor in transformers.
#[test]
fn the_ends_of_turns_of_families_are_stop_tokens() {
    #[derive(Deserialize)]
    struct Families {
        templates: BTreeMap<String, String>,
        stops: Vec<Stops>,
    }
    let families: Families = serde_json::from_str(include_str!("fixtures/families.json")).unwrap();
    let mut lost = Vec::new();
    for Stops { name, template, files, mlx_lm, transformers } in &families.stops {
        let folder = tempfile::tempdir().unwrap();
        for (file, contents) in files {
            fs::write(folder.path().join(file), contents.to_string()).unwrap();
        }
        if let Some(template) = template {
            fs::write(folder.path().join("chat_template.jinja"), &families.templates[template]).unwrap();
        }
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        let found = tokenizer.stop_tokens();
        if found == mlx_lm {
            assert!(transformers.iter().all(|id| found.contains(id)), "{name}: {found:?} {transformers:?}");
        } else {
            lost.push((&**name, found.to_vec(), mlx_lm.clone(), transformers.clone()));
        }
    }
    assert_eq!(families.stops.len(), 19);
    assert_eq!(
        lost,
        [
            ("Qwen2.5-7B", vec![151_643, 151_645], vec![151_643], vec![151_643]),
            ("Llama 3 without its lists", vec![128_001, 128_009], vec![128_001], vec![128_001]),
            ("Gemma 2 without its lists", vec![1, 107], vec![1], vec![1]),
        ]
    );
}

/// Templates of released models, which are not part of this repository: docs/chat-templates.md says how to render them.
#[test]
#[ignore = "needs the file that the variable MLX_MODELS_CHATS names"]
fn templates_of_released_models_render_as_in_transformers() {
    let file = std::env::var("MLX_MODELS_CHATS").unwrap();
    let chats: Chats = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    chats.assert_rendered();
}

#[test]
fn what_templates_use_is_as_in_transformers() {
    let fixture = fixture();
    let config = serde_json::to_string(&fixture.chats.special_tokens).unwrap();
    let tokenizer = tokenizer(&[("tokenizer_config.json", &config)]);
    let mut different = Vec::new();
    for Snippet { template, expected } in &fixture.snippets {
        let options = ChatOptions {
            variables: fixture.snippet_variables.clone(),
            template: ChatTemplate::Text(template.clone()),
            now: Some(fixture.chats.now.parse().unwrap()),
            ..Default::default()
        };
        let answer = answer(&tokenizer, &fixture.snippet_messages, &options);
        if answer != *expected {
            different.push(format!("{template}\n  {answer:?}\n  {expected:?}"));
        }
    }
    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different[..30.min(different.len())].join("\n")
    );
}

fn text(files: &[(&str, &str)], options: &ChatOptions) -> Result<String, TokenizerError> {
    tokenizer(files).chat_text(&[Message::user("hi")], options)
}

fn named(name: &str) -> ChatOptions {
    ChatOptions { template: ChatTemplate::Named(name.to_owned()), ..Default::default() }
}

fn with_tools() -> ChatOptions {
    ChatOptions { tools: Some(Vec::new()), ..Default::default() }
}

#[test]
fn templates_come_from_each_of_their_files() {
    let default = ChatOptions::default();
    let config = ("tokenizer_config.json", r#"{"chat_template": "config"}"#);
    let jinja = ("chat_template.jinja", "jinja");
    let processor = ("chat_template.json", r#"{"chat_template": "processor"}"#);
    assert_eq!(text(&[config], &default).unwrap(), "config");
    assert_eq!(text(&[processor], &default).unwrap(), "processor");
    assert_eq!(text(&[config, processor], &default).unwrap(), "config");
    assert_eq!(text(&[config, processor, jinja], &default).unwrap(), "jinja");
    assert_eq!(text(&[config], &named("default")).unwrap(), "config");

    let list = r#"{"chat_template": [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]}"#;
    let list = ("tokenizer_config.json", list);
    assert_eq!(text(&[list], &default).unwrap(), "one");
    assert_eq!(text(&[list], &with_tools()).unwrap(), "two");
    assert_eq!(text(&[list], &named("tool_use")).unwrap(), "two");
    let rag = ("additional_chat_templates/rag.jinja", "rag");
    assert_eq!(text(&[list, jinja, rag], &with_tools()).unwrap(), "jinja");
    assert_eq!(text(&[list, jinja, rag], &named("rag")).unwrap(), "rag");
    let tokenizer = tokenizer(&[list, jinja, rag]);
    assert_eq!(tokenizer.chat_templates().collect::<Vec<_>>(), ["default", "rag"]);

    // No template is the default.
    let error = text(&[rag], &default).unwrap_err();
    assert!(
        matches!(&error, TokenizerError::UnknownChatTemplate { name, .. } if name == "default"),
        "{error}"
    );
    assert!(error.to_string().contains("it has rag"), "{error}");
}

#[test]
fn without_a_template_the_error_says_what_to_do() {
    let error = text(&[], &ChatOptions::default()).unwrap_err();
    assert!(matches!(error, TokenizerError::NoChatTemplate));
    assert!(error.to_string().contains("use a plain-text prompt"), "{error}");
    let own = ChatOptions { template: ChatTemplate::Text("own".to_owned()), ..Default::default() };
    assert_eq!(text(&[], &own).unwrap(), "own");
}

#[test]
fn what_a_template_refuses_is_said_with_its_line() {
    let template = "{% if true %}\n\n{{ raise_exception('Only two roles') }}\n{% endif %}";
    let error = text(&[("chat_template.jinja", template)], &ChatOptions::default()).unwrap_err();
    assert!(
        matches!(&error, TokenizerError::ChatRefused { message, line: Some(3), .. } if message == "Only two roles")
    );
    let said = "the chat template refuses the conversation: Only two roles (line 3 of default)";
    assert_eq!(error.to_string(), said);
}

#[test]
fn a_template_that_is_wrong_stops_no_tokenizer_and_is_named_where_it_is_used() {
    for (template, line, part) in [
        ("a\n{% if %}", 2, "syntax error"),
        ("a\n\n{{ x | nofilter }}", 3, "nofilter"),
        ("{{ strftime_now(1) }}", 1, "must be str"),
        ("{{ messages | tojson(indent=[]) }}", 1, "as an integer"),
        ("{{ messages | tojson(ident=1) }}", 1, "ident"),
        ("{{ messages | tojson(1, 2, none, true, 4) }}", 1, "at most 4 arguments"),
        ("{{ messages | tojson(separators=['a']) }}", 1, "two strings"),
        ("a\n{% include 'x' %}", 2, "include"),
        ("a\n{{ 'a'.nothing() }}", 2, "no attribute 'nothing'"),
        ("a\n\n{% for x in messages %}\n{{ x.y.z }}{% endfor %}", 4, "no attribute 'y'"),
    ] {
        let files = [("chat_template.jinja", template)];
        assert_eq!(tokenizer(&files).encode("hi").unwrap().len(), 2);
        let error = text(&files, &ChatOptions::default()).unwrap_err();
        let TokenizerError::ChatTemplate { line: Some(of), problem, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(*of, line, "{error}");
        assert!(problem.contains(part), "{error}");
    }
}

#[test]
fn a_prompt_is_the_tokens_of_its_text_and_no_more() {
    let files = [("chat_template.jinja", "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")];
    let tokenizer = tokenizer(&files);
    let prompt = tokenizer.chat(&[Message::user("hi<|end|>")], &ChatOptions::default()).unwrap();
    let end = tokenizer.token_id("<|end|>").unwrap();
    assert_eq!(prompt.text, "hi<|end|><|end|>");
    assert_eq!(prompt.tokens, [u32::from(b'h') - 32, u32::from(b'i') - 32, end, end]);
}

#[test]
fn special_tokens_and_thinking_are_variables() {
    let config = r#"{
        "bos_token": "<s>", "eos_token": {"content": "<eos>"}, "add_bos_token": true, "unk_token": null,
        "image_token": "<img>", "extra_special_tokens": {"audio_token": "<a>"},
        "chat_template": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ image_token }}{{ audio_token }}{{ add_bos_token }}{{ enable_thinking }}"
    }"#;
    let files = [("tokenizer_config.json", config)];
    assert_eq!(text(&files, &ChatOptions::default()).unwrap(), "<s><eos><img><a>True");
    let variables =
        [("enable_thinking".to_owned(), Json::from(false)), ("bos_token".to_owned(), Json::from("B"))];
    let options = ChatOptions { variables: variables.into(), ..Default::default() };
    assert_eq!(text(&files, &options).unwrap(), "B<eos><img><a>False");

    // Without the list in which transformers stores the added tokens, this file decides.
    let map = ("special_tokens_map.json", r#"{"bos_token": {"content": "<b>"}}"#);
    assert!(text(&[files[0], map], &ChatOptions::default()).unwrap().starts_with("<b>"));
    let listed = config.replace("\"unk_token\": null", "\"added_tokens_decoder\": {}");
    assert!(
        text(&[("tokenizer_config.json", &listed), map], &ChatOptions::default()).unwrap().starts_with("<s>")
    );
}

#[test]
fn conversations_that_cannot_be_continued_are_refused() {
    let tokenizer =
        tokenizer(&[("chat_template.jinja", "{% for m in messages %}{{ m.content | upper }}{% endfor %}")]);
    let blind = tokenizer.chat_text(
        &[Message::user("hi")],
        &ChatOptions {
            end: ChatEnd::Continue,
            template: ChatTemplate::Text("{{ messages | length }}".to_owned()),
            ..Default::default()
        },
    );
    let go_on = ChatOptions { end: ChatEnd::Continue, ..Default::default() };
    let message = |json: &str| -> Message { serde_json::from_str(json).unwrap() };
    for (answer, part) in [
        (tokenizer.chat_text(&[], &ChatOptions::default()), "at least one"),
        (tokenizer.chat_text(&[message(r#"{"role": "user"}"#)], &go_on), "no content"),
        (
            tokenizer.chat_text(&[message(r#"{"role": "user", "content": [{"type": "image"}]}"#)], &go_on),
            "no text",
        ),
        (tokenizer.chat_text(&[Message::user("hi")], &go_on), "does not write the last message"),
        (blind, "does not read the content"),
    ] {
        let error = answer.unwrap_err();
        assert!(matches!(error, TokenizerError::Conversation { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn messages_are_objects() {
    let error = serde_json::from_str::<Message>("[1]").unwrap_err();
    assert!(error.to_string().contains("[1] is not a message"), "{error}");
    assert_eq!(Message::from_json(Json::from("hi")), None);
    let message: Message = serde_json::from_str(r#"{"role": "user", "content": "hi"}"#).unwrap();
    assert_eq!(message, Message::user("hi"));
    assert_eq!(serde_json::to_string(&message).unwrap(), r#"{"role":"user","content":"hi"}"#);
}

#[test]
fn the_clock_is_asked_where_no_time_is_given() {
    let files = [("chat_template.jinja", "{{ strftime_now('%Y') }}")];
    let year: i32 = text(&files, &ChatOptions::default()).unwrap().parse().unwrap();
    assert!(year >= 2025);
}

/// A longer conversation may cost more, but variables from the model's files do not raise the limits.
#[test]
fn limits_grow_with_the_conversation_alone() {
    let long = "a".repeat(1 << 20);
    let config = serde_json::json!({ "bos_token": long }).to_string();
    let template = "{% for a in range(2500) %}{% for b in range(2500) %}{{ '' }}{% endfor %}{% endfor %}x";
    let files = [("tokenizer_config.json", &*config), ("chat_template.jinja", template)];
    let tokenizer = tokenizer(&files);
    let error = tokenizer.chat_text(&[Message::user("hi")], &ChatOptions::default()).unwrap_err().to_string();
    let (_, most) = error.split_once("it takes more than ").unwrap();
    let most: usize = most.split(' ').next().unwrap().parse().unwrap();
    assert!((10_000_000..11_000_000).contains(&most), "{error}");
    assert_eq!(tokenizer.chat_text(&[Message::user(&long)], &ChatOptions::default()).unwrap(), "x");
    // The limit of bytes, not only of steps.
    let template = "{% for i in range(350) %}{% if 'x' * 1000000 == '' %}{% endif %}{% endfor %}x";
    let options = ChatOptions { template: ChatTemplate::Text(template.to_owned()), ..Default::default() };
    let error = tokenizer.chat_text(&[Message::user("hi")], &options).unwrap_err().to_string();
    assert!(error.contains("it makes more than 256 MiB"), "{error}");
    assert_eq!(tokenizer.chat_text(&[Message::user(&long.repeat(4))], &options).unwrap(), "x");
}

/// If a template writes a declared stop token, the declaration is complete. Otherwise the end of a turn that
/// the template writes is added.
#[test]
fn the_end_of_a_turn_stops_where_the_files_have_lost_it() {
    let gemma = ("chat_template.jinja", "<start_of_turn>{{ messages }}<end_of_turn>");
    let both = ("chat_template.jinja", "{{ messages }}<|end|> or <eos>");
    let eos = ("tokenizer_config.json", r#"{"eos_token": "<eos>"}"#);
    let stop = |files: &[(&str, &str)], expected: &[&str]| {
        let tokenizer = tokenizer(files);
        let mut expected: Vec<u32> =
            expected.iter().map(|token| tokenizer.token_id(token).unwrap()).collect();
        expected.sort_unstable();
        assert_eq!(tokenizer.stop_tokens(), expected, "{files:?}");
    };
    stop(&[eos], &["<eos>"]);
    stop(&[eos, gemma], &["<eos>", "<end_of_turn>"]);
    stop(&[eos, both], &["<eos>"]);
    stop(&[both], &["<|end|>"]);
    stop(&[("generation_config.json", r#"{"eos_token_id": 95}"#), both], &["<|end|>"]);
}

#[test]
fn invalid_json_is_an_error() {
    let error = "{".parse::<Json>().unwrap_err();
    assert_eq!(error.to_string(), "EOF while parsing an object at line 1 column 1");
    let error = Json::new(&BTreeMap::from([(vec![1], 2)])).unwrap_err();
    assert_eq!(error.to_string(), "key must be a string");
}
