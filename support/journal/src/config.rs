//! What a journal is told: levels, filters, outputs, the audit trail, spans.

use crate::filter::{Filter, FilterError, Pattern};
use crate::level::{Level, LevelError};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Why a journal cannot be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A value that makes no sense.
    #[error("{field} {value:?}: {mend}")]
    Value {
        /// The field, such as `outputs[0].address`.
        field: String,
        /// What it says.
        value: String,
        /// What to write instead.
        mend: String,
    },
    /// A text that is no option string, or has a key or a value it cannot have.
    #[error("{given:?}: {mend}")]
    Options {
        /// The text.
        given: String,
        /// What to write instead.
        mend: String,
    },
    /// A malformed level.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// A malformed filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A file that cannot be used.
    #[error("{field} {path:?}: {source}; name a path that this process may create and write")]
    Open {
        /// The field, such as `audit.path`.
        field: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An audit trail that cannot be continued.
    #[error("audit trail {path:?}: {reason}")]
    Audit {
        /// Its file.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// This process has a global subscriber of `tracing` already.
    #[error("a journal is installed in this process already; use the one there is")]
    Installed,
}

impl JournalError {
    pub(crate) fn value(
        field: impl Into<String>,
        value: impl fmt::Display,
        mend: impl Into<String>,
    ) -> Self {
        Self::Value {
            field: field.into(),
            value: value.to_string(),
            mend: mend.into(),
        }
    }
}

/// A size in bytes: `65536`, `64K`, `100M`, `1G`; suffixes are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is not a size; write it like 64M or 1G");
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let shift = match suffix.trim_end_matches("iB").trim_end_matches('B') {
            "" => 0,
            "K" | "k" => 10,
            "M" | "m" => 20,
            "G" | "g" => 30,
            _ => return Err(refused()),
        };
        let number: u64 = number.parse().map_err(|_| refused())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(refused)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, suffix) in [(30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{suffix}", self.0 >> shift);
            }
        }
        self.0.fmt(f)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 64M")
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Bytes, E> {
                Ok(Bytes(n))
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Bytes, E> {
                u64::try_from(n)
                    .map(Bytes)
                    .map_err(|_| E::custom(format!("{n} is not a size; write it like 64M or 1G")))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A journal, described.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    /// Least severe level of components without a filter of their own. Default `info`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Levels by component: names, or prefixes with `*`. When neither this nor `level` is given:
    /// `device` debug, `guest` info, `migration` warn, `*` info.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<BTreeMap<String, Level>>,
    /// Entries kept in the ring, 16 to 1 000 000. Default 10 000.
    pub entries: u32,
    /// Entries a second that one component may write; ten times as many may come at once. What
    /// comes beyond is left out, counted and said; FATAL entries and audited components are never
    /// held back. 0: no limit. Default 1000.
    pub rate: u32,
    /// Where entries go beside the ring. Default: nowhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputConfig>,
    /// The signed audit trail. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditConfig>,
    /// The span tracer. Default: off.
    pub trace: TraceConfig,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            level: None,
            filters: None,
            entries: 10_000,
            rate: 1000,
            outputs: Vec::new(),
            audit: None,
            trace: TraceConfig::default(),
        }
    }
}

/// The span tracer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceConfig {
    /// Whether it records from the start. Default false; can be switched at run time.
    pub enabled: bool,
    /// Spans kept, 1 to 1 000 000. Default 5000.
    pub spans: u32,
    /// Least severe level of spans and their events. Default `debug`.
    pub level: Level,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            spans: 5000,
            level: Level::Debug,
        }
    }
}

/// One output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum OutputConfig {
    /// Standard error or standard output.
    Console(ConsoleOutput),
    /// A file.
    File(FileOutput),
    /// A syslog server, RFC 5424.
    Syslog(SyslogOutput),
    /// JSON lines over a network.
    Network(NetworkOutput),
}

impl OutputConfig {
    /// The word that names the kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Console(_) => "console",
            Self::File(_) => "file",
            Self::Syslog(_) => "syslog",
            Self::Network(_) => "network",
        }
    }

    /// The least severe level that goes there.
    pub fn level(&self) -> Level {
        match self {
            Self::Console(output) => output.level,
            Self::File(output) => output.level,
            Self::Syslog(output) => output.level,
            Self::Network(output) => output.level,
        }
    }
}

/// How entries look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `TIME [LEVEL] component: message key=value`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// When levels are coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Which of the process's streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard error.
    #[default]
    Stderr,
    /// Standard output.
    Stdout,
}

fn all() -> Level {
    Level::Trace
}

fn yes() -> bool {
    true
}

fn is_none<T>(value: &Option<T>) -> bool {
    value.is_none()
}

/// An output to the process's own streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleOutput {
    /// Least severe level; default: all that the filters let through.
    #[serde(default = "all")]
    pub level: Level,
    /// Which stream. Default `stderr`.
    #[serde(default)]
    pub stream: Stream,
    /// Default `text`.
    #[serde(default)]
    pub format: Format,
    /// Default `auto`.
    #[serde(default)]
    pub colour: Colour,
    /// Whether the text form begins with the time. Default true.
    #[serde(default = "yes")]
    pub timestamps: bool,
}

/// When a file is put aside and a new one begun. File names carry the time, in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rotate {
    /// Never by time; by size only if `max_size` is given.
    #[default]
    Never,
    /// With the first entry of an hour.
    Hourly,
    /// With the first entry of a day.
    Daily,
    /// By size: `max_size`, 64 MiB if that is not given.
    Size,
}

/// An output to a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileOutput {
    /// The file; missing folders are made.
    pub path: PathBuf,
    /// Least severe level; default: all that the filters let through.
    #[serde(default = "all")]
    pub level: Level,
    /// Default `text`.
    #[serde(default)]
    pub format: Format,
    /// Default `never`.
    #[serde(default)]
    pub rotate: Rotate,
    /// Largest size, at least 4 KiB; also beside `hourly` and `daily`. Default: none.
    #[serde(default, skip_serializing_if = "is_none")]
    pub max_size: Option<Bytes>,
    /// Days after which files put aside are deleted, 1 to 36 500; 0: never. Default 30.
    #[serde(default = "thirty")]
    pub keep_days: u32,
    /// Most files put aside that are kept. Default: no limit.
    #[serde(default, skip_serializing_if = "is_none")]
    pub max_files: Option<u32>,
}

fn thirty() -> u32 {
    30
}

/// How a syslog server is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyslogTransport {
    /// The datagram socket of this host's syslog.
    #[default]
    Local,
    /// One datagram per entry (RFC 5426).
    Udp,
    /// A stream with counted octets (RFC 6587).
    Tcp,
    /// A stream with counted octets in TLS (RFC 5425).
    Tls,
}

/// A facility of RFC 5424, section 6.2.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are those of the standard")]
pub enum Facility {
    Kern = 0,
    User = 1,
    Mail = 2,
    #[default]
    Daemon = 3,
    Auth = 4,
    Syslog = 5,
    Cron = 9,
    Authpriv = 10,
    Local0 = 16,
    Local1 = 17,
    Local2 = 18,
    Local3 = 19,
    Local4 = 20,
    Local5 = 21,
    Local6 = 22,
    Local7 = 23,
}

/// An output to a syslog server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyslogOutput {
    /// Default `local`.
    #[serde(default)]
    pub transport: SyslogTransport,
    /// `host:port`; for `local` the path of the socket. Default: `/dev/log` for `local`; the port is
    /// 514 for `udp`, 601 for `tcp` and 6514 for `tls` if not given.
    #[serde(default, skip_serializing_if = "is_none")]
    pub address: Option<String>,
    /// Least severe level; default: all that the filters let through.
    #[serde(default = "all")]
    pub level: Level,
    /// Default `daemon`.
    #[serde(default)]
    pub facility: Facility,
    /// APP-NAME, 1 to 48 printable ASCII characters. Default `nyx`.
    #[serde(default = "nyx")]
    pub app_name: String,
    /// `tls`: file with the certificates (PEM) of authorities to trust. Default: the system's bundle.
    #[serde(default, skip_serializing_if = "is_none")]
    pub ca: Option<PathBuf>,
    /// `tls`: file with the certificate chain (PEM) to show the server.
    #[serde(default, skip_serializing_if = "is_none")]
    pub cert: Option<PathBuf>,
    /// `tls`: file with the private key (PEM) of `cert`.
    #[serde(default, skip_serializing_if = "is_none")]
    pub key: Option<PathBuf>,
    /// `tls`: the name that the server's certificate must have. Default: the host of `address`.
    #[serde(default, skip_serializing_if = "is_none")]
    pub server_name: Option<String>,
}

fn nyx() -> String {
    "nyx".into()
}

/// How JSON lines travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkTransport {
    /// A stream.
    #[default]
    Tcp,
    /// One datagram per line.
    Udp,
}

/// An output of JSON lines over a network. Each line is the entry with a key `vm` if the machine has
/// a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkOutput {
    /// `host:port`.
    pub address: String,
    /// Default `tcp`.
    #[serde(default)]
    pub transport: NetworkTransport,
    /// Least severe level; default: all that the filters let through.
    #[serde(default = "all")]
    pub level: Level,
}

/// When the audit trail is forced to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// After every entry, or every batch when they come fast.
    #[default]
    Always,
    /// Within a second of an entry.
    Second,
    /// When the kernel sees fit.
    Never,
}

/// The audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// The file. Beside it: `PATH.head`, the signed checkpoint.
    pub path: PathBuf,
    /// The private key (PKCS#8 PEM, Ed25519). Made with mode 0600 if it is missing, its public key
    /// beside as `KEY.pub`. Default `PATH.key`.
    #[serde(default, skip_serializing_if = "is_none")]
    pub key: Option<PathBuf>,
    /// Components whose entries are audited, whatever the filters say. Default `audit`.
    #[serde(default = "audit_components")]
    pub components: Vec<Pattern>,
    /// Default `always`.
    #[serde(default)]
    pub fsync: Fsync,
    /// Default `never`. The chain goes on from file to file.
    #[serde(default)]
    pub rotate: Rotate,
    /// Largest size of a file, at least 4 KiB.
    #[serde(default, skip_serializing_if = "is_none")]
    pub max_size: Option<Bytes>,
}

fn audit_components() -> Vec<Pattern> {
    "audit".parse().into_iter().collect()
}

impl AuditConfig {
    /// A trail in `path` with everything else at its default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            key: None,
            components: audit_components(),
            fsync: Fsync::default(),
            rotate: Rotate::default(),
            max_size: None,
        }
    }

    /// Where the private key is.
    pub fn key_path(&self) -> PathBuf {
        self.key
            .clone()
            .unwrap_or_else(|| beside(&self.path, ".key"))
    }
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A ready-made journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Everything, to standard error.
    Development,
    /// Warnings, devices at INFO, migration at DEBUG, to this host's syslog.
    Production,
    /// INFO, a signed audit trail, hourly files, and a remote syslog over TLS if one is named.
    HighSecurity,
}

impl FromStr for Preset {
    type Err = JournalError;
    fn from_str(text: &str) -> Result<Self, JournalError> {
        match text {
            "development" => Ok(Self::Development),
            "production" => Ok(Self::Production),
            "high-security" => Ok(Self::HighSecurity),
            _ => Err(JournalError::value(
                "preset",
                text,
                "write development, production or high-security",
            )),
        }
    }
}

impl Preset {
    /// The journal of this preset. `folder` is where its files go; `syslog` is the `host:port` of a
    /// remote syslog server, which only high security uses and demands.
    ///
    /// # Errors
    /// High security without a syslog server.
    pub fn config(
        self,
        folder: &Path,
        syslog: Option<&str>,
    ) -> Result<JournalConfig, JournalError> {
        let local = SyslogOutput {
            transport: SyslogTransport::Local,
            address: None,
            level: Level::Trace,
            facility: Facility::default(),
            app_name: nyx(),
            ca: None,
            cert: None,
            key: None,
            server_name: None,
        };
        let filters = |rules: &[(&str, Level)]| {
            Some(
                rules
                    .iter()
                    .map(|(name, level)| ((*name).into(), *level))
                    .collect(),
            )
        };
        Ok(match self {
            Self::Development => JournalConfig {
                level: Some(Level::Debug),
                filters: filters(&[("*", Level::Trace)]),
                outputs: vec![OutputConfig::Console(ConsoleOutput {
                    level: Level::Trace,
                    stream: Stream::Stderr,
                    format: Format::Text,
                    colour: Colour::Auto,
                    timestamps: true,
                })],
                trace: TraceConfig {
                    enabled: true,
                    ..TraceConfig::default()
                },
                ..JournalConfig::default()
            },
            Self::Production => JournalConfig {
                level: Some(Level::Warn),
                filters: filters(&[("device", Level::Info), ("migration", Level::Debug)]),
                outputs: vec![OutputConfig::Syslog(local)],
                ..JournalConfig::default()
            },
            Self::HighSecurity => {
                let address = syslog.ok_or_else(|| {
                    JournalError::value(
                        "preset",
                        "high-security",
                        "it needs a remote syslog server; name its host:port",
                    )
                })?;
                JournalConfig {
                    level: Some(Level::Info),
                    outputs: vec![
                        OutputConfig::Syslog(SyslogOutput {
                            transport: SyslogTransport::Tls,
                            address: Some(address.into()),
                            ..local
                        }),
                        OutputConfig::File(FileOutput {
                            path: folder.join("journal.log"),
                            level: Level::Trace,
                            format: Format::Json,
                            rotate: Rotate::Hourly,
                            max_size: None,
                            keep_days: 30,
                            max_files: None,
                        }),
                    ],
                    audit: Some(AuditConfig {
                        rotate: Rotate::Hourly,
                        ..AuditConfig::new(folder.join("audit.jsonl"))
                    }),
                    ..JournalConfig::default()
                }
            }
        })
    }
}

impl JournalConfig {
    /// The filter that level and filters describe.
    ///
    /// # Errors
    /// A name of a component is malformed.
    pub fn filter(&self) -> Result<Filter, FilterError> {
        match (self.level, &self.filters) {
            (None, None) => Filter::with_rules(
                Level::Info,
                [
                    ("device", Level::Debug),
                    ("guest", Level::Info),
                    ("migration", Level::Warn),
                    ("*", Level::Info),
                ],
            ),
            (level, filters) => Filter::with_rules(
                level.unwrap_or_default(),
                filters
                    .iter()
                    .flatten()
                    .map(|(name, level)| (name.as_str(), *level)),
            ),
        }
    }

    /// Takes in `--log-level LEVEL`.
    ///
    /// # Errors
    /// No level.
    pub fn set_level(&mut self, text: &str) -> Result<(), JournalError> {
        self.level = Some(text.parse()?);
        Ok(())
    }

    /// Takes in `--log device=debug,*=info`; a level alone is the level for all. Rules given
    /// before remain unless they are given anew.
    ///
    /// # Errors
    /// No filter.
    pub fn add_filters(&mut self, text: &str) -> Result<(), JournalError> {
        // Checked as a whole, and then taken apart, so that rules of several flags add up.
        text.parse::<Filter>()?;
        for part in text.split(',') {
            match part.split_once('=') {
                Some((component, level)) => {
                    let filters = self.filters.get_or_insert_default();
                    filters.insert(component.trim().into(), level.parse()?);
                }
                None => self.level = Some(part.parse()?),
            }
        }
        Ok(())
    }

    /// Takes in `--log-to KIND[,key=value…]`.
    ///
    /// # Errors
    /// No output.
    pub fn add_output(&mut self, text: &str) -> Result<(), JournalError> {
        self.outputs.push(text.parse()?);
        Ok(())
    }

    /// Takes in `--audit PATH[,key=value…]`.
    ///
    /// # Errors
    /// No audit trail.
    pub fn set_audit(&mut self, text: &str) -> Result<(), JournalError> {
        self.audit = Some(text.parse()?);
        Ok(())
    }

    /// Checks what can be checked without touching files or networks.
    ///
    /// # Errors
    /// One sentence about the first fault.
    pub fn validate(&self) -> Result<(), JournalError> {
        self.filter()?;
        if !(16..=1_000_000).contains(&self.entries) {
            let mend = "keep 16 to 1000000 entries";
            return Err(JournalError::value("entries", self.entries, mend));
        }
        if !(1..=1_000_000).contains(&self.trace.spans) {
            let mend = "keep 1 to 1000000 spans";
            return Err(JournalError::value("trace.spans", self.trace.spans, mend));
        }
        if self.outputs.len() > 16 {
            let mend = "at most 16 outputs are possible";
            return Err(JournalError::value("outputs", self.outputs.len(), mend));
        }
        for (index, output) in self.outputs.iter().enumerate() {
            output.validate(&format!("outputs[{index}]"))?;
        }
        if let Some(audit) = &self.audit {
            check_size("audit", audit.max_size)?;
            if audit.components.is_empty() {
                let mend = "name at least one component, such as audit";
                return Err(JournalError::value("audit.components", "", mend));
            }
        }
        Ok(())
    }
}

fn check_size(field: &str, size: Option<Bytes>) -> Result<(), JournalError> {
    match size {
        Some(size) if size.0 < 4096 => Err(JournalError::value(
            format!("{field}.max_size"),
            size,
            "give a file at least 4K",
        )),
        _ => Ok(()),
    }
}

impl OutputConfig {
    /// Checks what can be checked without touching files or networks; `field` is its own name.
    pub(crate) fn validate(&self, field: &str) -> Result<(), JournalError> {
        match self {
            Self::Console(_) => Ok(()),
            Self::File(file) => {
                check_size(field, file.max_size)?;
                if file.keep_days > 36_500 {
                    let mend = "keep files for at most 36500 days; 0 keeps them for ever";
                    let field = format!("{field}.keep_days");
                    return Err(JournalError::value(field, file.keep_days, mend));
                }
                if file.path.file_name().is_none() {
                    let mend = "name a file";
                    let (field, path) = (format!("{field}.path"), file.path.display());
                    return Err(JournalError::value(field, path, mend));
                }
                Ok(())
            }
            Self::Syslog(syslog) => {
                let name = &syslog.app_name;
                let fits = (1..=48).contains(&name.len());
                if !fits || !name.bytes().all(|b| b.is_ascii_graphic()) {
                    let mend = "use 1 to 48 printable ASCII characters without spaces";
                    return Err(JournalError::value(format!("{field}.app_name"), name, mend));
                }
                match (syslog.transport, &syslog.address) {
                    (SyslogTransport::Local, _) => {}
                    (_, None) => {
                        let mend = "name the server as host:port";
                        return Err(JournalError::value(format!("{field}.address"), "", mend));
                    }
                    (_, Some(address)) => check_address(field, address, true)?,
                }
                let of_tls = [&syslog.ca, &syslog.cert, &syslog.key];
                let has_tls = of_tls.iter().any(|path| path.is_some());
                if has_tls && syslog.transport != SyslogTransport::Tls {
                    let mend = "ca, cert and key belong to transport tls; write transport=tls";
                    let field = format!("{field}.transport");
                    let given = format!("{:?}", syslog.transport).to_lowercase();
                    return Err(JournalError::value(field, given, mend));
                }
                if syslog.cert.is_some() != syslog.key.is_some() {
                    let mend = "cert and key go together; give both or neither";
                    return Err(JournalError::value(format!("{field}.cert"), "", mend));
                }
                if cfg!(not(feature = "tls")) && syslog.transport == SyslogTransport::Tls {
                    let mend = "this build has no TLS; write transport=tcp";
                    return Err(JournalError::value(
                        format!("{field}.transport"),
                        "tls",
                        mend,
                    ));
                }
                Ok(())
            }
            Self::Network(network) => check_address(field, &network.address, false),
        }
    }
}

/// Host and port of `host:port`, `[v6]:port`, or of a host alone with `port` as the default.
pub(crate) fn host_and_port(address: &str, port: Option<u16>) -> Option<(&str, u16)> {
    let (host, given) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            match rest {
                "" => (host, None),
                rest => (host, Some(rest.strip_prefix(':')?)),
            }
        }
        None => match address.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let port = match given {
        Some(given) => given.parse().ok().filter(|port| *port != 0)?,
        None => port?,
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || ".-_:%".contains(c);
    (!host.is_empty() && host.len() <= 255 && host.chars().all(is_host)).then_some((host, port))
}

fn check_address(field: &str, address: &str, has_port: bool) -> Result<(), JournalError> {
    match host_and_port(address, has_port.then_some(1)) {
        Some(_) => Ok(()),
        None => Err(JournalError::value(
            format!("{field}.address"),
            address,
            "write host:port, such as logs.example:6514 or [::1]:6514",
        )),
    }
}
