//! Reading the wire form from files and from flags, with errors that name the mend.

use crate::VmConfig;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A description that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// Reads TOML.
pub fn parse_toml(text: &str) -> Result<VmConfig, ParseError> {
    toml::from_str(text).map_err(|e| {
        let place = e.span().map(|span| {
            let before = text.get(..span.start).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            format!("line {line}: ")
        });
        ParseError(format!(
            "{}{}",
            place.unwrap_or_default(),
            explain(e.message())
        ))
    })
}

/// Reads JSON.
pub fn parse_json(text: &str) -> Result<VmConfig, ParseError> {
    serde_json::from_str(text).map_err(|e| ParseError(explain(&e.to_string())))
}

/// Reads a flag's `value[,key=value…]`: the leading word, if any, belongs to `first`; keys that are
/// named in `lists` may come several times. Booleans may be given as a bare key.
pub fn parse_options<T: DeserializeOwned>(
    text: &str,
    first: &str,
    lists: &[&str],
) -> Result<T, ParseError> {
    let mut map = Map::new();
    for (index, part) in text.split(',').enumerate() {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key, Value::from(value)),
            None if index == 0 => (first, Value::from(part)),
            None => (part, Value::from(true)),
        };
        if key.is_empty() {
            return Err(ParseError(format!(
                "{text:?}: an option has no name; write key=value"
            )));
        }
        let key = key.replace('-', "_");
        if lists.contains(&key.as_str()) {
            let list = map.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(scalar(value));
            }
        } else if map.insert(key.clone(), scalar(value)).is_some() {
            return Err(ParseError(format!("{text:?}: {key} is given twice")));
        }
    }
    serde_json::from_value(Value::Object(map))
        .map_err(|e| ParseError(format!("{text:?}: {}", explain(&e.to_string()))))
}

/// Flags carry text; numbers and booleans are recognised where they are unmistakable.
fn scalar(value: Value) -> Value {
    let Value::String(text) = &value else {
        return value;
    };
    match text.as_str() {
        "true" | "on" | "yes" => true.into(),
        "false" | "no" => false.into(),
        digits if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse::<u64>().map_or(value, Value::from)
        }
        _ => value,
    }
}

/// Adds the nearest known word to serde's complaint about an unknown one.
fn explain(message: &str) -> String {
    let message = message.trim_end();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let complaint = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let Some(unknown) = quoted.next().filter(|_| complaint) else {
        return message.into();
    };
    let nearest = quoted
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .min()
        .filter(|(distance, known)| *distance <= (known.len().max(unknown.len()) / 2).max(2));
    match nearest {
        Some((_, known)) => format!("{message}; did you mean `{known}`?"),
        None => message.into(),
    }
}
