//! Nothing: no input, output discarded.

use nyx_device::CharBackend;
use serde::Deserialize;
use std::io;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NullConfig {}

pub(crate) struct Null;

impl CharBackend for Null {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn notify(&mut self, _: Box<dyn Fn() + Send>) -> io::Result<()> {
        Ok(())
    }

    fn is_connected(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        "null".to_owned()
    }
}
