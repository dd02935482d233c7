//! Descriptions: files, command line, presets, and one clear sentence for what makes no sense.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use nyx_journal::*;
use std::path::Path;

fn sentence(text: &str) -> String {
    match toml::from_str::<JournalConfig>(text) {
        Ok(config) => Journal::new(&config, &Origin::default())
            .unwrap_err()
            .to_string(),
        Err(e) => e.message().to_owned(),
    }
}

#[test]
fn a_file_describes_everything() {
    let config: JournalConfig = toml::from_str(
        r#"
        level = "warn"
        entries = 500
        filters = { device = "debug", "dev*" = "off" }
        audit = { path = "/x/audit.jsonl", key = "/x/key.pem", components = ["audit", "api*"], fsync = "second", rotate = "daily", max_size = "1M" }
        trace = { enabled = true, spans = 100, level = "info" }
        [[outputs]]
        kind = "console"
        level = "error"
        stream = "stdout"
        format = "json"
        colour = "never"
        timestamps = false
        [[outputs]]
        kind = "file"
        path = "/x/log"
        rotate = "size"
        max_size = 65536
        keep_days = 3
        max_files = 9
        [[outputs]]
        kind = "syslog"
        transport = "tls"
        address = "logs.example"
        facility = "authpriv"
        app_name = "vm"
        ca = "/x/ca"
        cert = "/x/cert"
        key = "/x/key"
        server_name = "logs"
        [[outputs]]
        kind = "network"
        transport = "udp"
        address = "[::1]:9"
        "#,
    )
    .unwrap();
    config.validate().unwrap();
    assert_eq!(
        config
            .outputs
            .iter()
            .map(OutputConfig::kind)
            .collect::<Vec<_>>(),
        ["console", "file", "syslog", "network"]
    );
    assert_eq!(
        config.filter().unwrap().to_string(),
        "warn,device=debug,dev*=off"
    );
    let OutputConfig::File(file) = &config.outputs[1] else {
        unreachable!()
    };
    assert_eq!(
        (file.max_size, file.keep_days, file.max_files),
        (Some(Bytes(65_536)), 3, Some(9))
    );
    // As text and as JSON and back it is the same.
    let text = toml::to_string(&config).unwrap();
    assert_eq!(toml::from_str::<JournalConfig>(&text).unwrap(), config);
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(
        serde_json::from_str::<JournalConfig>(&json).unwrap(),
        config
    );
    let nothing: JournalConfig = toml::from_str("").unwrap();
    assert_eq!(nothing, JournalConfig::default());
    assert_eq!(
        nothing.filter().unwrap().to_string(),
        "info,device=debug,guest=info,migration=warn,*=info"
    );
}

#[test]
fn flags_describe_everything() {
    let mut config = JournalConfig::default();
    config.set_level("WARN").unwrap();
    config.add_filters("device=debug,*=info").unwrap();
    config.add_filters("device=trace,error").unwrap();
    config.add_output("console,level=warn").unwrap();
    config.add_output("syslog").unwrap();
    config
        .add_output("syslog,transport=udp,address=logs")
        .unwrap();
    config.add_output("network,address=10.0.0.1:99").unwrap();
    config
        .set_audit("/x/audit,fsync=never,components=audit+api")
        .unwrap();
    config.validate().unwrap();
    assert_eq!(
        config.filter().unwrap().to_string(),
        "error,device=trace,*=info"
    );
    let audit = config.audit.unwrap();
    assert_eq!(
        audit
            .components
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["audit", "api"]
    );
    assert_eq!(audit.key_path(), Path::new("/x/audit.key"));
    // A level alone leaves no default filter above it.
    let mut config = JournalConfig::default();
    config.set_level("trace").unwrap();
    assert_eq!(
        config.filter().unwrap().threshold("migration"),
        Level::Trace
    );
}

#[test]
fn flags_that_make_no_sense() {
    let said = |text: &str| {
        let parsed = text.parse::<OutputConfig>();
        parsed.unwrap_err().to_string()
    };
    assert_eq!(
        said("fiel,path=/x"),
        "\"fiel,path=/x\": unknown variant `fiel`, expected one of `console`, `file`, `syslog`, `network`"
    );
    assert_eq!(said("file"), "\"file\": missing field `path`");
    assert_eq!(
        said("file,path=/x,rotate=weekly"),
        "\"file,path=/x,rotate=weekly\": unknown variant `weekly`, expected one of `never`, `hourly`, `daily`, `size`"
    );
    assert!(said("file,path=/x,paht=/y").contains("unknown field `paht`, expected one of `path`"));
    assert_eq!(
        said("console,level=loud"),
        "\"console,level=loud\": \"loud\" is not a level; write trace, debug, info, warn, error, fatal or off"
    );
    assert_eq!(
        said("file,path=/x,path=/y"),
        "\"file,path=/x,path=/y\": path is given twice; keep one"
    );
    assert_eq!(
        said("file,path=/x,keep_days=ever"),
        "\"file,path=/x,keep_days=ever\": keep_days \"ever\" is not a number or a yes or no"
    );
    assert_eq!(
        said("file,path=/x,max_size=1Q"),
        "\"file,path=/x,max_size=1Q\": \"1Q\" is not a size; write it like 64M or 1G"
    );
    assert_eq!(
        said("file,path=/x,max_size=1K"),
        "file.max_size \"1K\": give a file at least 4K"
    );
    assert_eq!(
        said("file,path=/x,keep_days=99999"),
        "file.keep_days \"99999\": keep files for at most 36500 days; 0 keeps them for ever"
    );
    assert_eq!(
        said("network,address=nowhere"),
        "network.address \"nowhere\": write host:port, such as logs.example:6514 or [::1]:6514"
    );
    assert_eq!(
        said("syslog,transport=tcp"),
        "syslog.address \"\": name the server as host:port"
    );
    assert_eq!(
        said("syslog,ca=/x"),
        "syslog.transport \"local\": ca, cert and key belong to transport tls; write transport=tls"
    );
    assert_eq!(
        said("syslog,transport=tls,address=a,cert=/x"),
        "syslog.cert \"\": cert and key go together; give both or neither"
    );
    assert_eq!(
        said("syslog,app_name=a b"),
        "syslog.app_name \"a b\": use 1 to 48 printable ASCII characters without spaces"
    );
    assert_eq!(
        said("console,,"),
        "\"console,,\": an option has no name; write key=value"
    );
    for nonsense in [
        "",
        ",",
        "=",
        "file,=",
        "syslog,address=\u{0}",
        "network,address=[::1",
        "network,address=a:0",
        "network,address=a b:1",
    ] {
        assert!(
            nonsense.parse::<OutputConfig>().is_err() || nonsense.starts_with("syslog"),
            "{nonsense:?}"
        );
    }
}

#[test]
fn files_that_make_no_sense() {
    assert_eq!(
        sentence("entries = 3"),
        "entries \"3\": keep 16 to 1000000 entries"
    );
    assert_eq!(
        sentence("trace = { spans = 0 }"),
        "trace.spans \"0\": keep 1 to 1000000 spans"
    );
    assert_eq!(
        sentence("filters = { \"a*b\" = \"info\" }"),
        "\"a*b\" is not a component; use letters, digits and _-.:/ and at most one * at the end"
    );
    assert!(
        sentence("levle = \"info\"").starts_with("unknown field `levle`, expected one of `level`")
    );
    assert_eq!(
        sentence("audit = { path = \"/x\", components = [] }"),
        "audit.components \"\": name at least one component, such as audit"
    );
    assert_eq!(
        sentence("outputs = [{ kind = \"file\", path = \"/proc/none/x\" }]"),
        "outputs[0].path \"/proc/none/x\": No such file or directory (os error 2); name a path that this process may create and write"
    );
    let many = format!("outputs = [{}]", "{ kind = \"console\" },".repeat(17));
    assert_eq!(
        sentence(&many),
        "outputs \"17\": at most 16 outputs are possible"
    );
}

#[test]
fn presets() {
    let folder = Path::new("/var/lib/nyx/web");
    let preset = |name: &str, syslog| name.parse::<Preset>().unwrap().config(folder, syslog);
    let filter = |config: &JournalConfig| config.filter().unwrap();
    let development = preset("development", None).unwrap();
    assert_eq!(filter(&development).threshold("api"), Level::Trace);
    assert!(development.trace.enabled);
    let production = preset("production", None).unwrap();
    assert_eq!(
        filter(&production).to_string(),
        "warn,device=info,migration=debug"
    );
    assert_eq!(production.outputs[0].kind(), "syslog");
    let secure = preset("high-security", Some("logs.example:6514")).unwrap();
    assert_eq!(filter(&secure).to_string(), "info");
    let audit = secure.audit.as_ref().unwrap();
    assert_eq!(
        (audit.path.as_path(), audit.rotate),
        (folder.join("audit.jsonl").as_path(), Rotate::Hourly)
    );
    let OutputConfig::Syslog(syslog) = &secure.outputs[0] else {
        unreachable!()
    };
    assert_eq!(syslog.transport, SyslogTransport::Tls);
    for config in [&development, &production, &secure] {
        config.validate().unwrap();
    }
    assert_eq!(
        preset("high-security", None).unwrap_err().to_string(),
        "preset \"high-security\": it needs a remote syslog server; name its host:port"
    );
    assert!("medium".parse::<Preset>().is_err());
}

/// In a process of its own there is one global subscriber; here this test alone asks for it.
#[test]
fn a_process_has_one_journal() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Origin {
        vm: None,
        ring: Some(folder.path().join("ring")),
    };
    let journal = Journal::install(&JournalConfig::default(), &origin).unwrap();
    tracing::info!(target: "vm", "here");
    std::thread::spawn(|| tracing::info!(target: "vm", "and there"))
        .join()
        .unwrap();
    assert_eq!(journal.entries(&Query::default()).len(), 2);
    let again = Journal::install(&JournalConfig::default(), &Origin::default());
    assert_eq!(
        again.unwrap_err().to_string(),
        "a journal is installed in this process already; use the one there is"
    );
}
