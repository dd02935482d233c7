//! JSON lines over TCP or UDP.

use super::stream::{Link, Peer, Unsent};
use super::{Fault, Sink, Stop};
use crate::config::{NetworkOutput, NetworkTransport};
use crate::entry::Entry;
use crate::journal::Origin;
use serde::Serialize;

pub(crate) struct Network {
    link: Link,
    vm: Option<String>,
}

/// The entry, and whose it is.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    vm: Option<&'a str>,
    #[serde(flatten)]
    entry: &'a Entry,
}

impl Network {
    pub(crate) fn open(config: &NetworkOutput, origin: &Origin, stop: &Stop) -> Self {
        let make = match config.transport {
            NetworkTransport::Tcp => Peer::Tcp,
            NetworkTransport::Udp => Peer::Udp,
        };
        Self {
            link: Link::new(Peer::new(make, &config.address, None), stop),
            vm: origin.vm.clone(),
        }
    }

    fn line(&self, entry: &Entry) -> Result<Vec<u8>, Fault> {
        let line = Line {
            vm: self.vm.as_deref(),
            entry,
        };
        let mut line = serde_json::to_vec(&line).map_err(|_| Fault::Refused)?;
        line.push(b'\n');
        Ok(line)
    }
}

impl Sink for Network {
    fn write(&mut self, entry: &Entry) -> Result<(), Fault> {
        let line = self.line(entry)?;
        match self.link.send(&line) {
            Ok(()) => Ok(()),
            Err(Unsent::Broken(e)) => Err(e.into()),
            Err(Unsent::TooLong) => {
                // Better the beginning of it than nothing.
                let short = Entry {
                    message: entry.message.chars().take(256).collect(),
                    component: entry.component.clone(),
                    fields: [("fields_dropped".into(), true.into())].into(),
                    ..*entry
                };
                match self.link.send(&self.line(&short)?) {
                    Ok(()) => Ok(()),
                    Err(Unsent::Broken(e)) => Err(e.into()),
                    Err(Unsent::TooLong) => Err(Fault::Refused),
                }
            }
        }
    }
}
