//! Reading the wire form from files and from flags, with errors that name the mend.

use crate::VmConfig;
use serde::de::value::{Error as ValueError, MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use std::collections::BTreeMap;

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
    let mut given = BTreeMap::new();
    for (index, part) in text.split(',').enumerate() {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key, Given::Text(value.into())),
            None if index == 0 => (first, Given::Text(part.into())),
            None => (part, Given::Flag),
        };
        if key.is_empty() {
            return Err(ParseError(format!(
                "{text:?}: an option has no name; write key=value"
            )));
        }
        let key = key.replace('-', "_");
        if lists.contains(&key.as_str()) {
            let list = given.entry(key).or_insert_with(|| Given::List(Vec::new()));
            if let Given::List(list) = list {
                list.push(value);
            }
        } else if given.insert(key.clone(), value).is_some() {
            return Err(ParseError(format!("{text:?}: {key} is given twice")));
        }
    }
    T::deserialize(MapDeserializer::new(given.into_iter()))
        .map_err(|e: ValueError| ParseError(format!("{text:?}: {}", explain(&e.to_string()))))
}

/// What a flag says about one key. It is all text; what it means depends on what is asked for, so
/// that a serial number of digits stays one.
enum Given {
    Text(String),
    /// The key alone.
    Flag,
    List(Vec<Given>),
}

impl IntoDeserializer<'_, ValueError> for Given {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl Given {
    /// As a number, if it is one.
    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match &self {
            Self::Text(text) => match (text.parse::<u64>(), text.parse::<i64>()) {
                (Ok(number), _) => visitor.visit_u64(number),
                (_, Ok(number)) => visitor.visit_i64(number),
                _ => self.deserialize_any(visitor),
            },
            Self::Flag | Self::List(_) => self.deserialize_any(visitor),
        }
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
            self.number(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Given {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match self {
            Self::Text(text) => visitor.visit_string(text),
            Self::Flag => visitor.visit_bool(true),
            Self::List(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter())),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match &self {
            Self::Text(text) => match text.as_str() {
                "true" | "on" | "yes" => visitor.visit_bool(true),
                "false" | "off" | "no" => visitor.visit_bool(false),
                _ => self.deserialize_any(visitor),
            },
            Self::Flag | Self::List(_) => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        match self {
            Self::Text(text) => visitor.visit_enum(text.into_deserializer()),
            Self::Flag | Self::List(_) => self.deserialize_any(visitor),
        }
    }

    numbers!(deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64);
    numbers!(deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64);

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq tuple
        tuple_struct map struct identifier ignored_any
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
