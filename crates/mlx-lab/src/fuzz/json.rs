//! Mutations of JSON files. Most keep the structure, and some break it.

use serde_json::{Map, Value, json};

use super::random::Random;
use super::values::{interesting_number, interesting_text};

/// A key that a file of some kind may have, with a function that makes a value for it.
pub(super) type Word = fn(&mut Random) -> (String, Value);

/// Marks texts that stand for JSON that [`Value`] cannot represent; see [`to_text`].
const RAW: char = '\u{f8ff}';

/// A value that is written as this text, which need not be valid JSON.
fn raw(text: &str) -> Value {
    Value::String(format!("{RAW}{text}"))
}

/// Makes one change in a JSON value. `words` are the keys and values that may be inserted.
pub(super) fn mutate(value: &mut Value, random: &mut Random, words: &[Word]) {
    let path = random_path(value, random);
    let other = value.pointer(&random_path(value, random)).cloned().unwrap_or(Value::Null);
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
    match random.below(16) {
        0..=3 => change(value.pointer_mut(&path), |node| tweak(node, random)),
        4..=6 => change(value.pointer_mut(&path), |node| *node = anything(random)),
        7 => change(value.pointer_mut(&path), |node| *node = other),
        8 => change(value.pointer_mut(&path), |node| *node = json!([node.clone()])),
        9 => change(value.pointer_mut(&path), |node| {
            let copies = random.one(&[2, 3, 100, 5000]);
            *node =
                Value::Array(vec![if node.to_string().len() < 100 { node.take() } else { json!(1) }; copies]);
        }),
        10 | 11 => change(value.pointer_mut(&parent), |parent| remove(parent, random)),
        12 => change(value.pointer_mut(&parent), |parent| rename(parent, other, random)),
        _ if words.is_empty() => change(value.pointer_mut(&path), |node| *node = anything(random)),
        _ => {
            let (key, inserted) = random.one(words)(random);
            // More often where such a key belongs than elsewhere.
            let place = if random.once_in(3) { parent } else { String::new() };
            if let Some(Value::Object(object)) = value.pointer_mut(&place) {
                object.insert(key, inserted);
            }
        }
    }
}

/// The text of a value, with the marked invalid JSON and duplicate keys written out.
pub(super) fn to_text(value: &Value) -> String {
    let mut text = value.to_string();
    let mark = format!("\"{RAW}");
    while let Some(begin) = text.find(&mark) {
        let from = begin + mark.len();
        let end = text[from..].find('"').map_or(text.len(), |end| from + end);
        let inside = text[from..end].to_owned();
        let replacement = match inside.split_once(':') {
            Some(("deep", depth)) => "[".repeat(depth.parse().unwrap_or(1)),
            Some(("nested", depth)) => {
                let depth = depth.parse().unwrap_or(1);
                format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth))
            }
            // A key that another entry already has.
            Some(("again", key)) => format!("\"{key}\""),
            _ => inside,
        };
        text.replace_range(begin..(end + 1).min(text.len()), &replacement);
    }
    text
}

/// A random value.
pub(super) fn anything(random: &mut Random) -> Value {
    match random.below(14) {
        0 => Value::Null,
        1 => json!(random.once_in(2)),
        2 => json!([]),
        3 => json!({}),
        4 => json!([random.below(10), null, "a"]),
        5 => {
            raw(random.one(&["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "", "01", "'a'", "\\ud800"]))
        }
        6 => raw("123456789012345678901234567890"),
        7 => raw(random.one(&["deep:100000", "nested:100", "nested:100000"])),
        8 | 9 => json!(interesting_text(random)),
        _ => interesting_number(random),
    }
}

fn change(node: Option<&mut Value>, change: impl FnOnce(&mut Value)) {
    if let Some(node) = node {
        change(node);
    }
}

/// A value that is similar to the present one.
fn tweak(node: &mut Value, random: &mut Random) {
    *node = match node {
        Value::Bool(flag) => json!(!*flag),
        Value::Number(number) => match (number.as_i64(), random.below(6)) {
            (Some(n), 0) => json!(n.saturating_add(1)),
            (Some(n), 1) => json!(n.saturating_sub(1)),
            (Some(n), 2) => json!(n.saturating_mul(2)),
            (Some(n), 3) => json!(n / 2),
            (Some(n), 4) => json!(n.saturating_neg()),
            (None, 0..4) => {
                json!(number.as_f64().unwrap_or(0.0) * random.one(&[0.5, 2.0, -1.0, 1e-30, 1e30]))
            }
            _ => interesting_number(random),
        },
        Value::String(text) => match random.below(5) {
            0 => json!(interesting_text(random)),
            1 => json!(text.repeat(2)),
            2 => json!(text.to_uppercase()),
            3 => json!(text.chars().skip(1).collect::<String>()),
            _ => json!(format!("{text}{}", interesting_text(random))),
        },
        Value::Array(items) => {
            let mut items = std::mem::take(items);
            match random.below(4) {
                0 => items.reverse(),
                1 => items.truncate(items.len() / 2),
                2 => items.push(items.first().cloned().unwrap_or(Value::Null)),
                _ if items.is_empty() => items.push(anything(random)),
                _ => {
                    let place = random.below(items.len());
                    items[place] = anything(random);
                }
            }
            Value::Array(items)
        }
        Value::Null | Value::Object(_) => anything(random),
    };
}

fn remove(parent: &mut Value, random: &mut Random) {
    match parent {
        Value::Object(object) => {
            if let Some(key) = object.keys().nth(random.below(object.len())).cloned() {
                object.remove(&key);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            items.remove(random.below(items.len()));
        }
        _ => {}
    }
}

/// Renames or duplicates a key.
fn rename(parent: &mut Value, other: Value, random: &mut Random) {
    let Value::Object(object) = parent else { return };
    let Some(key) = object.keys().nth(random.below(object.len())).cloned() else { return };
    match random.below(3) {
        0 => {
            let value = object.remove(&key).unwrap_or_default();
            object.insert(interesting_text(random), value);
        }
        1 => {
            let value = object.remove(&key).unwrap_or_default();
            object.insert(key.to_uppercase(), value);
        }
        _ => {
            object.insert(format!("{RAW}again:{key}"), other);
        }
    }
}

/// A JSON pointer to a random node, mostly near the root: otherwise most changes would be in long lists.
fn random_path(value: &Value, random: &mut Random) -> String {
    let (mut path, mut node) = (String::new(), value);
    loop {
        let (key, child) = match node {
            Value::Object(object) if !object.is_empty() => child_of(object, random),
            Value::Array(items) if !items.is_empty() => {
                let place = random.below(items.len());
                (place.to_string(), &items[place])
            }
            _ => return path,
        };
        path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
        node = child;
        if random.once_in(3) {
            return path;
        }
    }
}

fn child_of<'v>(object: &'v Map<String, Value>, random: &mut Random) -> (String, &'v Value) {
    let place = random.below(object.len());
    object
        .iter()
        .nth(place)
        .map_or_else(|| (String::new(), &Value::Null), |(key, child)| (key.clone(), child))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_texts_become_what_json_cannot_hold() {
        let mut object = Map::new();
        object.insert("a".to_owned(), raw("NaN"));
        object.insert(format!("{RAW}again:a"), raw("nested:2"));
        object.insert("b".to_owned(), raw("deep:3"));
        let text = to_text(&Value::Object(object));
        let parts = ["\"a\":NaN", "\"a\":{\"a\":{\"a\":1}}", "\"b\":[[["];
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }

    #[test]
    fn most_mutations_leave_json() {
        let mut json = 0;
        for case in 0..500 {
            let mut value = json!({ "a": 1, "b": [1, 2.5, null], "c": { "d": "text", "e": true } });
            mutate(&mut value, &mut Random::of(1, case), &[|_| ("f".to_owned(), json!(2))]);
            json += usize::from(serde_json::from_str::<Value>(&to_text(&value)).is_ok());
        }
        assert!((400..500).contains(&json), "{json}");
    }
}
