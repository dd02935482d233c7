//! Option strings of the command line: `file,path=/var/log/nyx.log,rotate=daily`.

use crate::config::{AuditConfig, JournalError, OutputConfig};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::str::FromStr;

/// Keys whose values are numbers or booleans; all others are texts.
const TYPED: &[&str] = &["keep_days", "max_files", "timestamps"];
/// Keys whose values are lists, with `+` between their items.
const LISTS: &[&str] = &["components"];

/// Reads `WORD[,key=value…]` as an object in which the leading word has the key `first`.
fn read<T: DeserializeOwned>(text: &str, first: &str) -> Result<T, JournalError> {
    let refused = |mend: String| JournalError::Options {
        given: text.into(),
        mend,
    };
    let mut object = Map::new();
    for (index, part) in text.split(',').enumerate() {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key.trim().replace('-', "_"), value),
            None if index == 0 => (first.to_owned(), part),
            None if part.is_empty() => {
                return Err(refused("an option has no name; write key=value".into()));
            }
            None => (part.trim().replace('-', "_"), "true"),
        };
        let value = if LISTS.contains(&key.as_str()) {
            value.split('+').map(Value::from).collect()
        } else if TYPED.contains(&key.as_str()) {
            match value {
                "true" | "yes" | "on" => true.into(),
                "false" | "no" | "off" => false.into(),
                _ => match value.parse::<u64>() {
                    Ok(number) => number.into(),
                    Err(_) => {
                        return Err(refused(format!(
                            "{key} {value:?} is not a number or a yes or no"
                        )));
                    }
                },
            }
        } else {
            value.into()
        };
        if object.insert(key.clone(), value).is_some() {
            return Err(refused(format!("{key} is given twice; keep one")));
        }
    }
    serde_json::from_value(Value::Object(object)).map_err(|e| refused(e.to_string()))
}

impl FromStr for OutputConfig {
    type Err = JournalError;
    fn from_str(text: &str) -> Result<Self, JournalError> {
        let output: Self = read(text, "kind")?;
        output.validate(output.kind())?;
        Ok(output)
    }
}

impl FromStr for AuditConfig {
    type Err = JournalError;
    fn from_str(text: &str) -> Result<Self, JournalError> {
        read(text, "path")
    }
}
