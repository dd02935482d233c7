//! Server-sent events (WHATWG HTML, section 9.2), from a server that is not trusted.

use crate::call::{CallError, Trouble};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::collections::VecDeque;
use std::path::PathBuf;

/// One message of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseMessage {
    /// Its `id`, empty when it has none.
    pub id: String,
    /// Its `event`, empty when it has none.
    pub event: String,
    /// Its `data`, lines joined by line feeds.
    pub data: String,
}

/// A stream that cannot be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A message is longer than any should be.
    #[error("a message of its event stream is longer than {LONGEST} bytes")]
    TooLong,
    /// A line is not text.
    #[error("a line of its event stream is not UTF-8")]
    NotText,
}

/// Longest message, in bytes.
const LONGEST: usize = 1 << 20;

/// Takes bytes as they come and gives messages as they are complete.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    after_return: bool,
    begun: bool,
    message: SseMessage,
    complete: VecDeque<SseMessage>,
}

impl SseParser {
    /// Takes `bytes`.
    ///
    /// # Errors
    ///
    /// See [`SseError`]; the parser is of no use afterwards.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        for &byte in bytes {
            // CR, LF and CRLF end a line.
            if std::mem::take(&mut self.after_return) && byte == b'\n' {
                continue;
            }
            if byte == b'\r' || byte == b'\n' {
                self.after_return = byte == b'\r';
                self.end_line()?;
                continue;
            }
            self.line.push(byte);
            if self.line.len().saturating_add(self.message.data.len()) > LONGEST {
                return Err(SseError::TooLong);
            }
        }
        Ok(())
    }

    /// The next message, if one is complete.
    pub fn message(&mut self) -> Option<SseMessage> {
        self.complete.pop_front()
    }

    fn end_line(&mut self) -> Result<(), SseError> {
        let line = std::mem::take(&mut self.line);
        let line = str::from_utf8(&line).map_err(|_| SseError::NotText)?;
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            if std::mem::take(&mut self.begun) {
                self.complete.push_back(message);
            }
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.begun {
                    self.message.data.push('\n');
                }
                self.begun = true;
                self.message.data.push_str(value);
            }
            "id" => self.message.id = value.into(),
            "event" => self.message.event = value.into(),
            // Comments keep a connection alive; other fields are for browsers.
            _ => {}
        }
        if self.message.data.len() > LONGEST {
            return Err(SseError::TooLong);
        }
        Ok(())
    }
}

/// Messages as a server sends them, read as `T`.
#[derive(Debug)]
pub struct Messages<T> {
    socket: PathBuf,
    body: Incoming,
    parser: SseParser,
    item: std::marker::PhantomData<fn() -> T>,
}

impl<T: serde::de::DeserializeOwned> Messages<T> {
    pub(crate) fn new(socket: PathBuf, body: Incoming) -> Self {
        Self {
            socket,
            body,
            parser: SseParser::default(),
            item: std::marker::PhantomData,
        }
    }

    /// The next one; `None` when the server has sent all it will. It waits as long as it takes, and may be
    /// dropped and called again.
    ///
    /// # Errors
    ///
    /// [`CallError::Closed`] when the server went away in the middle.
    pub async fn next(&mut self) -> Result<Option<T>, CallError> {
        loop {
            if let Some(message) = self.parser.message() {
                return serde_json::from_str(&message.data)
                    .map(Some)
                    .map_err(|e| self.garbage(&e));
            }
            let frame = match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => frame,
                Some(Err(e)) => return Err(CallError::from_hyper(&self.socket, &e)),
            };
            if let Some(bytes) = frame.data_ref() {
                let fed = self.parser.feed(bytes);
                fed.map_err(|e| self.garbage(&e))?;
            }
        }
    }

    fn garbage(&self, why: &dyn std::fmt::Display) -> CallError {
        CallError::Garbage(Trouble::new(&self.socket, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(parser: &mut SseParser) -> Vec<(String, String, String)> {
        std::iter::from_fn(|| parser.message())
            .map(|m| (m.id, m.event, m.data))
            .collect()
    }

    fn message(id: &str, event: &str, data: &str) -> (String, String, String) {
        (id.into(), event.into(), data.into())
    }

    #[test]
    fn messages_come_out_whole() {
        let mut parser = SseParser::default();
        parser
            .feed(b": hello\n\nid: 7\nevent:phase\ndata: {\"a\":\ndata: 1}\n\nid: 8\n\nretry: 5\ndata\n\ndata: tail")
            .unwrap();
        assert_eq!(
            all(&mut parser),
            [message("7", "phase", "{\"a\":\n1}"), message("", "", "")]
        );
        parser.feed(b"\r\n\r\n").unwrap();
        assert_eq!(all(&mut parser), [message("", "", "tail")]);
    }

    #[test]
    fn what_no_server_should_send_is_refused() {
        let mut parser = SseParser::default();
        assert_eq!(parser.feed(b"data: \xff\n"), Err(SseError::NotText));
        let mut parser = SseParser::default();
        assert_eq!(
            parser.feed(&vec![b'x'; LONGEST + 1]),
            Err(SseError::TooLong)
        );
        // A message of endless lines is as bad as an endless line.
        let mut parser = SseParser::default();
        let line = [b"data: ".as_slice(), &[b'x'; 1000], b"\n"].concat();
        let fed = (0..2000).try_for_each(|_| parser.feed(&line));
        assert_eq!(fed, Err(SseError::TooLong));
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_makes_no_difference(
            data in proptest::collection::vec("[a-z:é ]{0,12}", 1..6),
            ends in proptest::collection::vec(prop_oneof![Just("\n"), Just("\r"), Just("\r\n")], 12),
            cut in 1usize..9,
        ) {
            let mut text = String::new();
            for (line, end) in data.iter().zip(&ends) {
                text.push_str("data: ");
                text.push_str(line);
                text.push_str(end);
            }
            // A lone return before a line feed would be one line end.
            let end = if text.ends_with('\r') { "\r" } else { ends[11] };
            text.push_str(end);
            let mut parser = SseParser::default();
            for piece in text.as_bytes().chunks(cut) {
                parser.feed(piece).unwrap();
            }
            parser.feed(b"\n\n").unwrap();
            let said = all(&mut parser);
            prop_assert_eq!(said, vec![message("", "", &data.join("\n"))]);
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut parser = SseParser::default();
            let _ = parser.feed(&bytes);
            let _ = all(&mut parser);
        }
    }
}
