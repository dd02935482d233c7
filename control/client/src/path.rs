//! Paths and queries, percent-encoded (RFC 3986).

use std::fmt::Write as _;

/// `text` as one path segment or query value.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// `path` with its one `{…}` replaced by `value`.
pub(crate) fn fill(path: &str, value: &str) -> String {
    match (path.find('{'), path.find('}')) {
        (Some(open), Some(close)) if open < close => {
            format!("{}{}{}", &path[..open], encode(value), &path[close + 1..])
        }
        _ => path.into(),
    }
}

/// A query from those parameters that are given.
pub(crate) fn query<const N: usize>(path: &str, parameters: [(&str, Option<String>); N]) -> String {
    let mut whole = path.to_string();
    let mut mark = '?';
    for (name, value) in parameters {
        if let Some(value) = value {
            let _ = write!(whole, "{mark}{name}={}", encode(&value));
            mark = '&';
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_and_queries_are_encoded() {
        assert_eq!(
            fill(nyx_api::paths::DISK, "a/b ?ä"),
            "/v1/machine/disks/a%2Fb%20%3F%C3%A4"
        );
        assert_eq!(fill(nyx_api::paths::OPERATION, "7"), "/v1/operations/7");
        assert_eq!(fill("/plain", "7"), "/plain");
        let with = |since: Option<u64>| {
            query(
                "/e",
                [
                    ("since", since.map(|n| n.to_string())),
                    ("follow", Some("a&b".into())),
                ],
            )
        };
        assert_eq!(with(Some(3)), "/e?since=3&follow=a%26b");
        assert_eq!(with(None), "/e?follow=a%26b");
    }
}
