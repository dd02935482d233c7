//! A description as text: what its user said, and nothing that would be so anyway.

use nyx_journal::{JournalConfig, TraceConfig};
use nyx_spec::{
    ConsoleConfig, ConsoleKind, CpuConfig, DiskConfig, MemoryConfig, NetConfig, NetKind, VmConfig,
};
use serde::{Serialize, Serializer};
use toml::{Table, Value};

/// A description cannot be written down.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the description cannot be written: {0}")]
pub(crate) struct WriteError(String);

fn table(of: &impl Serialize) -> Result<Table, WriteError> {
    Table::try_from(of).map_err(|e| WriteError(e.to_string()))
}

/// Drops from `table` what `plain` has alike, except for `keys` that must be there.
fn drop_plain(table: &mut Table, plain: &Table, keys: &[&str]) {
    table.retain(|key, value| keys.contains(&key) || plain.get(key) != Some(value));
}

fn drop_plain_entries(table: &mut Table, list: &str, plain: &Table, keys: &[&str]) {
    if let Some(Value::Array(entries)) = table.get_mut(list) {
        for entry in entries.iter_mut().filter_map(Value::as_table_mut) {
            drop_plain(entry, plain, keys);
        }
    }
}

/// `config` as a TOML document that reads back as it.
pub(crate) fn to_toml(config: &VmConfig) -> Result<String, WriteError> {
    let mut whole = table(config)?;
    let plain = table(&VmConfig::default())?;
    drop_plain(&mut whole, &plain, &[]);
    let disk = table(&DiskConfig::from_plain())?;
    drop_plain_entries(&mut whole, "disks", &disk, &["path"]);
    let net = table(&NetConfig::from_plain())?;
    drop_plain_entries(&mut whole, "nets", &net, &["kind"]);
    let console = table(&ConsoleConfig::from_plain())?;
    drop_plain_entries(&mut whole, "consoles", &console, &["kind"]);
    if let Some(Value::Table(memory)) = whole.get_mut("memory") {
        drop_plain(memory, &table(&MemoryConfig::default())?, &["size"]);
    }
    if let Some(Value::Table(journal)) = whole.get_mut("journal") {
        drop_plain(journal, &table(&JournalConfig::default())?, &[]);
        if let Some(Value::Table(trace)) = journal.get_mut("trace") {
            drop_plain(trace, &table(&TraceConfig::default())?, &[]);
        }
    }
    if let Some(Value::Table(boot)) = whole.get_mut("boot") {
        drop_plain(boot, &Table::new(), &[]);
    }
    toml::to_string(&Sorted(&Value::Table(whole))).map_err(|e| WriteError(e.to_string()))
}

/// Keys in the order in which people expect them; others follow.
const ORDER: [&str; 16] = [
    "name",
    "kind",
    "path",
    "transport",
    "count",
    "cpus",
    "size",
    "memory",
    "kernel",
    "initrd",
    "cmdline",
    "boot",
    "disks",
    "nets",
    "consoles",
    "debug_console",
];

/// A value whose tables are in that order.
struct Sorted<'v>(&'v Value);

impl Serialize for Sorted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = |key: &str| ORDER.iter().position(|known| *known == key);
        match self.0 {
            Value::Table(table) => {
                let mut entries: Vec<_> = table.iter().collect();
                entries.sort_by_key(|(key, _)| place(key).unwrap_or(ORDER.len()));
                serializer.collect_map(entries.into_iter().map(|(key, v)| (key, Sorted(v))))
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Sorted)),
            plain => plain.serialize(serializer),
        }
    }
}

/// An entry of a list with nothing said about it.
trait FromPlain {
    fn from_plain() -> Self;
}

impl FromPlain for DiskConfig {
    fn from_plain() -> Self {
        crate::Disk::new("").config
    }
}

impl FromPlain for NetConfig {
    fn from_plain() -> Self {
        let net = crate::Net::null().config;
        debug_assert_eq!(net.kind, NetKind::Null);
        net
    }
}

impl FromPlain for ConsoleConfig {
    fn from_plain() -> Self {
        let console = crate::Console::null().config;
        debug_assert_eq!(console.kind, ConsoleKind::Null);
        console
    }
}

/// vCPUs as a file has them: a number where that says it all.
pub(crate) fn cpus(table: CpuConfig) -> nyx_spec::Cpus {
    match table {
        CpuConfig {
            count,
            sockets: None,
            cores: None,
            threads: None,
        } => nyx_spec::Cpus::Count(count),
        table => nyx_spec::Cpus::Table(table),
    }
}
