//! What all devices say about their queues.

use nyx_device::ConfigError;

/// Chains one task takes in one wakeup before it looks at commands again.
pub(crate) const BATCH: usize = 256;

/// Entries of a queue unless the configuration says otherwise.
pub(crate) const DEFAULT_SIZE: u16 = 256;

/// Largest queue on offer. The ring could be longer (32768, §2.7), but a chain may be as long as
/// its queue, and 1024 buffers are what one `readv(2)` takes.
const LARGEST_SIZE: u16 = 1024;

/// For `#[serde(default = ..)]`.
pub(crate) fn default_size() -> u16 {
    DEFAULT_SIZE
}

/// For `#[serde(default = ..)]`.
pub(crate) fn one() -> u16 {
    1
}

/// Refuses a queue size that is no power of two (§2.7) or out of bounds.
pub(crate) fn check_size(size: u16) -> Result<(), ConfigError> {
    if size.is_power_of_two() && (4..=LARGEST_SIZE).contains(&size) {
        return Ok(());
    }
    let reason = format!("{size} is not a power of two from 4 to {LARGEST_SIZE}");
    Err(ConfigError::new("queue_size", reason))
}

/// Refuses a number of queues outside `1..=most`.
pub(crate) fn check_count(path: &str, count: u16, most: u16) -> Result<(), ConfigError> {
    if (1..=most).contains(&count) {
        return Ok(());
    }
    Err(ConfigError::new(
        path,
        format!("{count} is not from 1 to {most}"),
    ))
}

/// Copies the part of `config` at `offset` into `data`; zeroes beyond its end (§4.1.4.6, §4.2.2).
pub(crate) fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}

/// Where a write of `data` at `offset` covers the byte `at`, its value.
pub(crate) fn written_byte(offset: u64, data: &[u8], at: u64) -> Option<u8> {
    let index = usize::try_from(at.checked_sub(offset)?).ok()?;
    data.get(index).copied()
}
