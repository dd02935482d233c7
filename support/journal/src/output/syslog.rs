//! Entries to a syslog server: RFC 5424 over a local socket, UDP (RFC 5426), TCP with counted octets
//! (RFC 6587, section 3.4.1) and TLS (RFC 5425).

#[cfg(feature = "tls")]
use super::stream::Peer as Server;
use super::stream::{Link, Peer, Unsent};
#[cfg(feature = "tls")]
use super::tls::TlsLink;
use super::{Fault, Sink, Stop};
use crate::config::{JournalError, SyslogOutput, SyslogTransport};
use crate::entry::{Entry, escape};
use std::fmt::Write as _;

/// Longest datagram: RFC 5426, section 3.2, wants receivers to take 2048 octets.
const MAX_DATAGRAM: usize = 2048;
/// Longest local datagram.
const MAX_LOCAL: usize = 8192;
/// Longest frame of a stream. RFC 5425, section 4.3.1, wants receivers to take 8192 octets.
const MAX_FRAME: usize = 8192;
/// The enterprise number that RFC 5612 sets aside for documentation: Nyx has none of its own.
const STRUCTURE: &str = "nyx@32473";

enum Wire {
    Plain(Link),
    #[cfg(feature = "tls")]
    Tls(Box<TlsLink>),
}

pub(crate) struct Syslog {
    wire: Wire,
    is_stream: bool,
    limit: usize,
    facility: u8,
    hostname: String,
    app_name: String,
    pid: u32,
}

/// What RFC 5424 allows in its header: printable ASCII without spaces, `limit` of them.
fn header_word(text: &str, limit: usize) -> String {
    let word: String = text
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '_' })
        .take(limit)
        .collect();
    if word.is_empty() { "-".into() } else { word }
}

/// A PARAM-NAME: 1 to 32 printable ASCII characters without `=`, space, `]` and `"`.
fn param_name(name: &str) -> String {
    name.chars()
        .map(|c| {
            let fits = c.is_ascii_graphic() && !matches!(c, '=' | ']' | '"');
            if fits { c } else { '_' }
        })
        .take(32)
        .collect()
}

/// A PARAM-VALUE: `"`, `\` and `]` are escaped, control characters shown.
fn param_value(out: &mut String, value: &str) {
    let mut shown = String::new();
    // Writing to a text cannot fail.
    let _ = escape(&mut shown, value, false);
    for c in shown.chars() {
        if matches!(c, '"' | '\\' | ']') {
            out.push('\\');
        }
        out.push(c);
    }
}

impl Syslog {
    pub(crate) fn open(
        config: &SyslogOutput,
        field: &str,
        stop: &Stop,
    ) -> Result<Self, JournalError> {
        let address = config.address.as_deref().unwrap_or_default();
        let plain = |peer| Wire::Plain(Link::new(peer, stop));
        let (wire, limit) = match config.transport {
            SyslogTransport::Local => {
                let path = config.address.as_deref().unwrap_or("/dev/log");
                (plain(Peer::Unix(path.into())), MAX_LOCAL)
            }
            SyslogTransport::Udp => (
                plain(Peer::new(Peer::Udp, address, Some(514))),
                MAX_DATAGRAM,
            ),
            SyslogTransport::Tcp => (plain(Peer::new(Peer::Tcp, address, Some(601))), MAX_FRAME),
            #[cfg(feature = "tls")]
            SyslogTransport::Tls => {
                let server = Server::new(Server::Tcp, address, Some(6514));
                let link = TlsLink::new(server, config, field, stop)?;
                (Wire::Tls(Box::new(link)), MAX_FRAME)
            }
            #[cfg(not(feature = "tls"))]
            SyslogTransport::Tls => {
                let mend = "this build has no TLS; write transport=tcp";
                return Err(JournalError::value(
                    format!("{field}.transport"),
                    "tls",
                    mend,
                ));
            }
        };
        let is_stream = matches!(
            config.transport,
            SyslogTransport::Tcp | SyslogTransport::Tls
        );
        Ok(Self {
            wire,
            is_stream,
            limit,
            facility: config.facility as u8,
            hostname: header_word(&rustix::system::uname().nodename().to_string_lossy(), 255),
            app_name: config.app_name.clone(),
            pid: std::process::id(),
        })
    }

    /// SYSLOG-MSG of RFC 5424, section 6, at most `limit` octets: first fields go, then the end of
    /// the message.
    fn message(&self, entry: &Entry, limit: usize) -> String {
        let priority = self.facility * 8 + entry.level.syslog_severity();
        let mut out = format!(
            "<{priority}>1 {} {} {} {} {} [{STRUCTURE} seq=\"{}\" level=\"{}\"",
            entry.time,
            self.hostname,
            self.app_name,
            self.pid,
            header_word(&entry.component, 32),
            entry.sequence,
            entry.level,
        );
        for (name, value) in &entry.fields {
            let before = out.len();
            let _ = write!(out, " {}=\"", param_name(name));
            param_value(&mut out, &value.to_string());
            out.push('"');
            if out.len() > limit / 2 {
                out.truncate(before);
                break;
            }
        }
        out.push_str("] ");
        let mut message = String::new();
        let _ = escape(&mut message, &entry.message, false);
        if !message.is_ascii() {
            // MSG-UTF8 begins with a byte order mark.
            out.push('\u{feff}');
        }
        let room = limit.saturating_sub(out.len());
        if message.len() > room {
            message.truncate(message.floor_char_boundary(room));
        }
        out.push_str(&message);
        out
    }

    fn send(&mut self, message: &str) -> Result<(), Unsent> {
        let frame = if self.is_stream {
            format!("{} {message}", message.len())
        } else {
            message.to_owned()
        };
        match &mut self.wire {
            Wire::Plain(link) => link.send(frame.as_bytes()),
            #[cfg(feature = "tls")]
            Wire::Tls(link) => link.send(frame.as_bytes()).map_err(Unsent::Broken),
        }
    }
}

impl Sink for Syslog {
    fn write(&mut self, entry: &Entry) -> Result<(), Fault> {
        let mut limit = self.limit;
        loop {
            match self.send(&self.message(entry, limit)) {
                Ok(()) => return Ok(()),
                Err(Unsent::Broken(e)) => return Err(e.into()),
                Err(Unsent::TooLong) if limit > 480 => limit /= 2,
                Err(Unsent::TooLong) => return Err(Fault::Refused),
            }
        }
    }

    fn close(&mut self) {
        #[cfg(feature = "tls")]
        if let Wire::Tls(link) = &mut self.wire {
            link.close();
        }
    }
}
